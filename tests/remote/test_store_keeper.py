"""What a store needs while it is used holds nothing up, whoever else writes to the directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.origin import Opened
from mystfuse.remote.store_keeper import StoreKeeper

OPENED = Opened(64 * CHUNK, "1", bytes(CHUNK))


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[StoreKeeper]:
    memory = Memory()
    config = FetcherConfig(("https://host/image",), str(tmp_path / "cache"))
    yield StoreKeeper(config, memory, lambda line: None)
    memory.close()


def test_who_holds_the_lock_of_the_directory_does_not_stop_the_fetcher(keeper: StoreKeeper, tmp_path: Path) -> None:
    store = keeper.open(OPENED)
    with (tmp_path / "cache/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        assert not store.make_room(CHUNK)
        assert time.monotonic() - started < 3
    store.close()


async def test_a_directory_that_fails_while_it_is_full_leaves_nobody_busy(keeper: StoreKeeper, tmp_path: Path) -> None:
    store = keeper.open(OPENED)
    store.is_broken = True
    await keeper.keep(store)
    store.notice()
    memory = keeper.open_in_memory(OPENED)
    before = time.process_time()
    with trio.move_on_after(0.5):
        await keeper.keep(memory)
    assert time.process_time() - before < 0.25
    for opened in (store, memory):
        opened.close()
    assert os.path.exists(tmp_path / "cache/layout")


def test_who_began_in_memory_stays_there(tmp_path: Path) -> None:
    path, memory = tmp_path / "cache", Memory()
    path.write_bytes(b"in its way")
    config = FetcherConfig(("https://host/image",), str(path))
    # Of three workers, one after the other.
    for is_there in (False, True, True):
        keeper = StoreKeeper(config, memory, lambda line: None)
        keeper.open(OPENED).close()
        assert not keeper.is_in_directory
        if not is_there:
            path.unlink()
    memory.close()

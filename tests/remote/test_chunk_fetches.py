"""Fetches under way: shared, coalesced, read ahead, and prefetched behind everything else."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.cache_directory import CacheDirectory, ImageFiles
from mystfuse.remote.chunk_fetches import ChunkFetches
from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.chunk_store import ChunkStore, store_in_memory
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.prefetch import Prefetch
from mystfuse.remote.read_ahead import ReadAhead
from mystfuse.remote.request_slots import Purpose
from tests.support.remote_files import FileTransfers

CHUNKS = 512
SIZE = CHUNKS * CHUNK - 100

Made = tuple[ChunkFetches, FileTransfers, ChunkStore]
Make = Callable[[], AbstractAsyncContextManager[Made]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


@pytest.fixture
def make(image: Path) -> Make:
    @asynccontextmanager
    async def make() -> AsyncIterator[Made]:
        memory = Memory()
        store = store_in_memory(SIZE, memory.data, memory.map, lambda line: None)
        transfers = FileTransfers(image, throughput=100e6)
        async with trio.open_nursery() as nursery:
            yield ChunkFetches(nursery, transfers, store, 30.0), transfers, store
            nursery.cancel_scope.cancel()
        store.close()
        memory.close()

    return make


async def test_neighbours_are_one_request_and_each_chunk_is_fetched_once(make: Make) -> None:
    async with make() as (fetches, transfers, store):
        fetches.start([range(2), range(2, 5), range(9, 10)], Purpose.WANTED)
        assert fetches.missing(range(12)) == [range(5, 9), range(10, 12)]
        fetches.start(fetches.missing(range(7)), Purpose.WANTED)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(fetches.wait, range(10))
        assert sorted((offset // CHUNK, length // CHUNK) for offset, length, _ in transfers.asked) == [
            (0, 5), (5, 2), (9, 1),
        ]  # fmt: skip
        assert store.missing(range(10)) == [range(7, 9)]


async def test_whoever_waits_is_woken_before_the_whole_request_is_done(
    make: Make, autojump_clock: trio.testing.MockClock
) -> None:
    async with make() as (fetches, transfers, _):
        transfers.part_delay = 1.0
        fetches.start([range(32)], Purpose.WANTED)
        await fetches.wait(range(2))
        assert trio.current_time() < 3 and fetches.is_under_way(range(31, 32))


async def test_all_who_wait_get_the_failure_and_the_next_one_tries_again(make: Make) -> None:
    async with make() as (fetches, transfers, store):
        transfers.failure = FetchError(Failure.ABSENT, "gone")
        fetches.start([range(4)], Purpose.WANTED)
        for chunks in (range(2), range(3, 4)):
            with pytest.raises(FetchError, match="gone"):
                await fetches.wait(chunks)
            if chunks.start == 0:
                fetches.start([range(3, 4)], Purpose.WANTED)
        transfers.failure = None
        fetches.start(fetches.missing(range(4)), Purpose.WANTED)
        await fetches.wait(range(4))
        assert not store.missing(range(4))


async def test_a_cancelled_wait_leaves_the_fetch_to_others(make: Make, autojump_clock: trio.testing.MockClock) -> None:
    async with make() as (fetches, transfers, store):
        transfers.delay = 5
        fetches.start([range(4)], Purpose.WANTED)
        with trio.move_on_after(1):
            await fetches.wait(range(4))
        await fetches.wait(range(4))
        assert not store.missing(range(4)) and len(transfers.asked) == 1


async def test_what_cannot_be_stored_wakes_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as (fetches, _, store):
        monkeypatch.setattr(store, "write", lambda offset, data: False)
        fetches.start([range(4)], Purpose.WANTED)
        with trio.fail_after(10):
            await fetches.wait(range(4))
        assert store.missing(range(4))


async def test_a_large_request_is_several(make: Make) -> None:
    async with make() as (fetches, transfers, _):
        transfers.throughput = 10e6
        fetches.start([range(CHUNKS)], Purpose.WANTED)
        await fetches.wait(range(CHUNKS))
        assert sum(length for _, length, _ in transfers.asked) == SIZE
        assert max(length for _, length, _ in transfers.asked) <= 1 << 20


async def test_what_somebody_waits_for_overtakes_what_nobody_asked_for(
    make: Make, autojump_clock: trio.testing.MockClock
) -> None:
    async with make() as (fetches, transfers, _):
        transfers.delay = 1.0
        fetches.start([range(chunk, chunk + 1) for chunk in range(0, 100, 2)], Purpose.PREFETCH)
        await trio.testing.wait_all_tasks_blocked()
        for chunks in (range(101, 102), range(98, 99)):
            # Slots are kept for it; and what waits for a slot has its turn.
            started = trio.current_time()
            fetches.start(fetches.missing(chunks), Purpose.WANTED)
            await fetches.wait(chunks)
            assert trio.current_time() - started <= 2.5
        assert len(transfers.asked) < 30


def _in_directory(files: ImageFiles) -> ChunkStore:
    store = ChunkStore(SIZE, files.data, files.map, files.for_reader, files.locks, "cache", lambda line: None)
    store.prepare()
    return store


async def test_what_another_process_fetches_is_waited_for_and_not_for_ever(
    image: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cache = CacheDirectory(str(tmp_path / "cache"))
    ours, theirs = (_in_directory(cache.open_image("a" * 64)) for _ in range(2))
    assert ours.locks is not None and theirs.locks is not None
    transfers = FileTransfers(image)
    async with trio.open_nursery() as nursery:
        fetches = ChunkFetches(nursery, transfers, ours, 30.0)
        assert theirs.locks.claim(range(2, 4))
        fetches.start([range(6)], Purpose.WANTED)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert {offset // CHUNK for offset, _, _ in transfers.asked} == {0, 4}
        # They store one of them, and never come to the other.
        theirs.write(2 * CHUNK, image.read_bytes()[2 * CHUNK : 3 * CHUNK])
        theirs.mark(range(2, 3))
        with trio.fail_after(10):
            await fetches.wait(range(6))
        assert not ours.missing(range(6))
        assert sorted(offset // CHUNK for offset, _, _ in transfers.asked) == [0, 3, 4]
    ours.close()
    theirs.close()
    cache.close()


@pytest.mark.parametrize(("timeout", "pause"), [(30.0, 2.5), (2.0, inf), (None, 2.5)])
async def test_locks_that_are_let_go_one_by_one_cost_half_the_time_out(
    image: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock, timeout: float | None, pause: float
) -> None:
    cache = CacheDirectory(str(tmp_path / "cache"))
    ours, theirs = (_in_directory(cache.open_image("a" * 64)) for _ in range(2))
    locks = theirs.locks
    assert locks is not None and locks.claim(range(64))

    async def let_go() -> None:
        for chunk in range(64):
            await trio.sleep(pause)
            locks.release(range(chunk, chunk + 1))

    async with trio.open_nursery() as nursery:
        fetches = ChunkFetches(nursery, FileTransfers(image), ours, timeout)
        nursery.start_soon(let_go)
        fetches.start([range(64)], Purpose.WANTED)
        with trio.fail_after(0.6 * (timeout or 30)):
            await fetches.wait(range(64))
        nursery.cancel_scope.cancel()
    assert not ours.missing(range(64))
    ours.close()
    theirs.close()
    cache.close()


async def test_prefetching_fills_the_pipe_and_gives_way(make: Make, autojump_clock: trio.testing.MockClock) -> None:
    async with make() as (fetches, transfers, store):
        # 20 ms and 100 Mbit/s: 250 kB are on their way.
        transfers.round_trip, transfers.throughput, transfers.delay = 0.02, 12.5e6, 0.02
        ranges = tuple((chunk * CHUNK, 100) for chunk in range(0, CHUNKS, 6))
        prefetch = Prefetch(ranges, 1 << 30, fetches, store, transfers)
        most, with_wanted = 0, 0

        async def watch() -> None:
            nonlocal most, with_wanted
            while not prefetch.is_over:
                now = fetches.bytes_running[Purpose.PREFETCH]
                most = max(most, now)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(prefetch.run)
            await trio.sleep(0.05)
            assert 250_000 <= most <= 1 << 20
            transfers.delay = 1000
            fetches.start([range(1, 2)], Purpose.WANTED)
            transfers.delay = 0.02
            await trio.sleep(0.5)
            assert 0 < fetches.bytes_running[Purpose.PREFETCH] <= 17 * CHUNK or prefetch.is_over
            nursery.start_soon(fetches.wait, range(1, 2))
            await trio.sleep(2000)
        assert prefetch.is_over and not prefetch.missing
        assert all(not store.missing(range(chunk, chunk + 1)) for chunk in range(0, CHUNKS, 6))


async def test_prefetching_ends_where_nothing_comes(make: Make, autojump_clock: trio.testing.MockClock) -> None:
    async with make() as (fetches, transfers, store):
        transfers.failure = FetchError(Failure.UNREACHABLE, "down")
        prefetch = Prefetch(((0, -1), (SIZE + 5, 1), (5, 10)), 1 << 30, fetches, store, transfers)
        with trio.fail_after(3600):
            await prefetch.run()
        assert prefetch.is_over and prefetch.missing >= SIZE


@given(st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 20)), max_size=60))
def test_what_is_read_ahead_is_in_the_image(reads: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(1 << 24)
    for offset, length in reads:
        if offset + length <= 1 << 24:
            start, more = ahead.after(offset, length, 4 << 20)
            assert start >= 0 and more >= 0 and start + more <= 1 << 24
            assert more <= 4 << 20


@pytest.mark.parametrize("seed", range(20))
def test_at_most_twice_as_much_is_fetched_as_is_read(seed: int) -> None:
    """Files are read from their beginning to their end, or somewhere before, a few at a time."""
    chance, pages = random.Random(seed), 1 << 17
    ahead = ReadAhead(pages << 12)
    read: set[int] = set()
    fetched: set[int] = set()
    for _ in range(chance.randint(5, 100)):
        size = chance.choice((1, 8, 32, 64))
        readers = []
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(pages - 4096)
            readers.append(iter(range(start, start + chance.choice((3, 50, 500, 3000)), size)))
        while readers:
            reader = chance.choice(readers)
            for first in reader:
                wanted = range(first, first + size)
                read.update(wanted)
                if fetched.issuperset(wanted):
                    # The fetcher does not hear of it.
                    continue
                start, more = ahead.after(first << 12, size << 12, 4 << 20)
                fetched.update(wanted, range(start >> 12, start + more >> 12))
                break
            else:
                readers.remove(reader)
    assert len(fetched) <= 2 * len(read)


def test_the_window_of_one_who_reads_through_grows() -> None:
    ahead, size = ReadAhead(1 << 30), 128 << 10
    position, asked = 0, 0
    for _ in range(400):
        start, more = ahead.after(position, size, 4 << 20)
        if more:
            assert start == max(asked, position + size)
            asked = start + more
            # All of it is there when the next miss comes.
            position = asked
        else:
            position += size
        assert asked - position <= 4 << 20
    assert asked > 400 << 20


def test_reads_here_and_there_are_no_reason_to_read_ahead() -> None:
    ahead, chance = ReadAhead(1 << 40), random.Random(1)
    assert not any(ahead.after(chance.randrange(1 << 39), 65536, 4 << 20)[1] for _ in range(1000))


async def test_a_chunk_that_is_held_back_is_stored_when_it_is_asked_for(make: Make, image: Path) -> None:
    async with make() as (fetches, transfers, store):
        fetches.hold(3)
        fetches.start([range(6)], Purpose.AHEAD)
        while fetches.running[Purpose.AHEAD]:
            await fetches.changed.wait()
        assert store.missing(range(6)) == [range(3, 4)]
        assert os.pread(store.data, CHUNK, 3 * CHUNK) == bytes(CHUNK)
        fetches.give_up(range(2, 4))
        assert not store.missing(range(6))
        assert os.pread(store.data, 6 * CHUNK, 0) == image.read_bytes()[: 6 * CHUNK]
        assert len(transfers.asked) == 1


async def test_what_somebody_waits_for_is_not_held_back(make: Make) -> None:
    async with make() as (fetches, _, store):
        fetches.hold(3)
        fetches.start([range(6)], Purpose.AHEAD)
        with trio.fail_after(30):
            await fetches.wait(range(3, 4))
        assert not store.missing(range(3, 4))


async def test_a_fetch_that_failed_holds_nothing_back_later(make: Make) -> None:
    async with make() as (fetches, transfers, store):
        for failure in (FetchError(Failure.UNREACHABLE, "down"), None):
            transfers.failure = failure
            if failure is not None:
                fetches.hold(3)
            fetches.start([range(6)], Purpose.AHEAD)
            while fetches.running[Purpose.AHEAD]:
                await fetches.changed.wait()
        assert not store.missing(range(6))

"""The file of an overlay store: encrypted, without a name, and every change to it is noticed."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import ImageReadError, IntegrityError
from mystfuse.overlay.encrypted_store import OverlayStore, Sealed, open_store_file
from mystfuse.overlay.slots import Slots, runs_of
from tests.support.commands import run
from tests.support.overlay_stores import BLOCK, flip, replay, swap, truncate, zero


def sealed_blocks(store: OverlayStore, contents: Sequence[bytes], first_slot: int = 0) -> list[Sealed]:
    tags = store.write(range(first_slot, first_slot + len(contents)), 1 + first_slot, contents)
    return [Sealed(first_slot + index, 1 + first_slot + index, tag) for index, tag in enumerate(tags)]


def test_the_file_has_no_name_and_is_private(tmp_path: Path) -> None:
    descriptor = open_store_file(str(tmp_path))
    status = os.fstat(descriptor)
    assert list(tmp_path.iterdir()) == [] and status.st_nlink == 0 and status.st_size == 0
    assert stat.S_IMODE(status.st_mode) == 0o600 and not os.get_inheritable(descriptor)
    assert run("ln", "-L", f"/proc/{os.getpid()}/fd/{descriptor}", tmp_path / "name", check=False).returncode
    assert list(tmp_path.iterdir()) == []
    os.close(descriptor)


def test_a_file_system_without_nameless_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: str, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return really_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    descriptor = open_store_file(str(tmp_path))
    status = os.fstat(descriptor)
    assert list(tmp_path.iterdir()) == [] and status.st_nlink == 0 and stat.S_IMODE(status.st_mode) == 0o600
    os.close(descriptor)


@pytest.mark.parametrize("size", [1024, 4096, 65536])
def test_blocks_come_back_and_nothing_of_them_is_on_disk(size: int, tmp_path: Path) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), size)
    contents = [(b"block %d " % number * size)[:size] for number in range(2 * (1 << 20) // size + 3)]
    sealed = sealed_blocks(store, contents)
    assert store.read(sealed) == contents
    assert store.read(sealed[5:2:-1] + sealed[:1]) == [*contents[5:2:-1], contents[0]]
    on_disk = os.pread(store._descriptor, len(contents) * size, 0)
    assert len(on_disk) == len(contents) * size and b"block" not in on_disk
    # The same plaintext again gives other ciphertext.
    assert len({on_disk[start : start + size] for start in range(0, len(on_disk), size)}) == len(contents)
    sealed_again = sealed_blocks(store, [contents[0]] * 2, len(contents))
    first, second = (os.pread(store._descriptor, size, block.slot * size) for block in sealed_again)
    assert first != second


@pytest.mark.parametrize(
    ("tamper", "damaged"),
    [(flip, {1}), (swap, {0, 1}), (replay, {0, 1, 2, 3}), (truncate, {1, 2, 3}), (zero, {1})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_change_to_the_file_is_noticed(
    tamper: Callable[[int, bytes], None], damaged: set[int], tmp_path: Path
) -> None:
    """``replay`` puts back the earlier contents of the same slots."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    contents = [os.urandom(BLOCK) for _ in range(4)]
    store.write(range(4), 1, contents)
    older = os.pread(store._descriptor, 4 * BLOCK, 0)
    tags = store.write(range(4), 5, contents)
    sealed = [Sealed(slot, 5 + slot, tag) for slot, tag in enumerate(tags)]
    assert store.read(sealed) == contents
    tamper(store._descriptor, older)
    for found in (store.read(sealed), store.read(sealed, can_wait=False)):
        assert found is not None
        for number, block in enumerate(found):
            assert isinstance(block, IntegrityError) if number in damaged else block == contents[number]
    # A counter or a slot of another block.
    sound = next(block for block in sealed if block.slot not in damaged) if len(damaged) < 4 else sealed[0]
    for wrong in (sound._replace(counter=1), sound._replace(tag=bytes(16)), sound._replace(slot=2, counter=5)):
        (result,) = store.read([wrong]) or [None]
        assert isinstance(result, IntegrityError)


def test_failing_reads_and_writes_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * BLOCK))
    unreadable = OverlayStore(os.open(tmp_path / "file", os.O_WRONLY), BLOCK)
    sealed = sealed_blocks(unreadable, [bytes(BLOCK)])
    (found,) = unreadable.read(sealed) or [None]
    assert isinstance(found, ImageReadError) and "overlay store" in str(found)
    assert unreadable.read(sealed, can_wait=False) is None
    unwritable = OverlayStore(os.open(tmp_path / "file", os.O_RDONLY), BLOCK)
    with pytest.raises(OSError, match="Bad file descriptor"):
        unwritable.write([0], 1, [bytes(BLOCK)])


def test_disk_space_is_given_back(tmp_path: Path) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), 4096)
    contents = [os.urandom(4096) for _ in range(256)]
    sealed = sealed_blocks(store, contents)
    os.fsync(store._descriptor)
    before = os.fstat(store._descriptor).st_blocks
    store.give_back(224, [range(64, 192)])
    assert os.fstat(store._descriptor).st_blocks <= before - (128 + 32) * 8
    assert store.read(sealed[:64] + sealed[192:224]) == contents[:64] + contents[192:224]


def test_slots_are_taken_once() -> None:
    chance, slots, taken = random.Random(3), Slots(), set[int]()
    for _ in range(3000):
        if chance.random() < 0.5:
            count, end = chance.randrange(1, 40), chance.choice([None, slots.size // 2])
            if slots.size - slots.used < count:
                slots.grow(chance.randrange(count))
            free = set(range(slots.size if end is None else end)) - taken
            got = slots.take(count, end)
            assert len(got) == min(count, len(free)) and got == sorted(free)[: len(got)]
            taken.update(got)
        else:
            gone = chance.sample(sorted(taken), min(len(taken), chance.randrange(60)))
            taken.difference_update(gone)
            slots.free(gone, len(taken))
        if chance.random() < 0.1:
            slots.shrink()
            assert slots.size == max(taken, default=-1) + 1
        assert slots.used == len(taken)
        assert {slot for run in slots.free_runs() for slot in run} == set(range(slots.size)) - taken
    assert list(runs_of([1, 2, 3, 7, 8, 10])) == [range(1, 4), range(7, 9), range(10, 11)]
    assert list(runs_of([1, 2, 3], 2)) == [range(1, 3), range(3, 4)] and list(runs_of([])) == []

"""The overlay's store: by itself, under the overlay, and under a volume, with everything going wrong.

MYSTFUSE_STORE_SEEDS=500 pytest tests/overlay/test_overlay_store.py    # so many seeds of random commits, not a few
"""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from mystfuse.errors import ImageReadError, IntegrityError, MystfuseError, StorageTimeout
from mystfuse.ext2 import name_index
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.overlay import spill
from mystfuse.overlay.overlay import MAX_SNAPSHOTS, Overlay
from mystfuse.overlay.slots import Slots, runs_of
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.overlay.space import OverlayBusy, OverlayFull, Space
from mystfuse.overlay.store import OverlayStore, Sealed, open_store_file
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, merged

BLOCK = 1024
ROOT = Caller(0, 0)
FILE = stat.S_IFREG | 0o644
SEEDS = int(os.environ.get("MYSTFUSE_STORE_SEEDS", "4"))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes to the store as soon as it is written: memory is always short."""
    monkeypatch.setattr(Space, "_is_short", lambda self: True)


def sealed_blocks(store: OverlayStore, contents: Sequence[bytes], first_slot: int = 0) -> list[Sealed]:
    tags = store.write(range(first_slot, first_slot + len(contents)), 1 + first_slot, contents)
    return [Sealed(first_slot + index, 1 + first_slot + index, tag) for index, tag in enumerate(tags)]


# The file


def test_the_file_has_no_name_and_is_nobody_elses(tmp_path: Path) -> None:
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
    # The same plaintext again is other bytes.
    assert len({on_disk[start : start + size] for start in range(0, len(on_disk), size)}) == len(contents)
    sealed_again = sealed_blocks(store, [contents[0]] * 2, len(contents))
    first, second = (os.pread(store._descriptor, size, block.slot * size) for block in sealed_again)
    assert first != second


def flip(descriptor: int, older: bytes) -> None:
    byte = os.pread(descriptor, 1, BLOCK + 17)
    os.pwrite(descriptor, bytes([byte[0] ^ 4]), BLOCK + 17)


def swap(descriptor: int, older: bytes) -> None:
    first, second = os.pread(descriptor, BLOCK, 0), os.pread(descriptor, BLOCK, BLOCK)
    os.pwrite(descriptor, second + first, 0)


def replay(descriptor: int, older: bytes) -> None:
    os.pwrite(descriptor, older, 0)


def truncate(descriptor: int, older: bytes) -> None:
    os.truncate(descriptor, BLOCK + 100)


def zero(descriptor: int, older: bytes) -> None:
    os.pwrite(descriptor, bytes(BLOCK), BLOCK)


@pytest.mark.parametrize(
    ("tamper", "damaged"),
    [(flip, {1}), (swap, {0, 1}), (replay, {0, 1, 2, 3}), (truncate, {1, 2, 3}), (zero, {1})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_was_done_to_the_file_is_noticed(
    tamper: Callable[[int, bytes], None], damaged: set[int], tmp_path: Path
) -> None:
    """``replay`` puts back what was in the same slots before."""
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
    # A counter or a place that is not the block's.
    sound = next(block for block in sealed if block.slot not in damaged) if len(damaged) < 4 else sealed[0]
    for wrong in (sound._replace(counter=1), sound._replace(tag=bytes(16)), sound._replace(slot=2, counter=5)):
        (result,) = store.read([wrong]) or [None]
        assert isinstance(result, IntegrityError)


def test_a_file_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
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
            slots.free(iter(gone), len(taken)) if chance.random() < 0.5 else slots.free(gone)
        if chance.random() < 0.1:
            slots.shrink()
            assert slots.size == max(taken, default=-1) + 1
        assert slots.used == len(taken)
        assert {slot for run in slots.free_runs() for slot in run} == set(range(slots.size)) - taken
    assert list(runs_of([1, 2, 3, 7, 8, 10])) == [range(1, 4), range(7, 9), range(10, 11)]
    assert list(runs_of([1, 2, 3], 2)) == [range(1, 3), range(3, 4)] and list(runs_of([])) == []


# Under the overlay


async def commit(target: Overlay | Snapshot, changed: dict[int, bytes], freed: set[int], use_reserve: bool) -> None:
    while True:
        try:
            target.commit(changed, freed, use_reserve)
        except OverlayBusy as busy:
            await target.make_room(busy)
        else:
            return


async def contents_of(view: Overlay | Snapshot, numbers: range) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for number in numbers:
        block = view.get(number)
        if isinstance(block, int):
            fetched = (await view.recall([block]))[block]
            assert isinstance(fetched, bytes)
            found[number] = fetched
        elif block is not None:
            found[number] = block
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("spills", [True, False])
async def test_random_commits_with_snapshots_are_as_in_dictionaries(
    spills: bool, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it spills, far more than memory has room for; the thread that writes is slow at times, or fails. No nonce
    twice."""
    chance = random.Random(seed)
    size = chance.choice([1024, 4096])
    limit, most = 256 << 10 if spills else 64 << 20, 700 if size == 1024 else 400
    store = OverlayStore(open_store_file(str(tmp_path)), size)
    overlay, present = Overlay(size, limit, store if spills else None), dict[int, bytes]()
    snapshots: list[tuple[Snapshot, dict[int, bytes]]] = []
    write, slow = store.write, random.Random(seed)
    counters = set[int]()

    def write_somehow(slots: Sequence[int], first_counter: int, blocks: Sequence[bytes]) -> list[bytes]:
        used = set(range(first_counter, first_counter + len(blocks)))
        assert counters.isdisjoint(used)
        counters.update(used)
        time.sleep(slow.choice([0, 0, 0, 0.003]))
        if slow.random() < 0.05:
            raise OSError(errno.ENOSPC, "no space, says the test")
        return write(slots, first_counter, blocks)

    monkeypatch.setattr(store, "write", write_somehow)
    monkeypatch.setattr(spill, "_RETRY", 0.0)
    refused = 0
    for step in range(1200):
        action = chance.random()
        if action < 0.03 and len(snapshots) < MAX_SNAPSHOTS:
            snapshots.append((overlay.snapshot(), dict(present)))
        elif action < 0.08 and snapshots:
            snapshot, _ = snapshots.pop(chance.randrange(len(snapshots)))
            snapshot.close()
        else:
            target, expected = (overlay, present) if not snapshots or action < 0.9 else chance.choice(snapshots)
            start = chance.randrange(most)
            changed = {start + number: chance.randbytes(size) for number in range(chance.randrange(9))}
            freed = {chance.randrange(most) for _ in range(chance.randrange(5))} - set(changed)
            try:
                await commit(target, changed, freed, use_reserve=len(freed) > 2)
            except OverlayFull:
                refused += 1
            else:
                expected.update(changed)
                for number in freed:
                    expected.pop(number, None)
        assert overlay.used <= limit
        if step % 100 == 0:
            for view, expected in [(overlay, present), *snapshots]:
                assert await contents_of(view, range(most + 10)) == expected
    if spills:
        assert overlay.store_used > limit and refused < 600
    else:
        assert overlay.store_used == 0 and refused == 0
    for view, expected in [(overlay, present), *snapshots]:
        assert await contents_of(view, range(most + 10)) == expected
    for snapshot, _ in snapshots:
        snapshot.close()
    await commit(overlay, {}, set(present), True)
    await trio.sleep(0.1)
    assert overlay.used == 0 and overlay.blocks == 0 and overlay.store_used == 0
    # All of it is as good as new.
    await commit(overlay, {5: b"x" * size}, set(), False)
    assert await contents_of(overlay, range(9)) == {5: b"x" * size}


async def fill_overlay(overlay: Overlay, count: int) -> dict[int, bytes]:
    contents = {number: random.Random(number).randbytes(BLOCK) for number in range(count)}
    for number, content in contents.items():
        await commit(overlay, {number: content}, set(), False)
    return contents


async def test_a_block_that_is_changed_on_its_way_is_the_changed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """Overwritten, freed, or freed and written again while the thread holds its old bytes."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 1 << 20, store)
    may_go_on = threading.Event()
    write = store.write

    def write_later(*args: Any) -> list[bytes]:
        may_go_on.wait(10)
        return write(*args)

    monkeypatch.setattr(store, "write", write_later)
    overlay.commit(dict.fromkeys(range(4), b"a" * BLOCK), [], False)
    overlay.commit({0: b"b" * BLOCK}, [1, 2], False)
    overlay.commit({2: b"c" * BLOCK}, [], False)
    may_go_on.set()
    with trio.fail_after(10):
        while overlay.store_used < 3 * BLOCK:
            await trio.sleep(0.001)
    assert await contents_of(overlay, range(5)) == {0: b"b" * BLOCK, 2: b"c" * BLOCK, 3: b"a" * BLOCK}


async def test_a_ticket_of_what_is_gone_gives_nothing_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eager: None
) -> None:
    """The slot is another block's by the time that it is read."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 1 << 20, store)
    overlay.commit({0: b"a" * BLOCK}, [], False)
    with trio.fail_after(10):
        while not isinstance(overlay.get(0), int):
            await trio.sleep(0.001)
    ticket = overlay.get(0)
    assert isinstance(ticket, int)
    read, started, may_go_on = store.read, threading.Event(), threading.Event()

    def read_later(wanted: Sequence[Sealed], can_wait: bool = True) -> list[bytes | MystfuseError] | None:
        if not can_wait:
            return None
        started.set()
        may_go_on.wait(10)
        return read(wanted)

    found: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", read_later)

        async def recall() -> None:
            found.append(await overlay.recall([ticket]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await trio.to_thread.run_sync(started.wait)
            overlay.commit({}, [0], False)
            overlay.commit({7: b"b" * BLOCK}, [], False)
            while not isinstance(overlay.get(7), int):
                await trio.sleep(0.001)
            may_go_on.set()
    assert found == [{}] and not caplog.records
    assert await overlay.recall([ticket]) == {}
    assert await contents_of(overlay, range(9)) == {7: b"b" * BLOCK}


async def test_a_damaged_store_is_an_error_told_once_and_costs_no_other_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 256 * BLOCK, store)
    contents = await fill_overlay(overlay, 300)
    stored = [number for number in contents if isinstance(overlay.get(number), int)]
    tickets = {number: ticket for number in stored if isinstance(ticket := overlay.get(number), int)}
    slot = ~overlay._slots[stored[3]]
    os.pwrite(store._descriptor, b"evil", slot * BLOCK)
    found = await overlay.recall(tickets.values())
    for number, ticket in tickets.items():
        if number == stored[3]:
            assert isinstance(found[ticket], IntegrityError)
        else:
            assert found[ticket] == contents[number]
    assert [record.message for record in caplog.records] == [
        f"overlay store: block {slot} is not what was written there"
    ]


async def test_a_full_disk_is_no_space_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    monkeypatch.setattr(spill, "_RETRY", 0.05)
    write, disk = store.write, 200

    def write_if_it_fits(slots: Sequence[int], first_counter: int, blocks: Sequence[bytes]) -> list[bytes]:
        if max(slots) >= disk:
            raise OSError(errno.EDQUOT, "quota, says the test")
        return write(slots, first_counter, blocks)

    monkeypatch.setattr(store, "write", write_if_it_fits)
    monkeypatch.setattr(store, "free_blocks", lambda: 1 << 20)
    overlay = Overlay(BLOCK, 256 * BLOCK, store)
    contents: dict[int, bytes] = {}
    with pytest.raises(OverlayFull) as caught:
        for number in range(10_000):
            content = random.Random(number).randbytes(BLOCK)
            await commit(overlay, {number: content}, set(), False)
            contents[number] = content
    assert caught.value.errno == errno.ENOSPC and overlay.room <= 256
    assert 300 < len(contents) < 450 and await contents_of(overlay, range(500)) == contents
    # What is in the store can be replaced, and what is freed makes room.
    for number in range(100):
        contents[number] = os.urandom(BLOCK)
        await commit(overlay, {number: contents[number]}, set(), False)
    for number in range(50, 100):
        await commit(overlay, {}, {number}, True)
        del contents[number]
    for number in range(1000, 1040):
        contents[number] = os.urandom(BLOCK)
        await commit(overlay, {number: contents[number]}, set(), False)
    assert await contents_of(overlay, range(1100)) == contents
    # The disk has room again, without anybody here having freed anything.
    disk = 1 << 20
    await trio.sleep(0.1)
    for number in range(2000, 2100):
        contents[number] = os.urandom(BLOCK)
        await commit(overlay, {number: contents[number]}, set(), False)
    assert await contents_of(overlay, range(2200)) == contents


async def test_a_disk_that_fails_or_hangs_is_an_error_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    monkeypatch.setattr(spill, "_RETRY", 0.02)
    overlay = Overlay(BLOCK, 256 * BLOCK, store, 0.2)
    contents = await fill_overlay(overlay, 300)
    may_go_on = threading.Event()

    def fail(*args: Any) -> list[bytes]:
        raise OSError(errno.EIO, "broken, says the test")

    def hang(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("can_wait") is False:
            return None
        may_go_on.wait(20)
        raise OSError(errno.EIO, "too late")

    for what, expected in ((fail, ImageReadError), (hang, StorageTimeout)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "write", what)
            with pytest.raises(expected), trio.fail_after(10):
                for number in range(1000, 1300):
                    content = os.urandom(BLOCK)
                    await commit(overlay, {number: content}, set(), False)
                    contents[number] = content
            await trio.sleep(0.05)
            if what is hang:
                # Others need not wait all over again.
                with pytest.raises(StorageTimeout), trio.fail_after(0.1):
                    await commit(overlay, {5000: bytes(BLOCK), 5001: bytes(BLOCK)}, set(), False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", hang)
        stored = next(number for number in contents if isinstance(overlay.get(number), int))
        with pytest.raises(StorageTimeout), trio.fail_after(5):
            await contents_of(overlay, range(stored, stored + 1))
    may_go_on.set()
    await trio.sleep(0.1)
    assert await contents_of(overlay, range(1300)) == contents
    for number in range(3000, 3100):
        contents[number] = os.urandom(BLOCK)
        await commit(overlay, {number: contents[number]}, set(), False)
    assert await contents_of(overlay, range(3200)) == contents


async def test_tables_that_grew_in_part_for_want_of_memory_do_no_harm(tmp_path: Path, eager: None) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 1 << 20, store)
    assert overlay._spill is not None
    overlay._spill._counters.frombytes(bytes(8 * 20))
    overlay._spill._tags += bytes(16 * 7)
    contents = {number: os.urandom(BLOCK) for number in range(50)}
    for number, content in contents.items():
        await commit(overlay, {number: content}, set(), False)
    with trio.fail_after(10):
        while overlay.store_used < 50 * BLOCK:
            await trio.sleep(0.001)
    assert await contents_of(overlay, range(60)) == contents


async def test_blocks_that_change_while_a_batch_fails_are_written_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """Found once: they stayed in memory for good, until it was full of them."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    monkeypatch.setattr(spill, "_RETRY", 0.01)
    overlay = Overlay(BLOCK, 1 << 20, store)
    may_go_on = threading.Event()

    def fail(*args: Any) -> list[bytes]:
        may_go_on.wait(10)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", fail)
        overlay.commit(dict.fromkeys(range(8), b"a" * BLOCK), [], False)
        overlay.commit(dict.fromkeys(range(4), b"b" * BLOCK), [7], False)
        may_go_on.set()
        await trio.sleep(0.05)
    with trio.fail_after(10):
        while overlay.store_used < 8 * BLOCK:
            overlay.commit({9: b"c" * BLOCK}, [], False)
            await trio.sleep(0.001)
    expected = {number: (b"b" if number < 4 else b"a") * BLOCK for number in range(7)}
    assert await contents_of(overlay, range(10)) == expected | {9: b"c" * BLOCK}


@pytest.mark.parametrize("how", ["refused", "never begins"])
async def test_without_a_thread_nothing_is_half_done(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found once: the error came out in the middle of a commit, and nothing was written to the store ever after."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    monkeypatch.setattr(spill, "_RETRY", 0.01)
    monkeypatch.setattr(spill, "_LOOSE", BLOCK)
    overlay = Overlay(BLOCK, 256 * BLOCK, store, 0.1)
    contents = await fill_overlay(overlay, 400)

    def start_no_thread(work: Callable[[], object], arguments: object) -> int:
        if how == "refused":
            raise RuntimeError("can't start new thread")
        return 0

    refused = 0
    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", start_no_thread)
        for number in range(400, 600):
            changed = {number: random.Random(number).randbytes(BLOCK)}
            try:
                await commit(overlay, changed, {number - 400}, False)
            except (ImageReadError, StorageTimeout, OverlayFull):
                refused += 1
                if refused > 20:
                    break
            else:
                contents.update(changed)
                del contents[number - 400]
    assert refused
    with trio.fail_after(10):
        for number in range(1000, 1200):
            contents[number] = random.Random(number).randbytes(BLOCK)
            while True:
                try:
                    await commit(overlay, {number: contents[number]}, set(), False)
                except (ImageReadError, StorageTimeout):
                    await trio.sleep(0.01)
                else:
                    break
    assert await contents_of(overlay, range(1300)) == contents
    assert "Traceback" not in caplog.text and "internal error" not in caplog.text


# Under a volume


def make_image(directory: Path, size: str, *options: str) -> bytes:
    path = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", *options, path, size)
    return path.read_bytes()


async def open_volume(image: bytes, limit: int, directory: Path, io_timeout: float = 30.0) -> Volume:
    return await Volume.open(
        MemoryDevice(image), limit, store_file=open_store_file(str(directory)), io_timeout=io_timeout
    )


@pytest.mark.parametrize("block_size", ["1024", "4096"])
async def test_metadata_and_data_that_are_always_on_disk_are_what_was_written(
    block_size: str, tmp_path: Path, eager: None
) -> None:
    """Readers, writers and removers at the same time, with everything evicted as soon as it is written."""
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "32M", "-b", block_size), 1 << 20, directory)
    before = await volume.statistics()
    contents: dict[bytes, bytearray] = {}

    async def work(number: int) -> None:
        chance = random.Random(number)
        mine: dict[bytes, tuple[int, bytearray]] = {}
        for step in range(60):
            action = chance.random()
            if action < 0.35 or not mine:
                name = b"%d-%d-" % (number, step) + b"n" * chance.randrange(200)
                inode = await volume.create(EXT2_ROOT_INO, name, FILE, ROOT)
                mine[name] = inode.ino, bytearray()
                contents[name] = mine[name][1]
            name, (ino, content) = chance.choice(list(mine.items()))
            if action < 0.6:
                offset, data = chance.randrange(100_000), chance.randbytes(chance.randrange(1, 30_000))
                assert await volume.write(ino, offset, data, ROOT) == len(data)
                content.extend(bytes(max(offset + len(data) - len(content), 0)))
                content[offset : offset + len(data)] = data
            elif action < 0.7:
                await volume.remove(EXT2_ROOT_INO, name, False)
                await volume.release(ino)
                del mine[name], contents[name]
            else:
                offset, length = chance.randrange(100_000), chance.randrange(60_000)
                assert bytes(await volume.read(ino, offset, length)) == content[offset : offset + length]

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(work, number)
    assert volume.overlay is not None and volume.overlay.store_used > 0
    image = await merged(volume)
    assert_clean(image, tmp_path / "merged")
    again = await Volume.open(MemoryDevice(image), 1 << 20)
    for name, content in contents.items():
        for view in (volume, again):
            inode = await view.lookup(EXT2_ROOT_INO, name)
            assert inode is not None and bytes(await view.read(inode.ino, 0, 1 << 20)) == content
    for name in contents:
        removed = await volume.remove(EXT2_ROOT_INO, name, False)
        await volume.release(removed.ino)
    after = await volume.statistics()
    # The directory keeps the blocks it has grown by.
    assert after.free_inodes == before.free_inodes and before.free_blocks - after.free_blocks < 40


async def test_a_write_that_must_be_whole_writes_nothing_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    volume = await open_volume(make_image(tmp_path, "4M", "-b", "1024"), 2 << 20, tmp_path / "store")
    file = (await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)).ino
    filler = (await volume.create(EXT2_ROOT_INO, b"filler", FILE, ROOT)).ino
    room = (await volume.statistics()).free_blocks - 24
    for start in range(0, room, 64):
        length = min(64, room - start) << 10
        assert await volume.write(filler, start << 10, bytes([1]) * length, ROOT) == length
    with pytest.raises(OSError, match=r"full|no block|room") as caught:
        await volume.write(file, 8192, b"x" * 65536, ROOT, whole=True)
    assert caught.value.errno == errno.ENOSPC
    assert (await volume.inode(file)).size == 0
    assert 0 < await volume.write(file, 8192, b"x" * 65536, ROOT) < 65536


async def test_the_merged_image_is_of_its_moment_wherever_its_blocks_are(tmp_path: Path, eager: None) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "16M", "-b", "1024"), 1 << 20, directory)
    inode = await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)
    content = os.urandom(2 << 20)
    assert await volume.write(inode.ino, 0, content, ROOT) == len(content)
    gone = await volume.create(EXT2_ROOT_INO, b"gone", FILE, ROOT)
    await volume.write(gone.ino, 0, bytes(100_000), ROOT)
    await volume.remove(EXT2_ROOT_INO, b"gone", False)
    snapshot = await volume.open_image()
    assert await volume.write(inode.ino, 0, os.urandom(1 << 20), ROOT) == 1 << 20
    image = await snapshot.read(0, snapshot.size)
    snapshot.close()
    assert_clean(image, tmp_path / "merged")
    old = await Volume.open(MemoryDevice(image))
    assert bytes(await old.read(inode.ino, 0, 4 << 20)) == content


async def test_damage_is_met_where_it_is_and_nowhere_else(tmp_path: Path, eager: None) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "16M", "-b", "1024"), 1 << 20, directory)
    files = {}
    for number in range(20):
        inode = await volume.create(EXT2_ROOT_INO, b"f%d" % number, FILE, ROOT)
        files[inode.ino] = os.urandom(20_000)
        await volume.write(inode.ino, 0, files[inode.ino], ROOT)
    overlay = volume.overlay
    assert overlay is not None and overlay._spill is not None
    with trio.fail_after(10):
        while overlay._arenas.used:
            await trio.sleep(0.001)
    descriptor = overlay._spill._store._descriptor
    rotten = set(random.Random(1).sample(range(os.fstat(descriptor).st_size // 1024), 30))
    for slot in rotten:
        os.pwrite(descriptor, os.urandom(8), slot * 1024 + 99)
    failed = read = 0
    for ino, content in files.items():
        for offset in range(0, 20_000, 1000):
            try:
                assert bytes(await volume.read(ino, offset, 1000)) == content[offset : offset + 1000]
                read += 1
            except IntegrityError:
                failed += 1
    assert failed and read


async def test_a_name_that_comes_and_goes_is_found_to_be_gone_however_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """Found once: each block that it had been in was a miss of its own, and so many misses were taken for a loop."""
    monkeypatch.setattr(name_index, "_RECENT", 1)
    volume = await open_volume(make_image(tmp_path, "16M"), 1 << 20, tmp_path)
    directory = (await volume.create(EXT2_ROOT_INO, b"d", stat.S_IFDIR | 0o755, ROOT)).ino
    lock = b"lock" * 55
    for number in range(200):
        await volume.create(directory, lock, FILE, ROOT)
        await volume.remove(directory, lock, False)
        for part in range(4):
            await volume.create(directory, b"%0240d-%d" % (number, part), FILE, ROOT)
        await trio.sleep(0)
    candidates = list(volume._filesystem.name_indexes._indexes[directory].candidates(lock))
    assert len(candidates) > 50
    assert await volume.lookup(directory, lock) is None

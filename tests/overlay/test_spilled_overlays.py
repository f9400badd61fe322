"""Overlays whose blocks are on disk: a read gives the written bytes or an error, in every failure."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from mystfuse.errors import ImageReadError, IntegrityError, MystfuseError, StorageTimeout
from mystfuse.overlay import spill
from mystfuse.overlay.encrypted_store import OverlayStore, Sealed, open_store_file
from mystfuse.overlay.overlay import MAX_SNAPSHOTS, Overlay
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.overlay.space import OverlayBusy, OverlayFull
from tests.support.overlay_stores import BLOCK

pytestmark = pytest.mark.logs(r"^mystfuse\.overlay")

SEEDS = int(os.environ.get("MYSTFUSE_STORE_SEEDS", "4"))


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
    """An overlay that spills holds far more than memory; the thread that writes is slow at times, or fails. No nonce
    repeats."""
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
    # Afterwards the store is as good as new.
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


async def test_a_version_of_a_freed_block_gives_nothing_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eager: None
) -> None:
    """Another block has the slot by the time of the read."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 1 << 20, store)
    overlay.commit({0: b"a" * BLOCK}, [], False)
    with trio.fail_after(10):
        while not isinstance(overlay.get(0), int):
            await trio.sleep(0.001)
    version = overlay.get(0)
    assert isinstance(version, int)
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
            found.append(await overlay.recall([version]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await trio.to_thread.run_sync(started.wait)
            overlay.commit({}, [0], False)
            overlay.commit({7: b"b" * BLOCK}, [], False)
            while not isinstance(overlay.get(7), int):
                await trio.sleep(0.001)
            may_go_on.set()
    assert found == [{}] and not caplog.records
    assert await overlay.recall([version]) == {}
    assert await contents_of(overlay, range(9)) == {7: b"b" * BLOCK}


async def test_a_damaged_store_is_an_error_reported_once_and_costs_no_other_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 256 * BLOCK, store)
    contents = await fill_overlay(overlay, 300)
    stored = [number for number in contents if isinstance(overlay.get(number), int)]
    versions = {number: version for number in stored if isinstance(version := overlay.get(number), int)}
    slot = ~overlay._slots[stored[3]]
    os.pwrite(store._descriptor, b"evil", slot * BLOCK)
    found = await overlay.recall(versions.values())
    for number, version in versions.items():
        if number == stored[3]:
            assert isinstance(found[version], IntegrityError)
        else:
            assert found[version] == contents[number]
    assert [record.message for record in caplog.records] == [f"overlay store: block {slot} is corrupted"]


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
    # Blocks in the store can be replaced, and freed blocks make room.
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
    # The disk has room again, although nothing here was freed.
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
                # Later writers need not wait again.
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


async def test_blocks_that_change_while_a_write_fails_are_written_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """A regression: they stayed in memory for good, until it was full of them."""
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


async def test_a_thread_that_began_as_memory_ran_out_is_the_only_one_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """Found once: a second one wrote other blocks to the same places, and the first ones were lost."""
    store = OverlayStore(open_store_file(str(tmp_path)), BLOCK)
    overlay = Overlay(BLOCK, 1 << 20, store)
    clock = trio.current_time

    def fail_once() -> float:
        monkeypatch.setattr(trio, "current_time", clock)
        raise MemoryError

    monkeypatch.setattr(trio, "current_time", fail_once)
    contents = {number: os.urandom(BLOCK) for number in range(16)}
    for number, content in contents.items():
        overlay.commit({number: content}, [], False)
    with trio.fail_after(10):
        while overlay.store_used < 16 * BLOCK:
            await trio.sleep(0.001)
    assert await contents_of(overlay, range(20)) == contents


@pytest.mark.parametrize("how", ["refused", "never begins"])
async def test_without_a_thread_nothing_is_half_done(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A regression: the error came out in the middle of a commit, and the store was never written to again."""
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

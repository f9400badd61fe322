"""The overlay by itself: reads find what was written, the limit holds, snapshots keep their contents."""

from __future__ import annotations

import errno
import gc
import random
from pathlib import Path

import pytest

from mystfuse.overlay.arena import ARENA_SIZE, Arenas
from mystfuse.overlay.overlay import MAX_SNAPSHOTS, Overlay
from mystfuse.system.memory import available_memory

BLOCK = 1024


def block(seed: int, size: int = BLOCK) -> bytes:
    return random.Random(seed).randbytes(size)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("size", [1024, 4096, 65536])
def test_slots_hold_what_was_stored_until_they_are_freed(size: int) -> None:
    arenas, expected = Arenas(size), {}
    chance = random.Random(size)
    for step in range(3 * ARENA_SIZE // size):
        if expected and chance.random() < 0.3:
            slot = chance.choice(list(expected)) if step % 50 == 0 else next(iter(expected))
            del expected[slot]
            arenas.free([slot])
        else:
            content = step.to_bytes(8, "little") * (size // 8)
            (slot,) = arenas.take(1)
            arenas.fill(slot, content)
            assert slot not in expected
            expected[slot] = content
        assert arenas.used == len(expected)
    assert all(arenas.load(slot) == content for slot, content in expected.items())
    arenas.free(list(expected))
    assert arenas.used == 0


@pytest.mark.parametrize("size", [1024, 4096])
def test_freed_memory_goes_back_to_the_system(size: int) -> None:
    arenas = Arenas(size)
    before = resident_bytes()
    slots = arenas.take((256 << 20) // size)
    for slot in slots:
        arenas.fill(slot, b"x" * size)
    assert resident_bytes() - before > 250 << 20
    # Every eighth block of the second half stays: the system gets back only whole pages without a block.
    kept = set(slots[len(slots) // 2 :: 64])
    arenas.free([slot for slot in slots if slot not in kept])
    del slots
    gc.collect()
    assert resident_bytes() - before < 24 << 20
    assert all(arenas.load(slot) == b"x" * size for slot in kept)


def test_overwriting_takes_up_no_more_and_dropping_gives_back() -> None:
    overlay = Overlay(BLOCK, 1 << 20)
    overlay.commit({5: block(1), 6: block(2)}, [], False)
    used = overlay.used
    assert used > 2 * BLOCK and overlay.holds(5) and not overlay.holds(7)
    overlay.commit({5: block(3)}, [], False)
    assert overlay.used == used and overlay.get(5) == block(3) and overlay.get(6) == block(2)
    overlay.commit({}, [5, 6, 7], False)
    assert overlay.used == 0 and overlay.get(5) is None and 6 not in overlay


def test_a_commit_over_the_limit_changes_nothing_and_the_reserve_is_for_giving_back() -> None:
    overlay = Overlay(BLOCK, 200 * BLOCK)
    room = overlay.room
    overlay.commit({number: block(number) for number in range(room)}, [], False)
    assert overlay.room == 0
    with pytest.raises(OSError, match="overlay is full") as caught:
        overlay.commit({0: block(1000), room: block(room), room + 1: block(0)}, [1], False)
    assert caught.value.errno == errno.ENOSPC
    assert overlay.get(0) == block(0) and overlay.get(1) == block(1) and overlay.get(room) is None
    overlay.commit({0: block(1000)}, [], False)
    overlay.commit({room: block(room)}, [1], True)
    assert overlay.get(room) == block(room)
    with pytest.raises(OSError, match="overlay is full"):
        overlay.commit({number: block(0) for number in range(1000, 1200)}, [], True)
    assert overlay.used <= overlay.limit


def test_there_is_a_bound_on_snapshots() -> None:
    overlay = Overlay(BLOCK, 1 << 20)
    snapshots = [overlay.snapshot() for _ in range(MAX_SNAPSHOTS)]
    with pytest.raises(OSError, match="snapshots") as caught:
        overlay.snapshot()
    assert caught.value.errno == errno.EBUSY
    snapshots.pop().close()
    overlay.snapshot()


def test_what_a_snapshot_keeps_counts_against_the_limit() -> None:
    overlay = Overlay(BLOCK, 100 * BLOCK)
    numbers = range(overlay.room)
    overlay.commit({number: block(number) for number in numbers}, [], False)
    snapshot = overlay.snapshot()
    with pytest.raises(OSError, match="overlay is full"):
        overlay.commit({0: block(99)}, [], False)
    assert snapshot.get(0) == overlay.get(0) == block(0)
    snapshot.close()
    overlay.commit({0: block(99)}, [], False)
    assert overlay.get(0) == block(99)


def test_available_memory_is_what_the_smallest_control_group_leaves(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    (groups / "a/b").mkdir(parents=True)
    assert available_memory(proc, groups) == 8000 * 1024
    (groups / "a/b/memory.max").write_text("max\n")
    (groups / "a/b/memory.current").write_text("1000\n")
    assert available_memory(proc, groups) == 8000 * 1024
    (groups / "a/memory.max").write_text("5000\n")
    (groups / "a/memory.current").write_text("2000\n")
    assert available_memory(proc, groups) == 3000
    (groups / "a/memory.current").write_text("6000\n")
    assert available_memory(proc, groups) == 0
    (proc / "self/cgroup").write_text("5:cpu:/x\n4:memory,hugetlb:/old\n")
    (groups / "memory/old").mkdir(parents=True)
    (groups / "memory/old/memory.limit_in_bytes").write_text("700\n")
    (groups / "memory/old/memory.usage_in_bytes").write_text("100\n")
    assert available_memory(proc, groups) == 600

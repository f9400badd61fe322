"""Runs: of bits in bitmaps, of new blocks in a transaction, of slots in the overlay. A run gives the same result as its
parts one by one."""

from __future__ import annotations

import errno
import mmap
import random

import pytest

from mystfuse.ext2.allocation import runs_of
from mystfuse.ext2.bitmap import Bitmap
from mystfuse.ext2.blocks import Transaction
from mystfuse.overlay import arena
from mystfuse.overlay.arena import ARENA_SIZE, Arenas
from mystfuse.overlay.overlay import Overlay

BLOCK = 1024


def transaction(written: Overlay, budget: int = 100) -> Transaction:
    return Transaction(BLOCK, {7: b"i" * BLOCK}.get, written, lambda: budget)


def test_bitmaps_are_what_single_bits_are() -> None:
    chance = random.Random(3)
    for _ in range(3000):
        length = chance.choice([8, 300, 1024])
        block = b"".join(chance.choice([b"\0", b"\xff", b"\xff" * 200, chance.randbytes(1)]) for _ in range(length))[
            :length
        ]
        size = chance.randrange(1, 8 * length + 1)
        bits = [block[bit // 8] >> bit % 8 & 1 for bit in range(8 * length)]
        packed = bytearray(block)
        bitmap = Bitmap(packed, size)
        start, longest = chance.randrange(8 * length + 3), chance.randrange(1, 80)
        first = next((bit for bit in range(start, size) if not bits[bit]), None)
        if first is None:
            assert bitmap.find_free_run(start, longest) == (0, 0)
        else:
            end = next((bit for bit in range(first, size) if bits[bit]), size)
            assert bitmap.find_free_run(start, longest) == (first, min(end - first, longest))
        first = chance.randrange(8 * length)
        count = chance.randrange(min(70, 8 * length - first) + 1)
        assert bitmap.are_set(first, count) == all(bits[first : first + count])
        if chance.random() < 0.5:
            bitmap.set(first, count)
            bits[first : first + count] = [1] * count
        else:
            runs = [(first, count), (chance.randrange(8 * length), 1)]
            cleared = [bit for start, count in runs for bit in range(start, start + count)]
            possible = len(set(cleared)) == len(cleared) and all(bits[bit] for bit in cleared)
            assert bitmap.clear(runs) == possible
            for bit in cleared if possible else []:
                bits[bit] = 0
        assert packed == bytes(
            sum(bit << index for index, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8)
        )


def test_runs_of_numbers() -> None:
    assert runs_of([]) == []
    assert runs_of([5]) == [(5, 1)]
    assert runs_of([5, 6, 7]) == [(5, 3)]
    assert runs_of([5, 6, 8, 3, 4, 4]) == [(5, 2), (8, 1), (3, 2), (4, 1)]


@pytest.mark.parametrize("size", [1024, 4096, 65536])
@pytest.mark.parametrize("can_populate", [True, False])
def test_runs_fill_what_room_there_is(size: int, can_populate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_populate:
        monkeypatch.setattr(arena, "_MADV_POPULATE_WRITE", 999)
    arenas, expected = Arenas(size), dict[int, bytes]()
    chance = random.Random(size)
    for step in range(200):
        if expected and step % 3 == 2:
            gone = chance.sample(list(expected), len(expected) // 2)
            arenas.free(gone)
            for slot in gone:
                del expected[slot]
        elif step % 3:
            (slot,) = arenas.take(1)
            arenas.fill(slot, content := chance.randbytes(size))
            assert slot not in expected
            expected[slot] = content
        else:
            blocks = [chance.randbytes(8) * (size // 8) for _ in range(chance.randrange(1, ARENA_SIZE // size * 2))]
            slots = arenas.take(len(blocks))
            arenas.fill_run(slots, memoryview(b"".join(blocks)))
            assert len(slots) == len(set(slots)) == len(blocks) and expected.keys().isdisjoint(slots)
            expected.update(zip(slots, blocks, strict=True))
        assert arenas.used == len(expected)
    assert all(arenas.load(slot) == content for slot, content in expected.items())
    arenas.free(list(expected))
    assert arenas.used == 0 and not arenas._arenas


def test_a_run_that_the_system_has_no_memory_for_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = Arenas(BLOCK)
    (kept,) = arenas.take(1)
    arenas.fill(kept, b"k" * BLOCK)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(OSError, match="no memory left"):
        arenas.take(ARENA_SIZE // BLOCK)
    assert arenas.used == 1 and arenas.load(kept) == b"k" * BLOCK
    assert len(arenas.take(ARENA_SIZE // BLOCK - 1)) == ARENA_SIZE // BLOCK - 1


def test_overlays_take_runs_as_they_take_their_blocks() -> None:
    """The same commits to two overlays, in runs and block by block, with snapshots, and up to the limit."""
    chance = random.Random(9)
    in_runs, in_blocks = Overlay(BLOCK, 150 * BLOCK), Overlay(BLOCK, 150 * BLOCK)
    snapshots = []
    refused = 0
    for step in range(3000):
        if step % 50 == 20:
            snapshots.append((in_runs.snapshot(), in_blocks.snapshot()))
        elif step % 50 == 40:
            for snapshot in snapshots.pop():
                snapshot.close()
        targets = chance.choice([(in_runs, in_blocks), *snapshots])
        numbers = set(chance.sample(range(200), 3))
        runs = []
        for first in chance.sample(range(0, 180, 20), chance.randrange(4)):
            run = range(first, first + chance.randrange(1, 15))
            numbers -= set(run)
            runs.append((first, memoryview(chance.randbytes(len(run) * BLOCK))))
        changed = {number: chance.randbytes(BLOCK) for number in numbers}
        single = {
            first + index: content[index * BLOCK :][:BLOCK]
            for first, content in runs
            for index in range(len(content) // BLOCK)
        }
        freed = set(chance.sample(range(200), chance.randrange(60))) - changed.keys() - single.keys()
        use_reserve = chance.random() < 0.5
        outcomes: list[str | None] = []
        for target, arguments in zip(
            targets, ((changed, freed, use_reserve, runs), ({**changed, **single}, freed, use_reserve)), strict=True
        ):
            try:
                target.commit(*arguments)
                outcomes.append(None)
            except OSError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        refused += outcomes[0] is not None
        assert in_runs.used == in_blocks.used <= in_runs.limit
        assert in_runs.room == in_blocks.room and in_runs.blocks == in_blocks.blocks
        for one, other in [(in_runs, in_blocks), *snapshots] if step % 10 == 0 else []:
            assert all(one.get(number) == other.get(number) for number in range(200))
    assert 20 < refused < 2900


def test_a_run_is_what_its_blocks_are_to_the_rest_of_an_operation() -> None:
    overlay = Overlay(BLOCK, 1 << 20)
    content = memoryview(random.Random(1).randbytes(3 * BLOCK))
    parts = [bytes(content[index * BLOCK :][:BLOCK]) for index in range(3)]

    change = transaction(overlay)
    change.put_run(5, content)
    assert [change.block(number) for number in (5, 6, 7)] == parts

    change = transaction(overlay)
    change.put_run(5, content)
    change.change(6)[0] = parts[1][0] ^ 1
    overlay.commit(change.changed, change.freed, False, change.runs)
    assert overlay.get(5) == parts[0] and overlay.get(7) == parts[2]
    assert overlay.get(6) == bytes([parts[1][0] ^ 1]) + parts[1][1:]

    change = transaction(overlay)
    change.put_run(10, content)
    assert change.holds_written(11) and not change.holds_written(13)
    change.put_run(20, content)
    change.discard(21)
    assert 21 not in change.changed and change.freed == {21}
    change.put_run(21, content[:BLOCK])
    assert not change.freed and change.block(21) == parts[0]

    change = transaction(overlay)
    change.put_run(30, content)
    change.put_run(32, content)
    change.put_run(28, content)
    used = overlay.used
    overlay.commit(change.changed, change.freed, False, change.runs)
    assert [overlay.get(number) for number in range(28, 35)] == [*parts, parts[1], *parts]
    assert overlay.used - used == 7 * (BLOCK + 128)

    change = transaction(overlay)
    assert change.block(7) == parts[2]
    change.create(8)[:] = b"x" * BLOCK
    change.put_run(6, content)
    assert [change.block(number) for number in (6, 7, 8)] == parts
    change.restart()
    assert not change.runs and change.block(7) == parts[2] and change.find(8) is None


@pytest.mark.parametrize(
    ("pointers", "budget", "enough", "left"),
    [
        ([0, 0, 0], 5, 3, 2),
        ([0, 0, 0], 3, 3, 0),
        ([0, 0, 0], 2, 2, 0),
        ([0], 0, 0, 0),
        ([5, 6], 0, 2, 0),
        ([9, 5, 0, 6, 0], 2, 4, 0),
        ([5, 0, 6], 0, 1, 0),
        ([], 3, 0, 3),
    ],
)
def test_the_budget_is_spent_on_what_takes_up_more_memory(
    pointers: list[int], budget: int, enough: int, left: int
) -> None:
    overlay = Overlay(BLOCK, 1 << 20)
    overlay.commit({5: bytes(BLOCK), 6: bytes(BLOCK)}, [], False)
    change = transaction(overlay, budget)
    change.restart()
    assert change.spend_for(pointers) == enough
    assert change.budget == left and change.spent == budget - left

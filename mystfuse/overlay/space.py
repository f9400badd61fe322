"""Bounded space for written blocks: memory, and an ``OverlayStore`` if there is one. Tables hold the place of each
block."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from errno import ENOSPC
from typing import Any

import trio

from mystfuse.errors import MystfuseError
from mystfuse.overlay.arena import Arenas, Content
from mystfuse.overlay.encrypted_store import OverlayStore
from mystfuse.overlay.spill import PLACE, Spill, Table

ENTRY = 128
"""Bytes that a table costs for a block."""
_MOST_LOW_WATER = 16 << 20

Runs = Collection[tuple[int, memoryview]]
"""The number of the first of consecutive blocks, and the contents of all of them."""


class OverlayFull(OSError):
    """The limit would be exceeded, by ``missing`` blocks."""

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(ENOSPC, message)
        self.missing = missing


class OverlayBusy(Exception):
    """There will be room when more has been written to the store; ``make_room`` waits for that."""

    def __init__(self, new: int, in_memory: int, use_reserve: bool) -> None:
        super().__init__(f"{in_memory} blocks of memory are needed")
        self.new = new
        self.in_memory = in_memory
        self.use_reserve = use_reserve


class Space(ABC):
    """Its memory never exceeds ``limit`` bytes, tables included. For a single thread.

    Args:
        store: for blocks beyond the limit; then this is for trio's thread.
        io_timeout: seconds until a store that does not answer is an error.
    """

    def __init__(
        self, block_size: int, limit: int, store: OverlayStore | None = None, io_timeout: float = math.inf
    ) -> None:
        self.block_size = block_size
        self.limit = limit
        self._arenas = Arenas(block_size)
        self._load = self._arenas.load
        self._spill: Spill | None = None
        self._entry = ENTRY
        """Bytes that tables cost for a block in any place."""
        self._floor = 0
        """Bytes that tables never take up: blocks that change have to be in memory."""
        if store is not None:
            self._spill = Spill(self._arenas, store, limit // 16, self.tables, self._is_short, self.moving, io_timeout)
            self._entry += PLACE
            self._floor = min(max(limit // 8, 64 * block_size), limit // 2)
        self._reserve = min(max(limit // 16, 16 * (block_size + self._entry)), limit // 8)
        """Bytes kept for operations that free more than they take."""
        self._low_water = min(self._floor // 2, _MOST_LOW_WATER)
        """Bytes: with less memory left than this, blocks go to the store."""

    @abstractmethod
    def tables(self) -> Collection[Table]:
        """All tables that name slots."""

    @abstractmethod
    def moving(self, numbers: Sequence[int]) -> AbstractContextManager[None]:
        """In the context, blocks with these numbers move from memory to the store, in all tables.

        Raises:
            MemoryError: before the context begins.
        """

    @property
    def used(self) -> int:
        """Bytes in memory, tables included."""
        return self._table_bytes(0) + self._arenas.used * self.block_size

    @property
    def written(self) -> int:
        """Bytes of all blocks, wherever they are; those that only a snapshot still has count too."""
        return self._arenas.used * self.block_size + self.store_used

    @property
    def store_used(self) -> int:
        """Bytes in the store."""
        return 0 if self._spill is None else self._spill.slots.used * self.block_size

    @property
    def room(self) -> int:
        """The number of further blocks, as far as is known, besides those of the reserve."""
        left = self.limit - self._reserve - self._table_bytes(0)
        size, disk, most = self.block_size, 0, left
        if self._spill is not None:
            disk, most = self._spill.room, (left - self._floor) // self._entry
        fit = (left + (disk - self._arenas.used) * size) // (size + self._entry)
        return max(min(most, fit), 0)

    @property
    def most_at_once(self) -> int | None:
        """Bytes of data that one operation may write, so that there is always memory for them and their metadata; None
        for no bound but ``room``."""
        return None if self._spill is None else max(self._floor // 2 // self.block_size, 1) * self.block_size

    def load(self, slot: int | None) -> bytes | int | None:
        """A copy of the block in a slot, if that is in memory; else its version. None for None."""
        if slot is None:
            return None
        if slot >= 0:
            return self._load(slot)
        assert self._spill is not None
        return self._spill.version(~slot)

    def recall_now(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError] | None:
        """See ``Spill.recall_now``."""
        assert self._spill is not None
        return self._spill.recall_now(versions)

    async def recall(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError]:
        """See ``Spill.recall``."""
        assert self._spill is not None
        return await self._spill.recall(versions)

    async def make_room(self, busy: OverlayBusy) -> None:
        """Wait until a change that was refused may be tried again.

        Raises:
            OverlayFull: the store is full.
            StorageTimeout: the disk does not answer.
            ImageReadError: writing to the store failed.
        """
        assert self._spill is not None
        while True:
            try:
                self._check(busy.new, busy.in_memory, busy.use_reserve)
            except OverlayBusy:
                if not await self._spill.wait():
                    limit = self.limit if busy.use_reserve else self.limit - self._reserve
                    used = self._table_bytes(busy.new) + (self._arenas.used + busy.in_memory) * self.block_size
                    raise self._full(max(used - limit, 1), self.block_size) from None
            else:
                # Other operations go on as well.
                await trio.lowlevel.checkpoint()
                return

    def change(
        self,
        table: dict[int, Any],
        changed: Mapping[int, Content],
        freed: Collection[int],
        use_reserve: bool,
        runs: Runs = (),
        snapshots: Collection[dict[int, int | None]] | None = None,
    ) -> None:
        """Change one table and the blocks it names: all of it or nothing.

        Steps that need memory come first, and are undone if there is none. From the moment when the first block is
        overwritten nothing takes memory, so nothing fails.

        Args:
            table: the slots of blocks by their numbers.
            changed: blocks and their new contents.
            freed: blocks that are free now.
            use_reserve: whether the last part of the limit may be used.
            runs: more changed blocks, none of which is in ``changed`` or another run.
            snapshots: the tables of its snapshots, which get the old slots; None if the table is a
                snapshot's own, where freed blocks become None.

        Raises:
            OverlayFull: the limit would be exceeded.
            OverlayBusy: memory is full until more has been written to the store.
            OSError: ENOSPC, the system has no memory left.
            MemoryError: the same, for other memory than blocks.
        """
        if self._spill is None and snapshots is not None and not (snapshots or freed or runs):
            self._change_plainly(table, changed, use_reserve)
            return
        arenas, size = self._arenas, self.block_size
        if runs and (snapshots != [] or not all(table.keys().isdisjoint(_numbers(run, size)) for run in runs)):
            # Runs are stored as such only where none of their blocks was written before.
            blocks = {
                number: run[1][index * size : (index + 1) * size]
                for run in runs
                for index, number in enumerate(_numbers(run, size))
            }
            changed, runs = {**changed, **blocks}, ()
        held: Mapping[int, Any] = table
        if snapshots:
            # A snapshot that has not kept an old version shares the present one.
            held = {
                number: table[number]
                for number in (*changed, *freed)
                if number in table and all(number in keep for keep in snapshots)
            }
        new: dict[int, Content] = {}
        overwritten: list[tuple[int, Content]] = []
        replaced: list[int] = []
        for number, content in changed.items():
            slot = held.get(number)
            if slot is not None and slot >= 0:
                overwritten.append((slot, content))
            else:
                new[number] = content
                if slot is not None:
                    # Blocks in the store are not overwritten there.
                    replaced.append(slot)
        dropped = [slot for number in freed if (slot := held.get(number)) is not None]
        in_runs = sum([len(content) for _, content in runs]) // size if runs else 0
        added = len(new) - len(replaced) + in_runs
        if in_memory := len(new) + in_runs:
            # An operation that only replaces blocks of the store frees their places, so a full store takes it.
            self._check(added - len(dropped), in_memory, use_reserve or not added)
        kept: list[tuple[dict[int, int | None], dict[int, int | None]]] = []
        before: dict[int, Any] = {}
        entered: dict[int, Any] = {}
        # Nothing stands between this and the ``try``, or the slots could be lost.
        slots = arenas.take(in_memory) if in_memory else []
        try:
            entries = self._fill(slots, runs, new) if slots else {}
            if snapshots is None:
                entries = {**dict.fromkeys(freed), **entries}
            elif snapshots:
                old = {number: table.get(number) for number in (*entries, *freed)}
                kept = [
                    (keep, {number: slot for number, slot in old.items() if number not in keep}) for keep in snapshots
                ]
            before = {number: table[number] for number in entries if number in table}
            overwriting = iter(arenas.placed(overwritten))
            dropping = iter(() if snapshots is None else freed)
            release = self._releasing([*replaced, *dropped])
            for keep, versions in kept:
                keep.update(versions)
            entered = entries
            table.update(entries)
        except (OSError, MemoryError):
            for number in entered:
                if number in before:
                    table[number] = before[number]
                else:
                    table.pop(number, None)
            for keep, versions in kept:
                for number in versions:
                    keep.pop(number, None)
            arenas.free(slots)
            raise
        # Nothing from here on takes memory.
        arenas.overwrite(overwriting)
        for number in dropping:
            table.pop(number, None)
        release()
        if self._spill is not None:
            self._spill.go_on()

    def _change_plainly(self, table: dict[int, Any], changed: Mapping[int, Content], use_reserve: bool) -> None:
        """``change`` as it is nearly always, in fewer steps: no snapshots, no store, nothing freed."""
        arenas = self._arenas
        new: dict[int, Content] = {}
        overwritten: list[tuple[int, Content]] = []
        for number, content in changed.items():
            slot = table.get(number)
            if slot is None:
                new[number] = content
            else:
                overwritten.append((slot, content))
        overwriting = iter(arenas.placed(overwritten))
        if new:
            self._check(len(new), len(new), use_reserve)
            slots = arenas.take(len(new))
            try:
                table.update(self._fill(slots, (), new))
            except (OSError, MemoryError):
                for number in new:
                    table.pop(number, None)
                arenas.free(slots)
                raise
        # Nothing from here on takes memory.
        arenas.overwrite(overwriting)

    def _releasing(self, slots: Collection[int]) -> Callable[[], None]:
        """A call that gives slots back, and takes no memory for it."""
        if not slots:
            return _nothing
        arenas, spill = self._arenas, self._spill
        in_memory = [slot for slot in slots if slot >= 0] if spill else list(slots)
        places = [~slot for slot in slots if slot < 0] if spill else []
        freeing, left = iter(in_memory), arenas.used - len(in_memory)
        giving_back, places_left = iter(places), spill.slots.used - len(places) if spill else 0

        def release() -> None:
            if in_memory:
                arenas.slots.free(freeing, left)
                arenas.give_back(in_memory)
            if places and spill is not None:
                spill.slots.free(giving_back, places_left)
                spill.freed(places)

        return release

    def _fill(self, slots: list[int], runs: Runs, blocks: Mapping[int, Content]) -> dict[int, Any]:
        """Put blocks into slots in memory. Returns the slots by the numbers of the blocks."""
        entries: dict[int, Any] = {}
        for first, content in runs:
            numbers = _numbers((first, content), self.block_size)
            some = slots[len(entries) : len(entries) + len(numbers)]
            self._arenas.fill_run(some, content)
            entries.update(zip(numbers, some, strict=True))
        for (number, block), slot in zip(blocks.items(), slots[len(entries) :], strict=True):
            self._arenas.fill(slot, block)
            entries[number] = slot
        if self._spill is not None:
            self._spill.note(entries)
        return entries

    def _check(self, new: int, in_memory: int, use_reserve: bool) -> None:
        """Check that there is room for ``new`` more blocks, and memory for ``in_memory``.

        Raises:
            OverlayFull: there is none.
            OverlayBusy: not yet.
        """
        limit, size = self.limit if use_reserve else self.limit - self._reserve, self.block_size
        if self._spill is None:
            excess = (self._arenas.used + new) * (size + ENTRY) - limit
            if excess > 0:
                raise self._full(excess, size + self._entry)
            return
        tables = self._table_bytes(new)
        if (excess := tables + self._floor - limit) > 0 and new > 0:
            raise self._full(excess, self._entry)
        if tables + (self._arenas.used + in_memory) * size > limit:
            if (excess := tables + in_memory * size - limit) > 0:
                raise self._full(excess, size)
            raise OverlayBusy(new, in_memory, use_reserve)

    def _table_bytes(self, new: int) -> int:
        """Bytes that tables take up with ``new`` more blocks."""
        if self._spill is None:
            return (self._arenas.used + new) * ENTRY
        used = self._arenas.used + self._spill.slots.used + new
        return used * ENTRY + max(used, self._spill.slots.size) * PLACE

    def _full(self, excess: int, cost: int) -> OverlayFull:
        in_store = "" if self._spill is None else f", {self.store_used} in the store"
        return OverlayFull(f"the overlay is full ({self.used} of {self.limit} bytes{in_store})", -(-excess // cost))

    def _is_short(self) -> bool:
        return self.limit - self._reserve - self.used < self._low_water


def _nothing() -> None:
    pass


def _numbers(run: tuple[int, memoryview], block_size: int) -> range:
    return range(run[0], run[0] + len(run[1]) // block_size)

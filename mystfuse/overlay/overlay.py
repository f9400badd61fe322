"""The blocks written since the mount: in memory (and in an ``OverlayStore``, if there is one), bounded, forgotten at
unmount; and snapshots of them.

A snapshot costs nothing when it is taken. From then on the first change of a block leaves the old version to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from errno import EBUSY
from typing import Any

from mystfuse.errors import MystfuseError
from mystfuse.overlay.arena import Arenas
from mystfuse.overlay.spill import ENTRY, OverlayBusy, OverlayFull, SpillingArenas
from mystfuse.overlay.store import OverlayStore
from mystfuse.system.reserve import insist, keep_reserve

MAX_SNAPSHOTS = 4
_RESERVE = 16
"""One part in this many of the limit is kept for operations that free more than they take."""

_SMALL_TABLE = 10_000

Content = bytes | bytearray | memoryview
Runs = Collection[tuple[int, memoryview]]
"""Of consecutive blocks the number of the first one, and what is in all of them."""


class Overlay:
    """Written blocks by number. What it holds in memory never exceeds ``limit`` bytes, tables included.

    Not for more than one thread.

    Args:
        store: for what memory has no room for; then this is for trio's thread.
        io_timeout: seconds until a store that does not answer is an error.
    """

    def __init__(
        self, block_size: int, limit: int, store: OverlayStore | None = None, io_timeout: float = math.inf
    ) -> None:
        self.limit = limit
        self._block_size = block_size
        self._cost = block_size + ENTRY
        self._most = limit // self._cost
        self._reserve = max(self._most // _RESERVE, min(self._most // 2, 16))
        self._spilling = None if store is None else SpillingArenas(block_size, limit, store, io_timeout)
        self._arenas = self._spilling or Arenas(block_size)
        self._slots: dict[int, int] = {}
        self._largest = 0
        self._snapshots: list[Snapshot] = []

    @property
    def used(self) -> int:
        """Bytes held in memory, by the present state and by snapshots."""
        return self._arenas.used * self._cost if self._spilling is None else self._spilling.memory_used

    @property
    def store_used(self) -> int:
        """Bytes held in the store."""
        return 0 if self._spilling is None else self._spilling.store_used

    @property
    def room(self) -> int:
        """How many more blocks can be written, besides those kept for operations that free more than they take."""
        if self._spilling is not None:
            return self._spilling.room
        return max(self._most - self._reserve - self._arenas.used, 0)

    @property
    def most_at_once(self) -> int | None:
        """Bytes of data that one transaction may have; None for no bound but ``room``."""
        return None if self._spilling is None else self._spilling.most_at_once

    @property
    def blocks(self) -> int:
        """How many blocks the present state has."""
        return len(self._slots)

    def __contains__(self, number: int) -> bool:
        return number in self._slots

    def get(self, number: int) -> bytes | int | None:
        """A copy of the block, its ticket for ``recall`` if it is in the store, or None if it has not been written."""
        slot = self._slots.get(number)
        return None if slot is None else self._arenas.load(slot)

    def is_stored(self, number: int) -> bool:
        """Whether the block has been written and is in the store."""
        slot = self._slots.get(number)
        return slot is not None and self._spilling is not None and self._spilling.is_stored(slot)

    def recall_now(self, tickets: Iterable[int], keep: bool = False) -> dict[int, bytes | MystfuseError] | None:
        """What ``recall`` returns, if that can be had without waiting for the disk; else None. Never blocks."""
        assert self._spilling is not None
        blocks = self._spilling.recall_now(tickets)
        if keep and blocks:
            self._spilling.remember(blocks)
        return blocks

    async def recall(self, tickets: Iterable[int], keep: bool = False) -> dict[int, bytes | MystfuseError]:
        """Blocks in the store by their tickets, or for each what is wrong with it. Those that have been changed or
        freed meanwhile may be missing.

        Args:
            keep: whether they are likely to be asked for again.

        Raises:
            StorageTimeout: the disk does not answer.
        """
        assert self._spilling is not None
        blocks = await self._spilling.recall(tickets)
        if keep:
            self._spilling.remember(blocks)
        return blocks

    async def make_room(self, busy: OverlayBusy) -> None:
        """Wait until a commit that was refused may be tried again; raises what ``SpillingArenas.make_room`` does."""
        assert self._spilling is not None
        await self._spilling.make_room(busy)

    def holds(self, number: int) -> bool:
        """Whether writing the block (again) takes up no more memory."""
        if number not in self._slots:
            return False
        return not self._snapshots or not any(snapshot.shares(number) for snapshot in self._snapshots)

    def commit(
        self, changed: Mapping[int, Content], freed: Collection[int], use_reserve: bool, runs: Runs = ()
    ) -> None:
        """Store blocks, and drop those that are free now: all of it or nothing.

        Args:
            use_reserve: whether the last part of the limit may be used.
            runs: more blocks to be stored, none of which is in ``changed`` or another run.

        Raises:
            OverlayFull: the limit would be exceeded.
            OverlayBusy: it would be in memory, but not when more has been written to the store.
            OSError: ENOSPC, the system has no memory left.
            MemoryError: the same, for what is not a block.
        """
        if self._snapshots:
            changed, runs = _split_runs(changed, runs, self._block_size), ()
        else:
            changed, runs = self._split_held_runs(changed, runs)
        held = self.holds if self._snapshots else self._slots.__contains__
        self._change(self._slots, held, changed, freed, use_reserve, runs)
        self._shrink()

    def _shrink(self) -> None:
        """A dictionary never gives back what it was once as large as."""
        try:
            if self._largest > 4 * len(self._slots) + _SMALL_TABLE:
                self._slots = dict(self._slots)
                self._largest = len(self._slots)
        except MemoryError:
            return

    def _change(
        self,
        table: dict[int, int] | dict[int, int | None],
        held: Callable[[int], bool],
        changed: Mapping[int, Content],
        freed: Collection[int],
        use_reserve: bool,
        runs: Runs,
    ) -> None:
        """Change the present state or a snapshot of it: all of it or nothing.

        What needs memory comes first, and is taken back if there is none. From the moment when the first block is
        overwritten nothing fails: that takes no more than what is kept in reserve, and can be done again. What is in
        use is what the tables say; which slots are free follows from them, and is found out anew after an error.

        Args:
            table: the slots of blocks by their numbers.
            held: whether a block of the table may be overwritten: it is nobody else's.
        """
        self._recover()
        keep_reserve()
        arenas, is_present = self._arenas, table is self._slots
        new = [number for number in changed if not held(number)]
        replaced: list[int] = []
        if self._spilling is not None:
            # What is in the store is not overwritten there.
            replaced = [number for number in changed if held(number) and self._spilling.is_stored(_slot(table, number))]
        dropped = [number for number in freed if held(number)] if freed else []
        count = len(new)
        if runs:
            count += sum([len(content) for _, content in runs]) // self._block_size
        if count or replaced:
            # Who only replaces what is in the store gives that back: at a full store, too.
            self._check_room(count - len(dropped), use_reserve or not count, count + len(replaced))
        unused = [_slot(table, number) for number in (*replaced, *dropped)]
        stored: dict[int, int] = {}
        entered: dict[int, Any] = {}
        kept: list[tuple[Snapshot, dict[int, int | None]]] = []
        arenas.is_unsure = True
        try:
            for first, run in runs:
                slots = arenas.store_run(run)
                stored.update(zip(range(first, first + len(slots)), slots, strict=True))
            for number in new + replaced if replaced else new:
                stored[number] = arenas.store(changed[number])
            entries: dict[int, Any] = stored if is_present else {**dict.fromkeys(freed), **stored}
            before = {number: table[number] for number in entries.keys() & table.keys()} if entries else {}
            if is_present and self._snapshots:
                kept = [(snapshot, snapshot.needed(table, (*stored, *freed))) for snapshot in self._snapshots]

            def publish() -> None:
                overwrite = arenas.overwrite
                for number, content in changed.items():
                    if number not in stored:
                        overwrite(_slot(table, number), content)
                if is_present:
                    for number in freed:
                        table.pop(number, None)

            for snapshot, versions in kept:
                snapshot.keep(versions)
            entered = entries
            table.update(entries)
            if len(self._slots) > self._largest:
                self._largest = len(self._slots)
            insist(publish)
        except (OSError, MemoryError) as error:
            for number in entered:
                if number in before:
                    table[number] = before[number]  # type: ignore[assignment]  # as it was
                else:
                    table.pop(number, None)
            for snapshot, versions in kept:
                snapshot.unkeep(versions)
            if isinstance(error, OSError):
                # Where memory for blocks is at its end this happens often, and costs no more than what it takes back.
                arenas.free(stored.values())
                arenas.is_unsure = False
            else:
                self._try_to_recover()
            raise
        if unused:
            self._give_back(unused)
        else:
            arenas.is_unsure = False
        if self._spilling is not None:
            self._spilling.write_back()

    def _give_back(self, slots: Collection[int]) -> None:
        """Slots that no table has any more are free. Never fails."""
        self._arenas.is_unsure = True
        try:
            self._arenas.free(slots)
            self._arenas.is_unsure = False
        except MemoryError:
            self._try_to_recover()

    def _try_to_recover(self) -> None:
        try:
            self._recover()
        except MemoryError:
            # Before the next change, then.
            return

    def _recover(self) -> None:
        """Find out anew which slots are free, if something failed in the middle of a change."""
        if self._arenas.is_unsure:
            tables: list[dict[int, int] | dict[int, int | None]] = [self._slots]
            for snapshot in self._snapshots:
                tables += snapshot.tables
            self._arenas.recover(slot for table in tables for slot in table.values() if slot is not None)

    def snapshot(self) -> Snapshot:
        """The present state, as long as the snapshot is not closed.

        Raises:
            OSError: EBUSY, there are as many snapshots as there may be.
        """
        if len(self._snapshots) >= MAX_SNAPSHOTS:
            raise OSError(EBUSY, f"{MAX_SNAPSHOTS} snapshots are open already")
        snapshot = Snapshot(self, self._arenas)
        self._snapshots.append(snapshot)
        return snapshot

    def _split_held_runs(self, changed: Mapping[int, Content], runs: Runs) -> tuple[Mapping[int, Content], Runs]:
        """Runs of which something has been written before are handled as single blocks."""
        size = self._block_size
        held = [run for run in runs if not self._slots.keys().isdisjoint(range(run[0], run[0] + len(run[1]) // size))]
        if not held:
            return changed, runs
        return _split_runs(changed, held, size), [run for run in runs if run not in held]

    def _close_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshots.remove(snapshot)
        try:
            versions, own = snapshot.tables
            unused = [slot for slot in own.values() if slot is not None]
            for number, slot in versions.items():
                if slot is not None and not any(other.has_kept(number, slot) for other in self._snapshots):
                    unused.append(slot)
        except MemoryError:
            self._arenas.is_unsure = True
            self._try_to_recover()
        else:
            self._give_back(unused)

    def _slot_of(self, number: int) -> int | None:
        return self._slots.get(number)

    def _check_room(self, new: int, use_reserve: bool, in_memory: int) -> None:
        """See that ``new`` more blocks can be held, and ``in_memory`` stored."""
        if self._spilling is not None:
            self._spilling.check(new, in_memory, use_reserve)
            return
        missing = self._arenas.used + new - (self._most if use_reserve else self._most - self._reserve)
        if missing > 0:
            raise OverlayFull(f"the overlay is full ({self.used} of {self.limit} bytes)", missing)


def _slot(table: Mapping[int, int | None], number: int) -> int:
    return table[number]  # type: ignore[return-value]  # it has one


def _split_runs(changed: Mapping[int, Content], runs: Runs, block_size: int) -> Mapping[int, Content]:
    """``changed``, and the blocks of runs one by one."""
    blocks = (
        (first + index, content[start : start + block_size])
        for first, content in runs
        for index, start in enumerate(range(0, len(content), block_size))
    )
    return {**changed, **dict(blocks)} if runs else changed


class Snapshot:
    """The overlay as it was at one moment. It can be written to as well, which nobody else sees.

    Made by ``Overlay.snapshot``; what it holds counts against the overlay's limit until ``close``.
    """

    def __init__(self, overlay: Overlay, arenas: Arenas | SpillingArenas) -> None:
        self._overlay = overlay
        self._arenas = arenas
        self._kept: dict[int, int | None] = {}
        """Blocks that have changed since: the slot of the old version, None for what was not written then."""
        self._own: dict[int, int | None] = {}
        """Blocks written to the snapshot itself; None for what was freed in it."""

    def get(self, number: int) -> bytes | int | None:
        """A copy of the block, its ticket if it is in the store, or None if it had not been written."""
        if number in self._own:
            slot = self._own[number]
        elif number in self._kept:
            slot = self._kept[number]
        else:
            slot = self._overlay._slot_of(number)
        return None if slot is None else self._arenas.load(slot)

    def holds(self, number: int) -> bool:
        """Whether writing the block (again) takes up no more memory."""
        return self._own.get(number) is not None

    def commit(
        self, changed: Mapping[int, Content], freed: Collection[int], use_reserve: bool, runs: Runs = ()
    ) -> None:
        """Store blocks in the snapshot alone; raises as the overlay's ``commit``."""
        changed = _split_runs(changed, runs, self._overlay._block_size)
        self._overlay._change(self._own, self.holds, changed, freed, use_reserve, ())

    def recall_now(self, tickets: Iterable[int], keep: bool = False) -> dict[int, bytes | MystfuseError] | None:
        """See ``Overlay.recall_now``."""
        return self._overlay.recall_now(tickets, keep)

    async def recall(self, tickets: Iterable[int], keep: bool = False) -> dict[int, bytes | MystfuseError]:
        """See ``Overlay.recall``."""
        return await self._overlay.recall(tickets, keep)

    async def make_room(self, busy: OverlayBusy) -> None:
        """See ``Overlay.make_room``."""
        await self._overlay.make_room(busy)

    def shares(self, number: int) -> bool:
        """Whether the block's present version is also the snapshot's."""
        return number not in self._kept

    @property
    def tables(self) -> tuple[dict[int, int | None], dict[int, int | None]]:
        """The slots that it holds, of what has changed since and of its own."""
        return self._kept, self._own

    def has_kept(self, number: int, slot: int) -> bool:
        """Whether ``slot`` is the snapshot's version of a block that has changed since."""
        return self._kept.get(number) == slot

    def needed(self, present: Mapping[int, int | None], numbers: Iterable[int]) -> dict[int, int | None]:
        """The versions of blocks to ``keep`` when these are about to change: of those that have not changed before."""
        return {number: present.get(number) for number in numbers if self.shares(number)}

    def keep(self, versions: dict[int, int | None]) -> None:
        """These blocks change: the versions are the snapshot's alone."""
        self._kept.update(versions)

    def unkeep(self, versions: Iterable[int]) -> None:
        """They do not change after all."""
        for number in versions:
            self._kept.pop(number, None)

    def close(self) -> None:
        """Give back what only the snapshot holds. Never fails."""
        self._overlay._close_snapshot(self)

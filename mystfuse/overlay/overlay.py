"""The blocks written since the mount: bounded, forgotten at unmount; and snapshots of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EBUSY

from mystfuse.overlay.arena import Content
from mystfuse.overlay.encrypted_store import OverlayStore
from mystfuse.overlay.mirror import Mirror
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.overlay.space import Runs, Space
from mystfuse.overlay.spill import Table

MAX_SNAPSHOTS = 4
_SMALL_TABLE = 10_000


class Overlay(Space):
    """Written blocks by number, in a ``Space``."""

    def __init__(
        self, block_size: int, limit: int, store: OverlayStore | None = None, io_timeout: float = math.inf
    ) -> None:
        super().__init__(block_size, limit, store, io_timeout)
        self._slots: dict[int, int] = {}
        self._largest = 0
        self._snapshots: list[Snapshot] = []
        self._mirror: Mirror | None = None

    def set_mirror(self, mirror: Mirror) -> None:
        """Tell ``mirror`` what has been written, and have it follow all changes from now on.

        Raises:
            MemoryError: it has no memory for that, and must not be used.
        """
        token = mirror.begin(list(self._slots), self._arenas.most(0))
        try:
            self._arenas.set_mirror(mirror)
        finally:
            mirror.end(token, self._slots)
        self._mirror = mirror

    def tables(self) -> list[Table]:
        return [self._slots, *(table for snapshot in self._snapshots for table in (snapshot.kept, snapshot.own))]

    @property
    def blocks(self) -> int:
        """The number of blocks in the present state."""
        return len(self._slots)

    def __contains__(self, number: int) -> bool:
        return number in self._slots

    def get(self, number: int) -> bytes | int | None:
        """A copy of the block, its version for ``recall`` if it is in the store, or None if it has not been written."""
        slot = self._slots.get(number)
        # Every read of a block comes here, so it makes no further call.
        return None if slot is None else self._load(slot) if slot >= 0 else self.load(slot)

    def holds(self, number: int) -> bool:
        """Whether writing the block (again) takes up no more memory."""
        # A snapshot that has not kept an old version shares the present one.
        if not self._snapshots:
            return number in self._slots
        return number in self._slots and all(number in snapshot.kept for snapshot in self._snapshots)

    def commit(
        self, changed: Mapping[int, Content], freed: Collection[int], use_reserve: bool, runs: Runs = ()
    ) -> None:
        """Store blocks, and drop freed ones; see ``Space.change``."""
        if self._snapshots:
            self._forget_closed()
        kept = [snapshot.kept for snapshot in self._snapshots]
        if self._mirror is None:
            self.change(self._slots, changed, freed, use_reserve, runs, kept)
        else:
            numbers = [*changed, *freed]
            for first, content in runs:
                numbers += range(first, first + len(content) // self.block_size)
            token = self._mirror.begin(numbers, self._arenas.most(len(numbers)))
            try:
                self.change(self._slots, changed, freed, use_reserve, runs, kept)
            finally:
                self._mirror.end(token, self._slots)
        self._shrink()

    @contextmanager
    def moving(self, numbers: Sequence[int]) -> Iterator[None]:
        """In the context, blocks move to the store."""
        if self._mirror is None:
            yield
            return
        token = self._mirror.begin(numbers, self._arenas.most(0))
        try:
            yield
        finally:
            self._mirror.end(token, self._slots)

    def _shrink(self) -> None:
        """A dictionary never gives back memory when it gets smaller: replace it with a smaller one."""
        try:
            if len(self._slots) > self._largest:
                self._largest = len(self._slots)
            elif self._largest > 4 * len(self._slots) + _SMALL_TABLE:
                self._slots = dict(self._slots)
                self._largest = len(self._slots)
        except MemoryError:
            return

    def snapshot(self) -> Snapshot:
        """The present state, as long as the snapshot is not closed.

        Raises:
            OSError: EBUSY, too many snapshots.
        """
        self._forget_closed()
        if len(self._snapshots) >= MAX_SNAPSHOTS:
            raise OSError(EBUSY, f"{MAX_SNAPSHOTS} snapshots are open already")
        snapshot = Snapshot(self, lambda: self._slots, self._forget_closed)
        self._snapshots.append(snapshot)
        return snapshot

    def _forget_closed(self) -> None:
        """Give back the blocks that only closed snapshots hold. Never fails: without memory for it, the next change
        does it."""
        try:
            for snapshot in self._snapshots:
                if snapshot.is_closed:
                    self._forget(snapshot)
        except MemoryError:
            return

    def _forget(self, snapshot: Snapshot) -> None:
        others = [other for other in self._snapshots if other is not snapshot]
        slots = [slot for slot in snapshot.own.values() if slot is not None]
        for number, slot in snapshot.kept.items():
            if slot is not None and not any(other.kept.get(number) == slot for other in others):
                slots.append(slot)
        self._releasing(slots)()
        self._snapshots = others

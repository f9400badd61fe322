"""Snapshots of the overlay. Taking one costs nothing: later, the first change of a block leaves its old version to the
snapshot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from mystfuse.errors import MystfuseError
from mystfuse.overlay.arena import Content
from mystfuse.overlay.space import OverlayBusy, Runs, Space


class Snapshot:
    """The overlay as it was at one moment. It is writable too; only the snapshot itself shows those writes.

    Made by ``Overlay.snapshot``; its blocks count against the overlay's limit until ``close``.

    Args:
        present: returns where the present state has its blocks.
        on_close: called when it has been closed.
    """

    def __init__(self, space: Space, present: Callable[[], Mapping[int, int]], on_close: Callable[[], None]) -> None:
        self.kept: dict[int, int | None] = {}
        """Blocks that have changed since: the slot of the old version, None for a block that was not written then."""
        self.own: dict[int, int | None] = {}
        """Blocks written to the snapshot itself; None for those freed in it."""
        self.is_closed = False
        self._space = space
        self._present = present
        self._on_close = on_close

    def get(self, number: int) -> bytes | int | None:
        """See ``Overlay.get``."""
        for table in (self.own, self.kept):
            if number in table:
                return self._space.load(table[number])
        return self._space.load(self._present().get(number))

    def has(self, number: int) -> bool:
        """Whether the block had been written."""
        for table in (self.own, self.kept):
            if number in table:
                return table[number] is not None
        return number in self._present()

    def candidates(self) -> list[int]:
        """Numbers of blocks, each once, among which all are that it ``has``, now and later."""
        present = self._present()
        candidates = list(present)
        candidates += [number for number in self.kept if number not in present]
        candidates += [number for number in self.own if number not in present and number not in self.kept]
        return candidates

    def holds(self, number: int) -> bool:
        """See ``Overlay.holds``."""
        return self.own.get(number) is not None

    def commit(
        self, changed: Mapping[int, Content], freed: Collection[int], use_reserve: bool, runs: Runs = ()
    ) -> None:
        """See ``Overlay.commit``: for the snapshot alone."""
        self._space.change(self.own, changed, freed, use_reserve, runs, None)

    def recall_now(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError] | None:
        """See ``Space.recall_now``."""
        return self._space.recall_now(versions)

    async def recall(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError]:
        """See ``Space.recall``."""
        return await self._space.recall(versions)

    async def make_room(self, busy: OverlayBusy) -> None:
        """See ``Space.make_room``."""
        await self._space.make_room(busy)

    def close(self) -> None:
        """Give back the blocks that only the snapshot holds. Never fails."""
        self.is_closed = True
        self._on_close()

"""The error for damage that the hash tree has found, which whoever knows what the bytes are for can report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from mystfuse.devices.device import Extent
from mystfuse.errors import IntegrityError


class DamagedBlocks(IntegrityError):
    """Blocks of the image are corrupted.

    Args:
        what: the message.
        detail: more of it, in brackets.
        blocks: their levels and numbers; level -1 is the data.
        extents: the damaged bytes of the device that raises this; none for hash blocks, which may concern all bytes
            that were asked for.
        on_report: called by ``report``.
    """

    def __init__(
        self,
        what: str,
        detail: str,
        blocks: Sequence[tuple[int, int]],
        extents: Sequence[Extent],
        on_report: Callable[[DamagedBlocks], None],
    ) -> None:
        super().__init__(f"{what} ({detail})" if detail else what)
        self._what, self._detail = what, detail
        self.blocks = blocks
        self.extents = extents
        self._on_report = on_report

    def report(self, where: str = "") -> None:
        """Have the damage counted, logged and told: a program has needed these bytes.

        Args:
            where: what the bytes belong to, for the log, and from now on for the message.
        """
        said = "; ".join(part for part in (where, self._detail) if part)
        self.args = (f"{self._what} ({said})" if said else self._what,)
        self._on_report(self)

    def moved(self, offset: int) -> Self:
        """The same as an error of the device above, whose bytes begin at ``offset`` of this one."""
        moved = type(self)(self._what, self._detail, self.blocks, (), self._on_report)
        moved.extents = [
            Extent(max(extent.offset - offset, 0), extent.end - max(extent.offset, offset))
            for extent in self.extents
            if extent.end > offset
        ]
        return moved

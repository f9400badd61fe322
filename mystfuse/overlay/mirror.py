"""What follows an overlay's changes: C code that reads its blocks in place, beside this thread."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Mirror(Protocol):
    """It sees an overlay's table and its memory as they are outside of ``begin`` and ``end``, never in between."""

    def begin(self, numbers: Sequence[int], arenas: int) -> Any:
        """Blocks are about to change.

        Args:
            numbers: of the blocks; each may be named twice.
            arenas: how many arenas there may be then.

        Returns:
            A token for ``end``, which must be called whatever happens.

        Raises:
            MemoryError: nothing has begun.
        """
        ...

    def end(self, token: Any, slots: Mapping[int, int]) -> None:
        """They have changed, or not. Never fails.

        Args:
            slots: the overlay's table.
        """
        ...

    def arena(self, number: int, memory: mmap.mmap | None) -> None:
        """An arena has come into being, or is about to be given back (None)."""
        ...

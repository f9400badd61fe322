"""Bitmaps: one block a group for blocks and one for inodes; bit n is bit n % 8 of byte n // 8, 1 means in use.

Whole bitmaps are handled as Python integers, so that searching and filling a run costs microseconds, not a loop.
"""

from __future__ import annotations

from collections.abc import Iterable


class Bitmap:
    """The first ``size`` bits of a bitmap block; those behind count as in use and are left as they are."""

    def __init__(self, block: bytes, size: int) -> None:
        self._bits = int.from_bytes(block, "little")
        self._length = len(block)
        self._size = size

    def pack(self) -> bytes:
        """The bitmap block."""
        return self._bits.to_bytes(self._length, "little")

    def find_free_run(self, start: int, longest: int) -> tuple[int, int]:
        """The first run of free bits at or behind ``start``: (its first bit, its length, at most ``longest``).

        Its length is 0 if there is none.
        """
        if start >= self._size:
            return 0, 0
        free = ~(self._bits >> start)
        first = start + (free & -free).bit_length() - 1
        if first >= self._size:
            return 0, 0
        longest = min(longest, self._size - first)
        used = self._bits >> first & (1 << longest) - 1
        return first, (used & -used).bit_length() - 1 if used else longest

    def are_set(self, first: int, count: int) -> bool:
        """Whether all of ``count`` bits from ``first`` on are in use."""
        mask = (1 << count) - 1
        return self._bits >> first & mask == mask

    def set(self, first: int, count: int) -> None:
        """Mark ``count`` bits from ``first`` on as in use."""
        self._bits |= (1 << count) - 1 << first

    def clear(self, runs: Iterable[tuple[int, int]]) -> bool:
        """Mark runs (first bit, count) as free; False, and nothing done, if one of the bits is free already."""
        mask = 0
        for first, count in runs:
            run = (1 << count) - 1 << first
            if mask & run:
                return False
            mask |= run
        if self._bits & mask != mask:
            return False
        self._bits ^= mask
        return True

"""Damaged ranges of bytes, sorted, to be searched for what overlaps them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

MAX_RANGES = 1_000_000
"""Ranges kept, 17 bytes each. Others are counted."""


class DamagedRange(NamedTuple):
    """Bytes that do not match their digest, or have none to be compared with."""

    start: int
    end: int
    unverifiable: bool
    """Whether a hash block above them is damaged, not they themselves, as far as is known."""


class DamagedRanges:
    """Ranges in ascending order, which do not overlap."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._unverifiable = bytearray()
        self.left_out = 0
        """Bytes of ranges for which there was no room."""

    def add(self, start: int, end: int, unverifiable: bool = False) -> None:
        """Add a range that begins at the end of the last one, or behind it."""
        assert start <= end and (not self._ends or start >= self._ends[-1])
        if start == end:
            return
        if self._ends and self._ends[-1] == start and self._unverifiable[-1] == unverifiable:
            self._ends[-1] = end
        elif len(self._starts) == MAX_RANGES:
            self.left_out += end - start
        else:
            self._starts.append(start)
            self._ends.append(end)
            self._unverifiable.append(unverifiable)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[DamagedRange]:
        for start, end, unverifiable in zip(self._starts, self._ends, self._unverifiable, strict=True):
            yield DamagedRange(start, end, bool(unverifiable))

    def touch(self, start: int, end: int) -> bool:
        """Whether one of the ranges overlaps ``start`` to ``end``."""
        index = bisect_right(self._starts, start)
        return bool(
            (index and self._ends[index - 1] > start) or (index < len(self._starts) and self._starts[index] < end)
        )

    def within(self, start: int, end: int) -> Iterator[DamagedRange]:
        """The parts of the ranges that lie within ``start`` to ``end``."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            low, high = max(self._starts[index], start), min(self._ends[index], end)
            if low < high:
                yield DamagedRange(low, high, bool(self._unverifiable[index]))
            index += 1

    def moved(self, offset: int, size: int, unit: int) -> DamagedRanges:
        """The parts within ``offset`` to ``offset + size``, counted from there, widened to whole units of ``unit``
        bytes; ``left_out`` is the same."""
        result = DamagedRanges()
        result.left_out = self.left_out
        last = 0
        for start, end, unverifiable in self.within(offset, offset + size):
            low = max((start - offset) // unit * unit, last)
            high = min(-(-(end - offset) // unit) * unit, size)
            if low < high:
                result.add(low, high, unverifiable)
                last = high
        return result

"""Contents that say what they are: every 32 bytes name the worker, the file, the generation and the offset.

So wrong data shows by itself whether it is stale, misplaced, or another worker's.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

CELL = 512
"""The period of records in bytes."""
_RECORD = struct.Struct("<4sIIIQQ")
"""Magic, worker, file, generation, the cell's offset, and a number mixed from the last two."""
_MAGIC = b"soak"
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def stream(worker: int, file: int, generation: int, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file's contents in one generation."""
    first, last = start // CELL, -(-end // CELL)
    data = b"".join(
        _RECORD.pack(_MAGIC, worker, file, generation, cell * CELL, (cell + 1) * (generation + 1) * _GOLDEN & _MASK)
        * (CELL // _RECORD.size)
        for cell in range(first, last)
    )
    return data[start - first * CELL : end - first * CELL]


def describe(data: bytes, position: int) -> str:
    """The record at ``position``, in words. Records begin at multiples of 32."""
    record = data[position - position % _RECORD.size :][: _RECORD.size]
    if not record.strip(b"\0"):
        return "zeros"
    if len(record) == _RECORD.size and record.startswith(_MAGIC):
        _, worker, file, generation, offset, _ = _RECORD.unpack(record)
        return f"worker {worker}'s file {file}, generation {generation}, from offset {offset}"
    return f"the bytes {record[:16].hex()}"


class Contents:
    """The expected contents of a file: a size, and extents (start, end, generation) between which there are zeros.

    Args:
        worker, file: its owner, for the records.
        size: its size in generation 1.
    """

    def __init__(self, worker: int, file: int, size: int = 0) -> None:
        self.worker = worker
        self.file = file
        self.size = size
        self.extents: list[tuple[int, int, int]] = [(0, size, 1)] if size else []

    @property
    def held(self) -> int:
        """Bytes that are not holes."""
        return sum(end - start for start, end, _ in self.extents)

    def put(self, start: int, end: int, generation: int) -> None:
        """Record that a generation was written from ``start`` to ``end``."""
        if end > start:
            self.extents = sorted([*self._without(start, end), (start, end, generation)])
            self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        """Record that the file was made shorter or longer."""
        self.extents = list(self._without(size, max(size, self.size)))
        self.size = size

    def _without(self, start: int, end: int) -> list[tuple[int, int, int]]:
        left = [(s, min(e, start), g) for s, e, g in self.extents if s < start]
        return left + [(max(s, end), e, g) for s, e, g in self.extents if e > end]

    def expected(self, start: int, end: int) -> bytes:
        """The expected data of that range; shorter at the end of the file."""
        end = min(end, self.size)
        parts: list[bytes] = []
        position = start
        index = max(bisect_right(self.extents, (start, _MASK, 0)) - 1, 0)
        for first, last, generation in self.extents[index:]:
            first, last = max(first, position), min(last, end)
            if first < last:
                parts.append(bytes(first - position))
                parts.append(stream(self.worker, self.file, generation, first, last))
                position = last
        parts.append(bytes(max(end - position, 0)))
        return b"".join(parts)

    def difference(self, found: bytes, start: int, end: int) -> str:
        """The difference of ``found``, read from ``start`` to ``end``; "" if there is none."""
        # Compare whole records.
        expected = self.expected(start, end)
        if found == expected:
            return ""
        if len(found) != len(expected):
            return f"a read of {end - start} bytes at offset {start} gave {len(found)} bytes, not {len(expected)}"
        at = next(index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
        wrong = sum(one != other for one, other in zip(found, expected, strict=True))
        pad = bytes(start % _RECORD.size)
        is_, should = (describe(pad + data, len(pad) + at) for data in (found, expected))
        return f"offset {start + at}: {is_}, instead of {should} ({wrong} of {len(found)} bytes are wrong)"

"""Offsets at the indirection boundaries of every block size, and contents of files made of pieces."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

# Offsets and contents


@dataclass(frozen=True)
class At:
    """An offset or size: a number of blocks and bytes from one of the places where the block map changes its shape."""

    level: int = 0
    blocks: int = 0
    extra: int = 0

    def resolve(self, block_size: int) -> int:
        return max(0, boundaries(block_size)[self.level] + self.blocks * block_size + self.extra)


def boundaries(block_size: int) -> tuple[int, ...]:
    """The start; where the single, double (and its second leaf), and triple indirect blocks (and its second branch)
    begin; far out in the triple indirect block; and where sizes need ``large_file``."""
    per_block = block_size // 4
    single, double, triple = 12, 12 + per_block, 12 + per_block + per_block**2
    blocks = (0, single, double, double + per_block, triple, triple + per_block**2, triple + 4 * per_block**2 + 5)
    return (*(block * block_size for block in blocks), 1 << 31)


BEFORE, AFTER, SMALL = 4, 20, 1 << 18
"""Blocks around each boundary in which ``At`` and a write from it stay; the size up to which a file is read whole."""


def windows(size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file of ``size`` bytes in which operations can have left data: offset and length, in order."""
    if size <= SMALL:
        yield 0, size
        return
    starts = sorted((*boundaries(block_size), size))
    end = 0
    for start in starts:
        first, last = max(end, start - BEFORE * block_size), min(size, start + AFTER * block_size)
        if first < last:
            yield first, last - first
            end = last


def pattern(fill: int, length: int) -> bytes:
    """Data that shows its position at every byte."""
    return hashlib.shake_128(bytes([fill])).digest(length)


CHUNK = 4096


@dataclass
class Content:
    """The bytes of a file, mostly holes."""

    size: int = 0
    chunks: defaultdict[int, bytearray] = field(default_factory=lambda: defaultdict(lambda: bytearray(CHUNK)))

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts = []
        while offset < end:
            number, start = divmod(offset, CHUNK)
            count = min(CHUNK - start, end - offset)
            parts.append(self.chunks[number][start : start + count] if number in self.chunks else bytes(count))
            offset += count
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        self.size = max(self.size, offset + len(data) if data else 0)
        while data:
            number, start = divmod(offset, CHUNK)
            piece, data = data[: CHUNK - start], data[CHUNK - start :]
            self.chunks[number][start : start + len(piece)] = piece
            offset += len(piece)

    def punch(self, offset: int, length: int) -> None:
        """Zero a part, as far as there is one."""
        end = min(offset + length, self.size)
        for number, chunk in self.chunks.items():
            first, last = max(offset - number * CHUNK, 0), min(end - number * CHUNK, CHUNK)
            if first < last:
                chunk[first:last] = bytes(last - first)

    def truncate(self, size: int) -> None:
        for number in [number for number in self.chunks if number * CHUNK + CHUNK > size]:
            kept = max(0, size - number * CHUNK)
            if kept:
                self.chunks[number][kept:] = bytes(CHUNK - kept)
            else:
                del self.chunks[number]
        self.size = size

"""Bitmaps: one block a group for blocks and one for inodes; bit n is bit n % 8 of byte n // 8, 1 means in use.

It handles a run of bits as a Python integer, and skips bits in use 256 bytes at a time: neither takes a loop over bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from mystfuse.ext2.blocks import Block

_IN_USE = b"\xff" * 256


class Bitmap:
    """The first ``size`` bits of a bitmap block; those behind count as in use and are left as they are.

    Args:
        block: changed in place by ``set`` and ``clear``, which need a bytearray.
    """

    def __init__(self, block: Block, size: int) -> None:
        self._block = block
        self._size = size

    def find_free_run(self, start: int, longest: int) -> tuple[int, int]:
        """The first run of free bits at or behind ``start``: (its first bit, its length, at most ``longest``).

        Its length is 0 if there is none.
        """
        if start >= self._size:
            return 0, 0
        block = self._block
        position = start >> 3
        used = block[position] | (1 << (start & 7)) - 1
        if used == 0xFF:
            position += 1
            while block.startswith(_IN_USE, position):
                position += len(_IN_USE)
            used = int.from_bytes(block[position : position + len(_IN_USE)], "little")
        first = position * 8 + (~used & used + 1).bit_length() - 1
        if first >= self._size:
            return 0, 0
        if longest == 1:
            return first, 1
        longest = min(longest, self._size - first)
        used = self._bits(first, longest)
        return first, (used & -used).bit_length() - 1 if used else longest

    def are_set(self, first: int, count: int) -> bool:
        """Whether all of ``count`` bits from ``first`` on are in use."""
        return self._bits(first, count) == (1 << count) - 1

    def set(self, first: int, count: int) -> None:
        """Mark ``count`` bits from ``first`` on as in use."""
        if count == 1:
            assert isinstance(self._block, bytearray)
            self._block[first >> 3] |= 1 << (first & 7)
        else:
            self._flip(first, (1 << count) - 1 & ~self._bits(first, count))

    def clear(self, runs: Sequence[tuple[int, int]]) -> bool:
        """Mark runs (first bit, count) as free; False, and nothing done, if one of the bits is free already."""
        for index, (first, count) in enumerate(runs):
            if not self.are_set(first, count):
                for done, length in runs[:index]:
                    self._flip(done, (1 << length) - 1)
                return False
            self._flip(first, (1 << count) - 1)
        return True

    def _bits(self, first: int, count: int) -> int:
        """``count`` bits from ``first`` on, the first one lowest."""
        part = self._block[first >> 3 : first + count + 7 >> 3]
        return int.from_bytes(part, "little") >> (first & 7) & (1 << count) - 1

    def _flip(self, first: int, bits: int) -> None:
        """Change those bits of the block, from ``first`` on, that are 1 in ``bits``."""
        block = self._block
        assert isinstance(block, bytearray)
        bits <<= first & 7
        start, end = first >> 3, (first >> 3) + (bits.bit_length() + 7 >> 3)
        changed = int.from_bytes(block[start:end], "little") ^ bits
        block[start:end] = changed.to_bytes(end - start, "little")

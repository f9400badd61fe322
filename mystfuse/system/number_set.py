"""Large sets of numbers, one bit each where they are dense."""

from __future__ import annotations

from collections.abc import Iterator

_BITS = 1 << 15
"""Of a chunk, which takes 4 KiB."""


class NumberSet:
    """A set of integers from 0 on: 4 KiB for each 32768 of them among which there is a member."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Add a number; returns whether it is new."""
        key, bit = divmod(number, _BITS)
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = bytearray(_BITS // 8)
        mask = 1 << (bit & 7)
        if chunk[bit >> 3] & mask:
            return False
        chunk[bit >> 3] |= mask
        return True

    def add_run(self, first: int, count: int) -> None:
        """Add ``count`` numbers from ``first`` on."""
        while count > 0:
            key, bit = divmod(first, _BITS)
            length = min(count, _BITS - bit)
            chunk = self._chunks.get(key)
            bits = 0 if chunk is None else int.from_bytes(chunk, "little")
            bits |= ((1 << length) - 1) << bit
            self._chunks[key] = bytearray(bits.to_bytes(_BITS // 8, "little"))
            first, count = first + length, count - length

    def __contains__(self, number: int) -> bool:
        chunk = self._chunks.get(number // _BITS)
        return chunk is not None and bool(chunk[number % _BITS >> 3] >> (number & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        """The numbers in ascending order."""
        for key in sorted(self._chunks):
            yield from _members(self._chunks[key], key * _BITS)

    def without(self, other: NumberSet) -> Iterator[int]:
        """The numbers that are not in the other set, in ascending order."""
        for key in sorted(self._chunks):
            chunk, others = self._chunks[key], other._chunks.get(key)
            if others is not None:
                bits = int.from_bytes(chunk, "little") & ~int.from_bytes(others, "little")
                chunk = bytearray(bits.to_bytes(_BITS // 8, "little"))
            yield from _members(chunk, key * _BITS)

    def bits(self, first: int, count: int) -> int:
        """Which of ``count`` numbers from ``first`` on are members: the lowest bit stands for the first."""
        found = shift = 0
        while shift < count:
            key, bit = divmod(first + shift, _BITS)
            chunk = self._chunks.get(key)
            if chunk is not None:
                found |= int.from_bytes(chunk, "little") >> bit << shift
            shift += _BITS - bit
        return found & ((1 << count) - 1)


def runs_of_bits(bits: int, first: int) -> Iterator[tuple[int, int]]:
    """The runs of ones: (``first`` and the number of the lowest bit, bits)."""
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & bits + 1).bit_length() - 1
        yield first + skip, length
        bits >>= length
        first += skip + length


def _members(chunk: bytearray, base: int) -> Iterator[int]:
    for index, byte in enumerate(chunk):
        while byte:
            low = byte & -byte
            yield base + 8 * index + low.bit_length() - 1
            byte ^= low

"""The common interface of the native kernels and of the fallback in Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

Bytes = bytes | bytearray | memoryview

MAX_SALT_SIZE = 256
"""Bytes, as in a verity superblock."""

SECTOR_SIZE = 512
"""The unit of a sector's number in bytes, for all sector sizes."""
SECTOR_SIZES = (512, 1024, 2048, 4096)
AES_BLOCK = 16
IV_BITS = {"plain64": 64, "plain": 32, "essiv:sha256": 64, "": 64}
"""Bits of a sector's number that its initialization vector is made of."""

NOT_FOUND = -1
UNUSUAL = -2
"""Of a directory block: the caller has to parse it, since it is unusual, or this is the fallback."""
NO_ROOM = -1
"""Of a directory block: no entry has room behind it."""


HashBlockKey = tuple[int, int]
"""(level, index within the level); level 0 has the digests of the data."""


class TreeShape(NamedTuple):
    """Where the blocks of a hash tree lie."""

    data_blocks: int
    data_block_size: int
    hash_block_size: int
    digests_per_block: int
    levels: Sequence[tuple[int, int]]
    """Each one's offset in bytes, and its number of hash blocks, the lowest first."""


TOUCHED_UNIT = 16 << 10
"""Bytes of the parts of an image of which is noted when they were touched; more if there would be more parts than
``MAX_UNITS``."""
MAX_UNITS = 1 << 26
MAX_TOUCHED = 1 << 16
"""Parts that are noted."""


class SectorCipher(Protocol):
    """A cipher that encrypts each sector by itself. Threads may share it."""

    def decrypt(self, data: Bytes, sector: int) -> bytes | memoryview:
        """Decrypt consecutive whole sectors.

        Args:
            sector: the first one's place in 512-byte units.

        Raises:
            ValueError: a part of a sector.
        """
        ...

    def decrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into memory of the caller: ``data`` itself, or as many bytes that do not overlap it.

        Raises:
            ValueError: a part of a sector, or ``out`` has another size, is read-only, or overlaps ``data``.
        """
        ...

    def encrypt(self, data: Bytes, sector: int) -> bytes | memoryview:
        """Encrypt consecutive whole sectors; as ``decrypt``."""
        ...

    def encrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into memory of the caller; as ``decrypt_into``."""
        ...


def count_blocks(data: memoryview, block_size: int) -> int:
    """How many blocks there are in ``data``; ValueError if the last one is not whole."""
    if block_size <= 0 or data.nbytes % block_size:
        raise ValueError(f"{data.nbytes} bytes are not whole blocks of {block_size}")
    return data.nbytes // block_size


def check_salt(salt: bytes) -> None:
    """ValueError if it is too long."""
    if len(salt) > MAX_SALT_SIZE:
        raise ValueError(f"a salt of {len(salt)} bytes; {MAX_SALT_SIZE} are allowed")


def check_expected(expected: memoryview, count: int, digest_size: int) -> None:
    """ValueError if those are not the digests of this many blocks."""
    if expected.nbytes != count * digest_size:
        raise ValueError(f"{expected.nbytes} bytes are not {count} digests of {digest_size}")


def check_size(data: Bytes, size: int) -> None:
    """ValueError if there are not so many bytes."""
    if memoryview(data).nbytes != size:
        raise ValueError(f"{memoryview(data).nbytes} bytes instead of {size}")


def check_runs(runs: Sequence[tuple[int, int]], shape: TreeShape) -> None:
    """ValueError unless those are offsets and lengths of whole data blocks, in order, none overlapping."""
    unit, least = shape.data_block_size, 0
    for offset, length in runs:
        end = offset + length
        if offset < least or length <= 0 or offset % unit or length % unit or end > shape.data_blocks * unit:
            raise ValueError(f"{length} bytes at {offset} are not the next whole blocks of {unit}")
        least = end


def ranges_of(units: Iterable[int], unit: int) -> list[tuple[int, int]]:
    """The offsets and lengths in bytes of parts of an image, in this order, neighbours merged.

    Args:
        units: their numbers.
        unit: bytes of each.
    """
    ranges: list[tuple[int, int]] = []
    for number in units:
        if ranges and sum(ranges[-1]) == number * unit:
            ranges[-1] = ranges[-1][0], ranges[-1][1] + unit
        else:
            ranges.append((number * unit, unit))
    return ranges


def check_sectors(data: memoryview, sector_size: int) -> None:
    """ValueError if the last one is not whole."""
    if data.nbytes % sector_size:
        raise ValueError(f"{data.nbytes} bytes are not whole sectors of {sector_size}")


def check_sector_size(sector_size: int) -> None:
    """ValueError if dm-crypt has no such sectors."""
    if sector_size not in SECTOR_SIZES:
        raise ValueError(f"sectors of {sector_size} bytes")


def writable(out: bytearray | memoryview, size: int) -> memoryview:
    """``out`` as bytes to write to; ValueError if it has another size than ``size``, or is read-only."""
    view = memoryview(out).cast("B")
    if view.readonly or len(view) != size:
        raise ValueError(f"{len(view)} bytes, writable or not, for a result of {size}")
    return view

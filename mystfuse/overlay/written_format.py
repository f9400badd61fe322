"""The layout of ``.mystfuse/written``: which blocks a mount has written, and their bytes. See docs/formats.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mystfuse.errors import FormatError

MAGIC = b"mystwrit"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ")
"""magic, version, block_size, count, data_offset"""
NUMBER = struct.Struct("<I")
_ALIGNMENT = 4096
_BLOCK_SIZES = frozenset(1024 << shift for shift in range(7))


@dataclass(frozen=True, slots=True)
class WrittenHeader:
    """The first 32 bytes. The numbers of ``count`` blocks follow, of four bytes each, and from ``data_offset`` on the
    blocks, in the same order."""

    block_size: int
    """Bytes."""
    count: int
    """Blocks."""

    @property
    def data_offset(self) -> int:
        """Bytes: the first multiple of 4096, or of larger blocks, behind the numbers."""
        alignment = max(self.block_size, _ALIGNMENT)
        return -(-(HEADER.size + self.count * NUMBER.size) // alignment) * alignment

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.data_offset + self.count * self.block_size

    def pack(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, self.block_size, self.count, self.data_offset)

    @classmethod
    def parse(cls, data: bytes) -> WrittenHeader:
        """Parse 32 bytes.

        Raises:
            FormatError: they are something else, or of another version.
        """
        if len(data) < HEADER.size:
            raise FormatError(f"the header of the written blocks has {len(data)} of {HEADER.size} bytes")
        magic, version, block_size, count, data_offset = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FormatError(f"these are no written blocks: their magic is {magic!r}")
        if version != VERSION:
            raise FormatError(f"written blocks in version {version} of the format; only {VERSION} is known")
        header = cls(block_size, count)
        if block_size not in _BLOCK_SIZES or count >= 1 << 32 or data_offset != header.data_offset:
            raise FormatError(f"written blocks: {count} blocks of {block_size} bytes at {data_offset} are impossible")
        return header

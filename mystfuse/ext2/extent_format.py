"""The layout of extent trees: nodes of a header and entries of 12 bytes, in i_block or in a block.

Source: Documentation/filesystems/ext4/ifork.rst, and fs/ext4/ext4_extents.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAX_DEPTH = 5
"""fs/ext4/extents.c, EXT4_MAX_EXTENT_DEPTH."""
MAX_LOGICAL = 1 << 32
"""Blocks of a file."""
MAGIC = 0xF30A
HEADER = struct.Struct("<HHHHI")  # eh_magic eh_entries eh_max eh_depth eh_generation
LEAF = struct.Struct("<IHHI")  # ee_block ee_len ee_start_hi ee_start_lo
INDEX = struct.Struct("<IIHH")  # ei_block ei_leaf_lo ei_leaf_hi ei_unused
KEY = struct.Struct("<I")  # ee_block or ei_block
HEADER_SIZE = 12
ENTRY_SIZE = 12
ROOT_SIZE = 60
"""Bytes of i_block."""
LONGEST_WRITTEN = 32768
"""Blocks of a written extent (EXT_INIT_MAX_LEN). ee_len beyond it is that of an unwritten extent, and so much more."""
LONGEST_UNWRITTEN = 32767
"""Blocks of an unwritten one (EXT_UNWRITTEN_MAX_LEN)."""


class Piece(NamedTuple):
    """Consecutive blocks of a file that one extent maps, or a part of them; or a hole."""

    logical: int
    """Its first block in the file."""
    length: int
    """Blocks."""
    physical: int
    """The number of its first block; 0 for a hole."""
    is_written: bool
    """False, too, for blocks that are allocated and count as zeros."""

    @property
    def end(self) -> int:
        return self.logical + self.length

    def part(self, first: int, end: int) -> Piece:
        """Those of its blocks that are blocks ``first`` to ``end`` (excluded) of the file."""
        first, end = max(first, self.logical), min(end, self.end)
        physical = self.physical and self.physical + first - self.logical
        return Piece(first, end - first, physical, self.is_written)

    def numbers(self) -> range:
        """The numbers of its blocks; not for holes."""
        return range(self.physical, self.physical + self.length)

    def pack(self) -> bytes:
        """The entry of a leaf."""
        length = self.length if self.is_written else self.length + LONGEST_WRITTEN
        return LEAF.pack(self.logical, length, self.physical >> 32, self.physical & 0xFFFFFFFF)


def pack_index(logical: int, number: int) -> bytes:
    """The entry of an index node for the block ``number`` of the tree, whose first entry is for block ``logical`` of
    the file."""
    return INDEX.pack(logical, number & 0xFFFFFFFF, number >> 32, 0)


def room_of(size: int) -> int:
    """How many entries fit into a node of ``size`` bytes."""
    return (size - HEADER_SIZE) // ENTRY_SIZE


EMPTY_ROOT = HEADER.pack(MAGIC, 0, room_of(ROOT_SIZE), 0, 0).ljust(ROOT_SIZE, b"\0")
"""i_block of an inode without blocks (fs/ext4/extents.c, ext4_ext_tree_init)."""

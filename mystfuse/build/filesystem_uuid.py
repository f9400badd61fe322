"""Another UUID for a file system that is being copied: in the superblock, and in its copies in block groups."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from uuid import UUID

from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET
from mystfuse.ext2.superblock import Superblock

# Offsets in a superblock: kernel, fs/ext2/ext2.h, struct ext2_super_block.
_S_MAGIC, _S_UUID = 56, 104
_UUID_SIZE = 16

Read = Callable[[int, int], bytes]
"""Gives bytes by position and length, exactly as many."""


def with_uuid(read: Read, superblock: Superblock, uuid: UUID) -> Read:
    """``read`` with another UUID in each superblock that a piece holds as a whole. What is not one (a copy that is
    damaged) stays as it is."""
    places = [SUPERBLOCK_OFFSET, *_copies(superblock)]

    def read_with_uuid(position: int, length: int) -> bytes:
        data = read(position, length)
        last = position + len(data) - _S_UUID - _UUID_SIZE
        for place in places[bisect_left(places, position) : bisect_right(places, last)]:
            start = place - position
            if int.from_bytes(data[start + _S_MAGIC : start + _S_MAGIC + 2], "little") == EXT2_SUPER_MAGIC:
                data = data[: start + _S_UUID] + uuid.bytes + data[start + _S_UUID + _UUID_SIZE :]
        return data

    return read_with_uuid


def _copies(superblock: Superblock) -> list[int]:
    """Where the copies of the superblock are, in bytes."""
    return [
        (superblock.s_first_data_block + group * superblock.s_blocks_per_group) * superblock.block_size
        for group in range(1, superblock.groups_count)
        if superblock.group_has_superblock(group)
    ]

"""Block groups: the descriptor table, and where the inode tables are."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.superblock import GROUP_DESCRIPTOR_SIZE, Superblock

_LAYOUT = struct.Struct("<IIIHHH14x")


@dataclass(frozen=True, slots=True)
class GroupDescriptor:
    """32 bytes, little-endian: kernel, fs/ext2/ext2.h ``struct ext2_group_desc``."""

    bg_block_bitmap: int
    bg_inode_bitmap: int
    bg_inode_table: int
    bg_free_blocks_count: int
    bg_free_inodes_count: int
    bg_used_dirs_count: int


def descriptor_block(superblock: Superblock, group: int) -> int:
    """The number of the block that holds the descriptor of a group; the table follows the superblock's block.

    Raises:
        CorruptFilesystem: it would be outside the file system.
    """
    number = superblock.s_first_data_block + 1 + group * GROUP_DESCRIPTOR_SIZE // superblock.block_size
    if not superblock.is_data_block(number):
        raise CorruptFilesystem(f"group {group}: its descriptor would be outside, in block {number}")
    return number


def read_group_descriptor(superblock: Superblock, blocks: Blocks, group: int) -> GroupDescriptor:
    """The descriptor of group number ``group``.

    Raises:
        BlocksMissing: its block is not in memory.
        CorruptFilesystem: its inode table is not inside the file system.
    """
    block = blocks.block(descriptor_block(superblock, group))
    descriptor = GroupDescriptor(*_LAYOUT.unpack_from(block, group * GROUP_DESCRIPTOR_SIZE % superblock.block_size))
    table_blocks = -(-superblock.s_inodes_per_group * superblock.s_inode_size // superblock.block_size)
    first, last = descriptor.bg_inode_table, descriptor.bg_inode_table + table_blocks - 1
    if not (superblock.is_data_block(first) and superblock.is_data_block(last)):
        raise CorruptFilesystem(f"group {group}: bg_inode_table {first} to {last} is outside the file system")
    return descriptor

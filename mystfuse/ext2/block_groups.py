"""Block groups: the descriptor table, and where a group's own metadata is."""

from __future__ import annotations

import struct
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks, Transaction
from mystfuse.ext2.superblock import GROUP_DESCRIPTOR_SIZE, Superblock

_LAYOUT = struct.Struct("<IIIHHH14x")
_COUNTS = struct.Struct("<HHH")  # bg_free_blocks_count bg_free_inodes_count bg_used_dirs_count
_COUNTS_OFFSET = 12
_MAX_GROUP_PLACES = 65536
MAX_GROUPS_COUNTED = 1 << 19
"""What the largest file system of 1 KiB blocks has, unless its groups were made smaller: 16 MiB of descriptors."""
_COUNTS_OF_DESCRIPTOR = struct.Struct("<12xHHH14x")


class GroupDescriptor(NamedTuple):
    """32 bytes, little-endian: kernel, fs/ext2/ext2.h ``struct ext2_group_desc``."""

    bg_block_bitmap: int
    bg_inode_bitmap: int
    bg_inode_table: int
    bg_free_blocks_count: int
    bg_free_inodes_count: int
    bg_used_dirs_count: int


class GroupCounts(NamedTuple):
    """What is free in a group, and how many directories have their inode there."""

    free_blocks: int
    free_inodes: int
    used_dirs: int


def group_first_block(superblock: Superblock, group: int) -> int:
    """The number of a group's first block."""
    return superblock.s_first_data_block + group * superblock.s_blocks_per_group


def group_size(superblock: Superblock, group: int) -> int:
    """How many blocks a group has; the last one may be shorter."""
    first = group_first_block(superblock, group)
    return min(superblock.s_blocks_per_group, superblock.s_blocks_count - first)


def descriptor_block(superblock: Superblock, group: int) -> int:
    """The number of the block that holds the descriptor of a group; the table follows the superblock's block.

    Raises:
        CorruptFilesystem: it would be outside the file system.
    """
    return _locate_descriptor(superblock, group)[0]


def _locate_descriptor(superblock: Superblock, group: int) -> tuple[int, int]:
    """Where the descriptor of a group is: (block number, byte offset in the block)."""
    position, offset = divmod(group * GROUP_DESCRIPTOR_SIZE, superblock.block_size)
    number = superblock.s_first_data_block + 1 + position
    if not number < superblock.s_blocks_count:
        raise CorruptFilesystem(f"group {group}: its descriptor would be outside, in block {number}")
    return number, offset


def read_group_descriptor(superblock: Superblock, blocks: Blocks, group: int) -> GroupDescriptor:
    """The descriptor of group number ``group``.

    Raises:
        BlocksMissing: its block is not in memory.
        CorruptFilesystem: its bitmaps or its inode table are not inside the group.
    """
    number, offset = _locate_descriptor(superblock, group)
    descriptor = GroupDescriptor._make(_LAYOUT.unpack_from(blocks.block(number), offset))
    places = superblock.group_places.get(group)
    if places is None or descriptor[:3] != places[:3]:
        _check_places(superblock, group, descriptor)
        if len(superblock.group_places) >= _MAX_GROUP_PLACES:
            superblock.group_places.clear()
        superblock.group_places[group] = descriptor
    return descriptor


def read_group_places(superblock: Superblock, blocks: Blocks, group: int) -> GroupDescriptor:
    """The same, if it is for where bitmaps and inode table are, which never changes: the counts may be old."""
    return superblock.group_places.get(group) or read_group_descriptor(superblock, blocks, group)


def _check_places(superblock: Superblock, group: int, descriptor: GroupDescriptor) -> None:
    first = group_first_block(superblock, group)
    end = first + group_size(superblock, group)
    # Without flex_bg they are in the group itself (fs/ext4/super.c, ext4_check_descriptors).
    for name, number, count in (
        ("bg_block_bitmap", descriptor.bg_block_bitmap, 1),
        ("bg_inode_bitmap", descriptor.bg_inode_bitmap, 1),
        ("bg_inode_table", descriptor.bg_inode_table, superblock.table_blocks),
    ):
        if not (first <= number and number + count <= end and superblock.is_data_block(number)):
            raise CorruptFilesystem(f"group {group}: {name} {number} is not inside the group, {first} to {end - 1}")


def read_all_counts(superblock: Superblock, blocks: Blocks) -> list[GroupCounts]:
    """The counts of every group, in order.

    Raises:
        BlocksMissing: naming every block of the descriptor table that is not in memory.
        UnsupportedFeature: there are more groups than we look through.
    """
    if superblock.groups_count > MAX_GROUPS_COUNTED:
        raise UnsupportedFeature(
            f"nothing new can be placed among {superblock.groups_count} groups; {MAX_GROUPS_COUNTED} are the most"
        )
    first = descriptor_block(superblock, 0)
    descriptor_block(superblock, superblock.groups_count - 1)
    table = b"".join(blocks.all(range(first, first + superblock.descriptor_blocks)))
    table = table[: superblock.groups_count * GROUP_DESCRIPTOR_SIZE]
    return [GroupCounts(*counts) for counts in _COUNTS_OF_DESCRIPTOR.iter_unpack(table)]


def change_group_counts(
    superblock: Superblock, transaction: Transaction, group: int, blocks: int = 0, inodes: int = 0, directories: int = 0
) -> None:
    """Add ``blocks`` and ``inodes`` to what is free in a group, and ``directories`` to what it has of them.

    Raises:
        CorruptFilesystem: a count would leave its range.
    """
    number, offset = _locate_descriptor(superblock, group)
    block = transaction.change(number)
    offset += _COUNTS_OFFSET
    free_blocks, free_inodes, used_dirs = _COUNTS.unpack_from(block, offset)
    free_blocks, free_inodes, used_dirs = free_blocks + blocks, free_inodes + inodes, used_dirs + directories
    if not (
        0 <= free_blocks <= group_size(superblock, group)
        and 0 <= free_inodes <= superblock.s_inodes_per_group
        and 0 <= used_dirs <= superblock.s_inodes_per_group
    ):
        raise CorruptFilesystem(
            f"group {group}: its counts would be {free_blocks} blocks, {free_inodes} inodes, {used_dirs} directories"
        )
    _COUNTS.pack_into(block, offset, free_blocks, free_inodes, used_dirs)


def metadata_runs(superblock: Superblock, group: int, descriptor: GroupDescriptor) -> list[tuple[int, int]]:
    """Where a group's own metadata is: (first bit in its block bitmap, count)."""
    first = group_first_block(superblock, group)
    runs = [
        (descriptor.bg_block_bitmap - first, 1),
        (descriptor.bg_inode_bitmap - first, 1),
        (descriptor.bg_inode_table - first, superblock.table_blocks),
    ]
    if superblock.group_has_superblock(group):
        runs.append((0, 1 + superblock.descriptor_blocks + superblock.s_reserved_gdt_blocks))
    return runs

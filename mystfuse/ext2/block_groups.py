"""Block groups: the table of group descriptors, and where a group's own metadata is."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks, Transaction
from mystfuse.ext2.superblock import GROUP_DESCRIPTOR_SIZE, Superblock

_LAYOUT = struct.Struct("<IIIHHH14x")
_COUNTS = struct.Struct("<HHH")  # bg_free_blocks_count bg_free_inodes_count bg_used_dirs_count
_COUNTS_OFFSET = 12
_COUNTS_OF_DESCRIPTOR = struct.Struct("<12xHHH14x")
_MAX_PLACES = 65536
"""Groups whose places are cached."""
MAX_GROUPS_COUNTED = 1 << 19
"""Groups of the largest file system with blocks of 1 KiB and full groups: 16 MiB of descriptors."""


class GroupDescriptor(NamedTuple):
    """32 bytes, little-endian: kernel, fs/ext2/ext2.h ``struct ext2_group_desc``."""

    bg_block_bitmap: int
    bg_inode_bitmap: int
    bg_inode_table: int
    bg_free_blocks_count: int
    bg_free_inodes_count: int
    bg_used_dirs_count: int


class GroupCounts(NamedTuple):
    """The free blocks and inodes of a group, and the number of directories with an inode there."""

    free_blocks: int
    free_inodes: int
    used_dirs: int


class GroupTable:
    """The group descriptors of a file system. It caches the places of bitmaps and inode tables, which never change."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self._last_group = superblock.groups_count - 1
        self.known_places: dict[int, GroupDescriptor] = {}
        """Descriptors as they were when their places were checked; their counts may be old."""
        self._metadata: dict[int, list[tuple[int, int]]] = {}
        """``metadata_runs`` of the same groups, which every write needs."""

    def first_block(self, group: int) -> int:
        """The number of a group's first block."""
        return self.superblock.s_first_data_block + group * self.superblock.s_blocks_per_group

    def size(self, group: int) -> int:
        """How many blocks a group has; the last one may be shorter."""
        if group < self._last_group:
            return self.superblock.s_blocks_per_group
        return self.superblock.s_blocks_count - self.first_block(group)

    def locate_block(self, number: int) -> tuple[int, int]:
        """The group of a block, and its bit in the group's block bitmap."""
        return divmod(number - self.superblock.s_first_data_block, self.superblock.s_blocks_per_group)

    def locate_inode(self, ino: int) -> tuple[int, int]:
        """The group of an inode, and its index in the group's inode table and inode bitmap."""
        return divmod(ino - 1, self.superblock.s_inodes_per_group)

    def block_near_inode(self, ino: int) -> int:
        """The first block of an inode's group: the place of its blocks when nothing else decides (fs/ext2/inode.c,
        ext2_find_near)."""
        return self.first_block(self.locate_inode(ino)[0])

    def _locate(self, group: int) -> tuple[int, int]:
        """Where the descriptor of a group is: (block number, byte offset in the block). The table follows the
        superblock's block."""
        position, offset = divmod(group * GROUP_DESCRIPTOR_SIZE, self.superblock.block_size)
        number = self.superblock.s_first_data_block + 1 + position
        if not number < self.superblock.s_blocks_count:
            raise CorruptFilesystem(
                f"group {group}: its descriptor would be outside the file system, in block {number}"
            )
        return number, offset

    def want_descriptors(self, blocks: Blocks, groups: Iterable[int]) -> None:
        """Make sure that the descriptors of these groups are in memory.

        Raises:
            BlocksMissing: naming every block that is needed.
            CorruptFilesystem: one of them would be outside the file system.
        """
        blocks.want({self._locate(group)[0] for group in groups})

    def want_places(self, blocks: Blocks, groups: Iterable[int]) -> None:
        """Make sure that the descriptors for ``places`` are in memory; raises as ``want_descriptors``."""
        self.want_descriptors(blocks, (group for group in groups if group not in self.known_places))

    def descriptor(self, blocks: Blocks, group: int) -> GroupDescriptor:
        """The descriptor of group number ``group``.

        Raises:
            BlocksMissing: its block is not in memory.
            CorruptFilesystem: its bitmaps or its inode table are not inside the group.
        """
        number, offset = self._locate(group)
        descriptor = GroupDescriptor._make(_LAYOUT.unpack_from(blocks.block(number), offset))
        places = self.known_places.get(group)
        if places is None or descriptor[:3] != places[:3]:
            self._check_places(group, descriptor)
            if len(self.known_places) >= _MAX_PLACES:
                self.known_places.clear()
                self._metadata.clear()
            # In this order: memory may run out in between, and places that are known are not looked at again.
            self._metadata[group] = self._find_metadata(group, descriptor)
            self.known_places[group] = descriptor
        return descriptor

    def group_counts(self, blocks: Blocks, group: int) -> tuple[int, int, int]:
        """The present free blocks, free inodes and directories of a group, as its descriptor has them.

        Raises:
            BlocksMissing, CorruptFilesystem: as ``want_descriptors``.
        """
        number, offset = self._locate(group)
        free_blocks, free_inodes, used_dirs = _COUNTS.unpack_from(blocks.block(number), offset + _COUNTS_OFFSET)
        return free_blocks, free_inodes, used_dirs

    def places(self, blocks: Blocks, group: int) -> GroupDescriptor:
        """The same for the places of bitmaps and inode table alone; the counts may be old."""
        return self.known_places.get(group) or self.descriptor(blocks, group)

    def _check_places(self, group: int, descriptor: GroupDescriptor) -> None:
        first = self.first_block(group)
        end = first + self.size(group)
        # Without flex_bg they are in the group itself (fs/ext4/super.c, ext4_check_descriptors).
        for name, number, count in (
            ("bg_block_bitmap", descriptor.bg_block_bitmap, 1),
            ("bg_inode_bitmap", descriptor.bg_inode_bitmap, 1),
            ("bg_inode_table", descriptor.bg_inode_table, self.superblock.table_blocks),
        ):
            if not (first <= number and number + count <= end and self.superblock.is_data_block(number)):
                raise CorruptFilesystem(f"group {group}: {name} {number} is not inside the group, {first} to {end - 1}")

    def metadata_runs(self, blocks: Blocks, group: int) -> list[tuple[int, int]]:
        """Where a group's own metadata is: (first bit in its block bitmap, count).

        Raises:
            BlocksMissing, CorruptFilesystem: as ``descriptor``.
        """
        runs = self._metadata.get(group)
        if runs is None:
            self.descriptor(blocks, group)
            runs = self._metadata[group]
        return runs

    def _find_metadata(self, group: int, descriptor: GroupDescriptor) -> list[tuple[int, int]]:
        superblock, first = self.superblock, self.first_block(group)
        runs = [
            (descriptor.bg_block_bitmap - first, 1),
            (descriptor.bg_inode_bitmap - first, 1),
            (descriptor.bg_inode_table - first, superblock.table_blocks),
        ]
        if superblock.group_has_superblock(group):
            runs.append((0, 1 + superblock.descriptor_blocks + superblock.s_reserved_gdt_blocks))
        return runs

    def counts(self, blocks: Blocks) -> list[GroupCounts]:
        """The counts of every group, in order.

        Raises:
            BlocksMissing: naming every block of the descriptor table that is not in memory.
            UnsupportedFeature: there are more groups than mystfuse searches.
        """
        groups = self.superblock.groups_count
        if groups > MAX_GROUPS_COUNTED:
            raise UnsupportedFeature(
                f"the file system has {groups} groups; mystfuse writes to file systems of at most {MAX_GROUPS_COUNTED}"
            )
        first, _ = self._locate(0)
        last, _ = self._locate(groups - 1)
        table = b"".join(blocks.all(range(first, last + 1)))[: groups * GROUP_DESCRIPTOR_SIZE]
        return [GroupCounts(*counts) for counts in _COUNTS_OF_DESCRIPTOR.iter_unpack(table)]

    def change_counts(
        self, transaction: Transaction, group: int, blocks: int = 0, inodes: int = 0, directories: int = 0
    ) -> None:
        """Add ``blocks`` and ``inodes`` to a group's free counts, and ``directories`` to its count of directories.

        Raises:
            CorruptFilesystem: a count would leave its range.
        """
        number, offset = self._locate(group)
        block = transaction.change(number)
        offset += _COUNTS_OFFSET
        free_blocks, free_inodes, used_dirs = _COUNTS.unpack_from(block, offset)
        free_blocks, free_inodes, used_dirs = free_blocks + blocks, free_inodes + inodes, used_dirs + directories
        if not (
            0 <= free_blocks <= self.size(group)
            and 0 <= free_inodes <= self.superblock.s_inodes_per_group
            and 0 <= used_dirs <= self.superblock.s_inodes_per_group
        ):
            raise CorruptFilesystem(
                f"group {group}: its counts would be {free_blocks}, {free_inodes} (free blocks, inodes) and {used_dirs}"
            )
        _COUNTS.pack_into(block, offset, free_blocks, free_inodes, used_dirs)

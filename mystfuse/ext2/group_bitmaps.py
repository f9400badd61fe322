"""The bitmaps of groups, as operations change them: with ext4, their checksums are kept, and those that have never been
written come to life.

Source: Documentation/filesystems/ext4/blockgroup.rst, and fs/ext4/balloc.c (ext4_init_block_bitmap), ialloc.c
(__ext4_new_inode, ext4_mark_bitmap_end).
"""

from __future__ import annotations

from functools import partial

from mystfuse.ext2.bitmap import Bitmap
from mystfuse.ext2.block_groups import BLOCK_UNINIT, INODE_UNINIT, GroupTable
from mystfuse.ext2.blocks import Block, Transaction


class GroupBitmaps:
    """The block and inode bitmaps of a file system."""

    def __init__(self, groups: GroupTable) -> None:
        self._groups = groups
        self._superblock = groups.superblock
        self._is_extended = groups.superblock.is_extended
        self._checked_inodes: set[int] = set()
        """Groups whose inode bitmap is as its checksum says, and initialised."""

    def blocks_in_use(self, transaction: Transaction, group: int) -> Block:
        """A group's block bitmap, to be looked at before anything is changed in the group.

        Raises:
            BlocksMissing, MystfuseError: it is not in memory, damaged, or its checksum does not match.
        """
        if not self._is_extended:
            return transaction.block(self._groups.places(transaction, group).bg_block_bitmap)
        return self._groups.block_bitmap(transaction, group) or self._new_block_bitmap(transaction, group)

    def change_blocks(self, transaction: Transaction, group: int) -> bytearray:
        """The same, to be changed in place."""
        number = self._groups.places(transaction, group).bg_block_bitmap
        if not self._is_extended:
            return transaction.change(number)
        if self._groups.clear_flag(transaction, group, BLOCK_UNINIT):
            block = transaction.create(number)
            block[:] = self._new_block_bitmap(transaction, group)
        else:
            block = transaction.change(number)
        if self._superblock.checksums is not None:
            transaction.seal_later(number, partial(self._groups.seal_block_bitmap, transaction, group))
        return block

    def _new_block_bitmap(self, transaction: Transaction, group: int) -> bytearray:
        """That of a group in which only metadata is in use; what is behind the group's end counts as in use."""
        block = bytearray(self._superblock.block_size)
        bitmap = Bitmap(block, 8 * len(block))
        for first, count in self._groups.metadata_runs(transaction, group):
            bitmap.set(first, count)
        size = self._groups.size(group)
        bitmap.set(size, 8 * len(block) - size)
        return block

    def inodes_in_use(self, transaction: Transaction, group: int) -> Block:
        """A group's inode bitmap, to be looked at before anything is changed in the group; raises as
        ``blocks_in_use``."""
        number = self._groups.places(transaction, group).bg_inode_bitmap
        if not self._is_extended or group in self._checked_inodes:
            return transaction.block(number)
        descriptor = self._groups.descriptor(transaction, group)
        if descriptor.bg_flags & INODE_UNINIT:
            return self._new_inode_bitmap()
        block = transaction.block(number)
        checksums = self._superblock.checksums
        if checksums is not None and transaction.is_sealed(number):
            bits, is_wide = self._superblock.s_inodes_per_group, self._groups.has_wide_checksums
            checksums.check_bitmap("inode bitmap", group, bits, block, descriptor.bg_inode_bitmap_csum, is_wide)
        transaction.on_commit.append(partial(self._checked_inodes.add, group))
        return block

    def change_inodes(self, transaction: Transaction, group: int) -> bytearray:
        """The same, to be changed in place."""
        number = self._groups.places(transaction, group).bg_inode_bitmap
        if not self._is_extended:
            return transaction.change(number)
        if self._groups.clear_flag(transaction, group, INODE_UNINIT):
            block = transaction.create(number)
            block[:] = self._new_inode_bitmap()
        else:
            self.inodes_in_use(transaction, group)
            block = transaction.change(number)
        if self._superblock.checksums is not None:
            transaction.seal_later(number, partial(self._groups.seal_inode_bitmap, transaction, group))
        return block

    def _new_inode_bitmap(self) -> bytearray:
        block = bytearray(self._superblock.block_size)
        inodes = self._superblock.s_inodes_per_group
        Bitmap(block, 8 * len(block)).set(inodes, 8 * len(block) - inodes)
        return block

    def is_new_inode(self, transaction: Transaction, group: int, index: int) -> bool:
        """Whether no inode from place ``index`` of a group's inode table on has ever been used, so that the table there
        says nothing."""
        return self._is_extended and index >= self._groups.inodes_used(transaction, group)

    def note_inode(self, transaction: Transaction, group: int, index: int) -> None:
        """An inode of the group is in use now."""
        if self._is_extended:
            self._groups.use_inodes(transaction, group, index + 1)

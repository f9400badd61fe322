"""Where a file system has its journal: in an inode of its own, reserved for it.

Layout: fs/ext4/ext4.h, ``struct ext4_super_block``.
"""

from __future__ import annotations

import struct
from uuid import UUID

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode

_JOURNAL = struct.Struct("<16sII")  # s_journal_uuid s_journal_inum s_journal_dev
_JOURNAL_OFFSET = 208


def read_journal_inode(filesystem: FileSystem, blocks: Blocks) -> Inode:
    """The inode of the file system's journal.

    Raises:
        BlocksMissing: the superblock, or the inode's block, is not in memory.
        CorruptFilesystem: there is no journal, or its inode is broken.
        UnsupportedFeature: the journal is on a device of its own.
    """
    superblock = filesystem.superblock
    if "has_journal" not in superblock.features:
        raise CorruptFilesystem("the file system needs_recovery, but has no journal: run e2fsck on a copy of the image")
    number, offset = superblock.location
    uuid, ino, device = _JOURNAL.unpack_from(blocks.block(number), offset + _JOURNAL_OFFSET)
    if device or not ino:
        raise UnsupportedFeature(
            f"the file system needs recovery from an external journal (UUID {UUID(bytes=uuid)}), which mystfuse does "
            "not read: e2fsck -fy, where that is at hand, puts it into a copy of the image"
        )
    inode = filesystem.inode_table.parse_reserved(blocks, ino)
    if not inode.is_regular or not inode.i_links_count:
        raise CorruptFilesystem(f"inode {ino}, the journal's, is not that of a file")
    if inode.size < superblock.block_size:
        raise CorruptFilesystem(f"inode {ino}, the journal's, has {inode.size} bytes, and no block")
    return inode

"""The orphan list of a journaled file system: inodes that a crash kept from being freed, or cut to their size.

``s_last_orphan`` of the superblock is the first one, and i_dtime of each the next. Source:
Documentation/filesystems/ext4/orphan.rst, and fs/ext4/orphan.c, ext4_orphan_cleanup.
"""

from __future__ import annotations

import struct

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.change import Change
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock, change_superblock
from mystfuse.ext2.truncate import MAX_TRIMMED, trim_blocks, zero_tail

_INO = struct.Struct("<I")
_LAST_ORPHAN_OFFSET = 232


def first_orphan(superblock: Superblock, blocks: Blocks) -> int:
    """The first inode of the list, as it is now; 0 if it is empty."""
    number, offset = superblock.location
    (ino,) = _INO.unpack_from(blocks.block(number), offset + _LAST_ORPHAN_OFFSET)
    return int(ino)


def set_first_orphan(change: Change, ino: int) -> None:
    """Begin the list with another inode, 0 for none: those before it are dealt with."""
    block, offset = change_superblock(change.superblock, change.transaction)
    _INO.pack_into(block, offset + _LAST_ORPHAN_OFFSET, ino)


def next_orphan(filesystem: FileSystem, blocks: Blocks, ino: int) -> tuple[int, bool]:
    """The inode that follows ``ino`` in the list, 0 for none; and whether ``ino`` itself still has a name.

    Args:
        ino: is in ``FileSystem.orphans``, so that it may have no name.

    Raises:
        CorruptFilesystem: one of the two cannot be in the list.
    """
    superblock = filesystem.superblock
    inode = filesystem.inode(blocks, ino)
    for number in (ino, inode.i_dtime):
        if number and not superblock.s_first_ino <= number <= superblock.s_inodes_count:
            raise CorruptFilesystem(f"inode {number} cannot be an orphan")
    return inode.i_dtime, bool(inode.i_links_count)


def finish_truncation(change: Change, ino: int) -> bool:
    """Free what a file has behind its end; True when all of it is free.

    Raises:
        BlocksMissing, MystfuseError
    """
    inode = change.inode(ino)
    if inode.is_regular and not inode.is_inline:
        change.transaction.gives_back = True
        keep = -(-inode.size // change.superblock.block_size)
        inode, end = trim_blocks(change, inode, keep, MAX_TRIMMED)
        if end > keep:
            change.write_inode(inode)
            return False
        zero_tail(change, inode)
    change.write_inode(inode._replace(i_dtime=0))
    return True

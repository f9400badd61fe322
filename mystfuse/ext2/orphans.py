"""Orphans: inodes that have lost their last name, and are freed when they are not in use any more."""

from __future__ import annotations

from mystfuse.ext2.change import Change
from mystfuse.ext2.symlink import is_fast
from mystfuse.ext2.truncate import MAX_TRIMMED, trim_blocks
from mystfuse.ext2.xattr_changes import drop_block


def release(change: Change, ino: int) -> bool:
    """Free an orphan's blocks and inode; True when all are free.

    Raises:
        BlocksMissing, MystfuseError
    """
    filesystem, transaction, superblock = change.filesystem, change.transaction, change.superblock
    transaction.gives_back = True
    inode = change.inode(ino)
    if inode.i_links_count:
        transaction.released.add(ino)
        return True
    has_map = inode.is_regular or inode.is_directory or (inode.is_symlink and not is_fast(superblock, inode))
    if has_map:
        inode, end = trim_blocks(change, inode, 0, MAX_TRIMMED)
        if end:
            size = min(inode.size, end * superblock.block_size)
            change.write_inode(inode._replace(size=size))
            return False
    inode = drop_block(change, inode)
    filesystem.allocator.free_inode(transaction, inode)
    seconds = change.now_ns // 1_000_000_000
    inode = inode._replace(size=0, i_blocks=0, i_dtime=seconds & 0x7FFFFFFF)
    change.write_inode(inode)
    transaction.released.add(ino)
    transaction.on_commit.append(lambda: filesystem.forget(ino))
    return True

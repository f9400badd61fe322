"""Giving back inodes that have neither names nor blocks any more."""

from __future__ import annotations

from functools import partial

from mystfuse.ext2.change import Change
from mystfuse.ext2.inode import Inode


def free_inodes(change: Change, inodes: list[Inode]) -> None:
    """Free inodes that have no blocks any more.

    Raises:
        BlocksMissing, MystfuseError
    """
    filesystem, transaction = change.filesystem, change.transaction
    filesystem.allocator.free_inodes(transaction, inodes)
    seconds = change.now_ns // 1_000_000_000 & 0x7FFFFFFF
    for inode in inodes:
        change.write_inode(inode._replace(size=0, i_blocks=0, i_dtime=seconds))
        transaction.released.add(inode.ino)
        transaction.on_commit.append(partial(filesystem.forget, inode.ino))

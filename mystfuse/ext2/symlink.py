"""Symbolic links: short targets live in i_block (fast), longer ones in a block of their own (slow)."""

from __future__ import annotations

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks, BlocksMissing
from mystfuse.ext2.constants import PATH_MAX
from mystfuse.ext2.encrypted_names import shown_target
from mystfuse.ext2.inline_data import read_inline
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import may_refer


def read_target(superblock: Superblock, blocks: Blocks, inode: Inode) -> bytes:
    """The target of a symbolic link.

    Raises:
        BlocksMissing: the target's block is not in memory.
        CorruptFilesystem: its length is invalid.
    """
    if inode.is_inline:
        return _check_target(inode, read_inline(inode))
    fast = is_fast(superblock, inode)
    longest = len(inode.i_block) - 1 if fast else min(superblock.block_size, PATH_MAX) - 1
    if not 0 < inode.size <= longest:
        raise CorruptFilesystem(f"symlink inode {inode.ino}: its target of {inode.size} bytes is invalid")
    if fast:
        target = inode.i_block[: inode.size]
        return shown_target(inode.ino, target) if inode.is_encrypted else target
    (number,) = map_blocks(superblock, blocks, inode, 0, 1)
    if not number:
        raise CorruptFilesystem(f"symlink inode {inode.ino}: its target is a hole")
    try:
        target = bytes(blocks.block(number)[: inode.size])
    except BlocksMissing as missing:
        raise missing.of("target of symbolic link inode", inode.ino)  # noqa: B904  # it is the same exception
    return shown_target(inode.ino, target) if inode.is_encrypted else target


def _check_target(inode: Inode, target: bytes) -> bytes:
    if not 0 < inode.size == len(target) < PATH_MAX:
        raise CorruptFilesystem(f"symlink inode {inode.ino}: its target of {inode.size} bytes is invalid")
    return target


def is_fast(superblock: Superblock, inode: Inode) -> bool:
    """Whether a symbolic link has no block of its own (fs/ext4/inode.c, ext4_inode_is_fast_symlink)."""
    if may_refer(superblock):
        # i_blocks counts values of attributes, too, that are in inodes of their own.
        return 0 < inode.size < len(inode.i_block)
    xattr_sectors = superblock.block_size * superblock.blocks_per_cluster // 512 if inode.i_file_acl else 0
    return inode.i_blocks <= xattr_sectors

"""Orphans: inodes that have lost their last name, and are freed when they are not in use any more."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from mystfuse.errors import MystfuseError
from mystfuse.ext2.blocks import BlocksMissing
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_N_BLOCKS, EXT2_NDIR_BLOCKS
from mystfuse.ext2.extent_changes import blocks_in_root
from mystfuse.ext2.extent_format import EMPTY_ROOT
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.release_inodes import free_inodes
from mystfuse.ext2.symlink import is_fast
from mystfuse.ext2.truncate import MAX_TRIMMED, trim_blocks
from mystfuse.ext2.xattr_changes import drop_attributes, has_value_inodes

MAX_TOGETHER = 64
"""Orphans freed in one transaction."""
_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")
_NO_BLOCKS = bytes(4 * EXT2_N_BLOCKS)
_FEW_BLOCKS = 64
"""Blocks of a small file with extents."""


def release(change: Change, ino: int) -> bool:
    """Free an orphan's blocks and inode; True when all are free.

    Raises:
        BlocksMissing, MystfuseError
    """
    transaction = change.transaction
    transaction.gives_back = True
    inode = change.inode(ino)
    if inode.i_links_count:
        transaction.released.add(ino)
        return True
    if _has_map(change, inode):
        inode, end = trim_blocks(change, inode, 0, MAX_TRIMMED)
        if end:
            size = min(inode.size, end * change.superblock.block_size)
            change.write_inode(inode._replace(size=size))
            return False
    inode = drop_attributes(change, inode)
    free_inodes(change, [inode])
    return True


def release_together(change: Change, inos: Iterable[int], is_held: Callable[[int], bool]) -> set[int]:
    """Free the blocks and inodes of those orphans that take few steps: small files, and nothing has to be fetched for
    them. Returns these; nothing is done about the others.

    Args:
        is_held: whether an inode must not be changed now.

    Raises:
        MystfuseError: one of the orphans is broken, which ``release`` will find out.
    """
    transaction, allocator = change.transaction, change.allocator
    transaction.gives_back = True
    if transaction.find(change.superblock.location[0]) is None:
        return set()
    inodes: list[Inode] = []
    numbers: list[int] = []
    for ino in inos:
        if is_held(ino):
            continue
        try:
            inode = change.inode(ino)
            pointers = _few_blocks(change, inode)
            if inode.i_links_count or inode.i_file_acl or pointers is None:
                continue
            if has_value_inodes(change.superblock, inode):
                continue
            if not allocator.may_free_now(transaction, ino, pointers):
                continue
        except (BlocksMissing, MystfuseError):
            continue
        inodes.append(inode.mapped(0, EMPTY_ROOT if inode.has_extents else _NO_BLOCKS) if pointers else inode)
        numbers += pointers
    allocator.free_blocks(transaction, numbers)
    free_inodes(change, inodes)
    return {inode.ino for inode in inodes}


def _few_blocks(change: Change, inode: Inode) -> list[int] | None:
    """The blocks of an inode that are mapped in the inode itself, few of them; None if there are others."""
    if not _has_map(change, inode):
        return []
    if inode.has_extents:
        return blocks_in_root(change, inode, _FEW_BLOCKS)
    roots = _ROOTS.unpack(inode.i_block)
    if any(roots[EXT2_NDIR_BLOCKS:]):
        return None
    return [pointer for pointer in roots[:EXT2_NDIR_BLOCKS] if pointer]


def _has_map(change: Change, inode: Inode) -> bool:
    if inode.is_inline:
        return False
    return inode.is_regular or inode.is_directory or (inode.is_symlink and not is_fast(change.superblock, inode))

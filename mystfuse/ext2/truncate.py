"""Changing the size of a file, and freeing its blocks from the end: truncate(2), and what a removed file held."""

from __future__ import annotations

import struct
from errno import EFBIG, EINVAL, EISDIR, EPERM
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import check_not_encrypted, map_block, max_file_size
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_N_BLOCKS, EXT2_NDIR_BLOCKS
from mystfuse.ext2.extent_changes import trim_extents
from mystfuse.ext2.inline_changes import resize_inline
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import note_file_size

_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")
MAX_TRIMMED = 4096
"""Blocks freed in one transaction: more are freed in several, each of which leaves the file system consistent."""
_LEAST_AHEAD = 8
"""Indirect blocks that are fetched together, when a few of them would hold all that a transaction frees."""


def truncate(change: Change, inode: Inode, size: int) -> tuple[Inode, bool]:
    """Change the size of a regular file.

    Returns:
        The inode, not written, and whether the size is reached: a long file is cut in several steps.

    Raises:
        OSError: EFBIG, past the largest file size; EISDIR or EINVAL, not a regular file; EPERM, it has fs-verity.
        BlocksMissing, MystfuseError
    """
    transaction, superblock = change.transaction, change.superblock
    if not inode.is_regular:
        raise OSError(EISDIR if inode.is_directory else EINVAL, f"inode {inode.ino} is not a regular file")
    if inode.has_verity:
        raise OSError(EPERM, f"inode {inode.ino} has fs-verity")
    check_not_encrypted(inode)
    largest = max_file_size(superblock, inode)
    if size > largest:
        raise OSError(EFBIG, f"{size} bytes are more than the largest file size {largest}")
    now = change.now_ns
    if inode.is_inline:
        inode, is_resized = resize_inline(change, inode, size)
        if is_resized:
            return inode.touched(now), True
    is_reached = True
    # Behind the end of a file with extents there may be blocks.
    if size > inode.size or (size == inode.size and not inode.has_extents):
        zero_tail(change, inode)
        note_file_size(superblock, transaction, size)
        reached = size
    else:
        transaction.gives_back = True
        keep = -(-size // superblock.block_size)
        inode, end = trim_blocks(change, inode, keep, MAX_TRIMMED)
        is_reached = end <= keep
        reached = size if is_reached else min(end * superblock.block_size, inode.size)
    inode = inode._replace(size=reached, mtime_ns=now, ctime_ns=now)
    if is_reached:
        zero_tail(change, inode)
    return inode, is_reached


def zero_tail(change: Change, inode: Inode) -> None:
    """Zero the rest of a file's last block, so that a file that grows shows no old bytes."""
    transaction, block_size = change.transaction, change.superblock.block_size
    logical, used = divmod(inode.size, block_size)
    if not used:
        return
    number = map_block(change.superblock, transaction, inode, logical)
    if number and any(transaction.block(number)[used:]):
        change.allocator.check_writable(transaction, [number])
        transaction.change(number)[used:] = bytes(block_size - used)


class Trimmed(NamedTuple):
    """The outcome of ``trim_blocks``."""

    inode: Inode
    end: int
    """Every block of the file from here on is a hole now."""


def trim_blocks(change: Change, inode: Inode, keep: int, most: int) -> Trimmed:
    """Free blocks of a file from its end, down to its first ``keep`` blocks or until about ``most`` are freed.

    Raises:
        BlocksMissing, CorruptFilesystem
    """
    if inode.has_extents:
        return Trimmed(*trim_extents(change, inode, keep, most))
    block_size = change.superblock.block_size
    per_block = block_size // 4
    roots = list(_ROOTS.unpack(inode.i_block))
    trimmer = _Trimmer(change, inode, most)
    end = keep
    for depth in (3, 2, 1):
        base = EXT2_NDIR_BLOCKS + sum(per_block**level for level in range(1, depth))
        slot = EXT2_NDIR_BLOCKS + depth - 1
        if roots[slot] and keep < base + per_block**depth and not trimmer.is_full:
            roots[slot], reached = trimmer.trim(roots[slot], depth, max(keep - base, 0))
            if trimmer.is_full:
                end = max(base + reached, keep)
    if not trimmer.is_full:
        for index in range(EXT2_NDIR_BLOCKS - 1, keep - 1, -1):
            if roots[index]:
                trimmer.freed.append(roots[index])
                roots[index] = 0
    if len(set(trimmer.freed)) != len(trimmer.freed):
        raise CorruptFilesystem(f"inode {inode.ino} has a block twice")
    change.allocator.free_blocks(change.transaction, trimmer.freed)
    i_blocks = inode.i_blocks_after(-len(trimmer.freed), block_size)
    inode = inode._replace(i_block=_ROOTS.pack(*roots), i_blocks=i_blocks)
    return Trimmed(inode, end)


class _Trimmer:
    """Walks subtrees of a block map from their end, collecting blocks to free."""

    def __init__(self, change: Change, inode: Inode, most: int) -> None:
        self.freed: list[int] = []
        self._is_stopped = False
        self._superblock = change.superblock
        self._allocator = change.allocator
        self._transaction = change.transaction
        self._inode = inode
        self._most = most
        self._per_block = self._superblock.block_size // 4

    @property
    def is_full(self) -> bool:
        return self._is_stopped or len(self.freed) >= self._most

    def trim(self, node: int, depth: int, keep: int) -> tuple[int, int]:
        """Free the blocks under indirect block ``node`` behind its first ``keep`` data blocks, the last first.

        Returns:
            The new pointer to the node, and the first data block that is free now, counted from the
            node's own first.
        """
        if not self._superblock.is_data_block(node):
            raise CorruptFilesystem(f"inode {self._inode.ino}: block pointer {node} is outside the file system")
        span = self._per_block ** (depth - 1)
        pointers = list(struct.unpack(f"<{self._per_block}I", self._transaction.block(node)))
        first = keep // span
        later: set[int] = set()
        if depth > 1:
            present = [pointer for pointer in pointers[first:] if pointer and self._superblock.is_data_block(pointer)]
            # Enough if they are full. Otherwise the next transaction frees the rest: fetched one by one they would be
            # more misses than an operation may have.
            enough = max(self._most // self._per_block + 2, _LEAST_AHEAD)
            self._transaction.want(present[-enough:])
            later = set(present[:-enough]).difference(present[-enough:])
        lowest = self._per_block
        for index in range(self._per_block - 1, first - 1, -1):
            pointer = pointers[index]
            if pointer:
                self._is_stopped = self._is_stopped or pointer in later
                if self.is_full:
                    lowest = index + 1
                    break
                if depth == 1:
                    self.freed.append(pointer)
                    pointers[index] = 0
                else:
                    pointers[index], reached = self.trim(pointer, depth - 1, max(keep - index * span, 0))
                    if self.is_full and pointers[index]:
                        self._store(node, pointers)
                        return node, index * span + reached
            lowest = index
        reached = max(lowest * span, keep)
        if reached == 0 or not any(pointers):
            self.freed.append(node)
            return 0, reached
        self._store(node, pointers)
        return node, reached

    def _store(self, node: int, pointers: list[int]) -> None:
        self._allocator.check_writable(self._transaction, [node])
        struct.pack_into(f"<{self._per_block}I", self._transaction.change(node), 0, *pointers)

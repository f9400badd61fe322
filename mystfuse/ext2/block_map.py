"""The block map of an inode: 12 direct pointers, then single, double and triple indirect blocks.

Source: Documentation/filesystems/ext2.rst and fs/ext2/inode.c (ext2_block_to_path). A pointer of 0 is a hole.

``map_blocks``, ``map_block``, ``map_runs`` and ``map_stretch`` serve inodes with extents too, and those without blocks:
contents in the inode itself (``inline_data``) look like a hole here, and encrypted ones are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import reduce
from itertools import count as counting
from itertools import groupby
from operator import sub
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, EncryptedContents
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing
from mystfuse.ext2.constants import (
    EXT2_N_BLOCKS,
    EXT2_NDIR_BLOCKS,
    EXT4_ENCRYPT_FL,
    EXT4_EXTENTS_FL,
    EXT4_INLINE_DATA_FL,
)
from mystfuse.ext2.extent_search import ExtentSearch
from mystfuse.ext2.extents import find_stretch, map_extents
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")
_POINTER = struct.Struct("<I")
NO_MAP_FLAGS = EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL | EXT4_ENCRYPT_FL
"""i_flags of inodes that have no block map, or one to other things than their contents."""
_OWNER = "indirect block of inode"
_ENDLESS = 1 << 63
"""Blocks: more than any file has."""


class Run(NamedTuple):
    """Consecutive blocks of a file that are consecutive on disk, or a hole."""

    physical: int
    """Block number of the first; 0 for a hole."""
    length: int
    """Blocks."""


def map_blocks(superblock: Superblock, blocks: Blocks, inode: Inode, first: int, count: int) -> list[int]:
    """The block pointers of ``count`` blocks of a file from block ``first`` on; 0 for holes.

    Raises:
        BlocksMissing: naming all the indirect blocks of one level that are needed.
        CorruptFilesystem: a pointer outside the file system, or a block past what a map can hold.
    """
    if inode.i_flags & NO_MAP_FLAGS:
        return _map_unusual(superblock, blocks, inode, first, count)
    end = first + count
    direct = _ROOTS.unpack(inode.i_block)
    pointers = list(direct[first : min(end, EXT2_NDIR_BLOCKS)])
    if end <= EXT2_NDIR_BLOCKS:
        check_pointers(superblock, inode, pointers)
        return pointers
    per_block = superblock.block_size // 4
    if first >= EXT2_NDIR_BLOCKS and count > 0:
        path = block_path(inode, per_block, first)
        if path[-1] + count <= per_block:
            pointers = _map_leaf(superblock, blocks, inode, path, count)
            check_pointers(superblock, inode, pointers)
            return pointers
    base = EXT2_NDIR_BLOCKS
    for depth in (1, 2, 3):
        span = per_block**depth
        low, high = max(first, base), min(end, base + span)
        if low < high:
            root = direct[EXT2_NDIR_BLOCKS + depth - 1]
            pointers += _map_subtree(superblock, blocks, inode, root, depth, low - base, high - base)
        base += span
    if end > base:
        raise CorruptFilesystem(f"inode {inode.ino}: block {end - 1} is past the {base} that a map can hold")
    check_pointers(superblock, inode, pointers)
    return pointers


def _map_unusual(superblock: Superblock, blocks: Blocks, inode: Inode, first: int, count: int) -> list[int]:
    """The same for an inode without a block map."""
    if inode.is_regular:
        check_not_encrypted(inode)
    if inode.is_inline:
        return [0] * count
    if inode.has_extents:
        return map_extents(superblock, blocks, inode, first, count)
    return map_blocks(superblock, blocks, inode._replace(i_flags=inode.i_flags & ~NO_MAP_FLAGS), first, count)


def check_not_encrypted(inode: Inode) -> None:
    """Raise EncryptedContents if an inode's contents are encrypted (fs/crypto/hooks.c, fscrypt_file_open)."""
    if inode.is_encrypted:
        raise EncryptedContents(f"inode {inode.ino} is encrypted, and mystfuse has no key for it")


def map_block(superblock: Superblock, blocks: Blocks, inode: Inode, logical: int) -> int:
    """The pointer of one block; see ``map_blocks``."""
    if inode.i_flags & NO_MAP_FLAGS:
        if not inode.has_extents or inode.is_inline:
            return _map_unusual(superblock, blocks, inode, logical, 1)[0]
        if inode.is_regular:
            check_not_encrypted(inode)
        return ExtentSearch(superblock, blocks, inode).find(logical)
    path = block_path(inode, superblock.block_size // 4, logical)
    number: int
    (number,) = _POINTER.unpack_from(inode.i_block, 4 * path[0])
    for index in path[1:]:
        if not number:
            return 0
        (number,) = _POINTER.unpack_from(indirect_block(superblock, blocks, inode, number), 4 * index)
    if number and not superblock.is_data_block(number):
        check_pointers(superblock, inode, [number])
    return number


def map_runs(superblock: Superblock, blocks: Blocks, inode: Inode, first: int, count: int) -> list[Run]:
    """The same as ``map_blocks``, as runs: their lengths add up to ``count``."""
    pointers = map_blocks(superblock, blocks, inode, first, count)
    if pointers and pointers[0] and pointers == list(range(pointers[0], pointers[0] + count)):
        return [Run(pointers[0], count)]
    runs: list[Run] = []
    if 0 not in pointers:
        # Without a Python loop: within a run, pointer and position rise together.
        position = 0
        for _, group in groupby(map(sub, pointers, counting())):
            length = len(list(group))
            runs.append(Run(pointers[position], length))
            position += length
        return runs
    for pointer in pointers:
        if runs:
            physical, length = runs[-1]
            if (pointer == physical + length) if physical else not pointer:
                runs[-1] = Run(physical, length + 1)
                continue
        runs.append(Run(pointer, 1))
    return runs


def max_file_size(superblock: Superblock, inode: Inode) -> int:
    """Bytes of the largest file that a regular file's map can be that of."""
    return superblock.max_extents_size if inode.i_flags & EXT4_EXTENTS_FL else superblock.max_file_size


class Stretch(NamedTuple):
    """A part of a file that is all data, or all hole."""

    is_data: bool
    length: int
    """Blocks, or bytes: the function that returns it says which."""


def map_stretch(superblock: Superblock, blocks: Blocks, inode: Inode, first: int) -> Stretch:
    """The data or the hole that a file has from its block ``first`` on, in blocks, as far as one table of pointers
    tells: the next stretch may be of the same kind.

    A hole takes one look at a zero pointer, however large it is.

    Raises:
        BlocksMissing: naming one indirect block.
        CorruptFilesystem: a pointer outside the file system, or a block past what a map can hold.
    """
    if inode.i_flags & NO_MAP_FLAGS:
        if inode.is_inline:
            # What its size may say behind the contents are zeros, however many.
            return Stretch(False, _ENDLESS) if first else Stretch(True, 1)
        check_not_encrypted(inode)
        return Stretch(*find_stretch(superblock, blocks, inode, first))
    table: Sequence[int] = _ROOTS.unpack(inode.i_block)
    per_block = superblock.block_size // 4
    path = block_path(inode, per_block, first)
    if len(path) == 1:
        return _stretch_in(superblock, inode, table[:EXT2_NDIR_BLOCKS], first)
    # Only this root: the next one maps another number of blocks.
    table = table[path[0] : path[0] + 1]
    for level, index in zip(range(len(path) - 1, 0, -1), (0, *path[1:-1]), strict=True):
        if not table[index]:
            span = per_block**level
            position = reduce(lambda position, index: position * per_block + index, path[1:])
            return Stretch(False, _count_holes(table, index) * span - position % span)
        table = struct.unpack(f"<{per_block}I", indirect_block(superblock, blocks, inode, table[index]))
    return _stretch_in(superblock, inode, table, path[-1])


def block_path(inode: Inode, per_block: int, logical: int) -> tuple[int, ...]:
    """The way to the pointer of a block: the index in i_block, then in each indirect block (fs/ext2/inode.c,
    ext2_block_to_path).

    Args:
        per_block: pointers in an indirect block.

    Raises:
        CorruptFilesystem: the block is past what a map can hold.
    """
    if logical < EXT2_NDIR_BLOCKS:
        return (logical,)
    position = logical - EXT2_NDIR_BLOCKS
    if position < per_block:
        return EXT2_NDIR_BLOCKS, position
    position -= per_block
    if position < per_block**2:
        return EXT2_NDIR_BLOCKS + 1, *divmod(position, per_block)
    position -= per_block**2
    if position < per_block**3:
        return EXT2_NDIR_BLOCKS + 2, position // per_block**2, *divmod(position % per_block**2, per_block)
    raise CorruptFilesystem(f"inode {inode.ino}: block {logical} is past what a map can hold")


def _stretch_in(superblock: Superblock, inode: Inode, table: Sequence[int], index: int) -> Stretch:
    """The stretch from entry ``index`` of a table of pointers to data blocks on."""
    if not table[index]:
        return Stretch(False, _count_holes(table, index))
    end = table.index(0, index) if 0 in table[index:] else len(table)
    check_pointers(superblock, inode, list(table[index:end]))
    return Stretch(True, end - index)


def _count_holes(table: Sequence[int], index: int) -> int:
    """How many pointers from ``index`` on are zero."""
    return next((position for position, pointer in enumerate(table[index:]) if pointer), len(table) - index)


def _map_leaf(superblock: Superblock, blocks: Blocks, inode: Inode, path: Sequence[int], count: int) -> list[int]:
    """``count`` pointers to data blocks that are in one indirect block, the first of them at the end of ``path``."""
    (node,) = _POINTER.unpack_from(inode.i_block, 4 * path[0])
    for index in path[1:-1]:
        if node:
            (node,) = _POINTER.unpack_from(indirect_block(superblock, blocks, inode, node), 4 * index)
    if not node:
        return [0] * count
    return list(struct.unpack_from(f"<{count}I", indirect_block(superblock, blocks, inode, node), 4 * path[-1]))


def indirect_block(superblock: Superblock, blocks: Blocks, inode: Inode, number: int) -> Block:
    """An indirect block of an inode.

    Raises:
        BlocksMissing: it is not in memory.
        CorruptFilesystem: it is outside the file system.
    """
    if not superblock.is_data_block(number):
        check_pointers(superblock, inode, [number])
    try:
        return blocks.block(number)
    except BlocksMissing as missing:
        raise missing.of(_OWNER, inode.ino)  # noqa: B904  # it is the same exception


def _map_subtree(
    superblock: Superblock, blocks: Blocks, inode: Inode, root: int, depth: int, low: int, high: int
) -> list[int]:
    """Pointers ``low`` to ``high`` (exclusive) of the data blocks under an indirect block, walked level by level."""
    per_block = superblock.block_size // 4
    nodes, first_node = [root], 0
    for level in range(depth - 1, -1, -1):
        span = per_block**level
        first_child, end_child = low // span, (high - 1) // span + 1
        check_pointers(superblock, inode, nodes)
        present = [node for node in nodes if node]
        try:
            tables = dict(zip(present, blocks.all(present), strict=True))
        except BlocksMissing as missing:
            raise missing.of(_OWNER, inode.ino)  # noqa: B904
        children: list[int] = []
        for index, node in enumerate(nodes, first_node):
            start = max(first_child - index * per_block, 0)
            stop = min(end_child - index * per_block, per_block)
            if node:
                children += struct.unpack_from(f"<{stop - start}I", tables[node], start * 4)
            else:
                children += [0] * (stop - start)
        nodes, first_node = children, first_child
    return nodes


def check_pointers(superblock: Superblock, inode: Inode, pointers: list[int]) -> None:
    """Raise CorruptFilesystem if one of these pointers of an inode, of which 0 stands for a hole, is outside the file
    system."""
    if not pointers or (max(pointers) < superblock.s_blocks_count and min(pointers) > superblock.s_first_data_block):
        return
    for pointer in pointers:
        if pointer and not superblock.is_data_block(pointer):
            raise CorruptFilesystem(f"inode {inode.ino}: block pointer {pointer} is outside the file system")

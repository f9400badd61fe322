"""Changing the block map of an inode: allocating blocks for a write. An inode with extents has ``extent_changes``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from errno import ENOSPC
from typing import NamedTuple

from mystfuse.ext2.block_map import (
    NO_MAP_FLAGS,
    block_path,
    check_not_encrypted,
    check_pointers,
    indirect_block,
    map_blocks,
)
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_N_BLOCKS, EXT2_NDIR_BLOCKS
from mystfuse.ext2.extent_changes import map_extents_for_writing
from mystfuse.ext2.inode import Inode

_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")
_POINTER = struct.Struct("<I")
_MOST_BLOCKS = 1 << 32


class Mapped(NamedTuple):
    """The outcome of ``map_for_writing``."""

    inode: Inode
    pointers: list[int]
    """Block numbers: fewer than requested if there is no room."""
    new: Set[int]
    """Those of them that were free before, or counted as zeros: their old contents in the image mean nothing."""


def map_for_writing(change: Change, inode: Inode, first: int, count: int, goal: int = 0) -> Mapped:
    """Block pointers for ``count`` blocks of a file from block ``first`` on; holes get blocks.

    Fewer pointers come back when the file system, or ``transaction.budget``, has room for fewer.

    Args:
        goal: the preferred block number, when the map itself gives none.

    Raises:
        BlocksMissing, CorruptFilesystem
    """
    if inode.i_flags & NO_MAP_FLAGS:
        check_not_encrypted(inode)
        return Mapped(*map_extents_for_writing(change, inode, first, count, goal))
    superblock, allocator, transaction = change.superblock, change.allocator, change.transaction
    if count == 1 and (one := _map_one(change, inode, first, goal)):
        return one
    mapped = map_blocks(superblock, transaction, inode, first, count)
    if any(mapped):
        allocator.check_writable(transaction, [pointer for pointer in mapped if pointer])
    del mapped[transaction.spend_for(mapped) :]
    if all(mapped):
        return Mapped(inode, mapped, frozenset())
    roots = list(_ROOTS.unpack(inode.i_block))
    pointers: list[int] = []
    new: set[int] = set()
    added = 0
    for leaf in _leaves(inode, superblock.block_size // 4, first, len(mapped)):
        present = mapped[leaf.logical - first : leaf.logical - first + leaf.length]
        holes = present.count(0)
        if holes:
            nodes = _path_nodes(transaction, roots, leaf) if leaf.path else []
            if any(nodes):
                allocator.check_writable(transaction, [node for node in nodes if node])
            missing_nodes = nodes.count(0)
            near = _goal(change, inode, pointers, nodes, goal)
            taken = _take(change, near, holes + missing_nodes)
            if len(taken) <= missing_nodes:
                # Not even one data block: free the blocks for its indirect blocks again.
                allocator.free_blocks(transaction, taken)
                taken = []
            else:
                added += len(taken)
                if missing_nodes:
                    nodes = _link_nodes(transaction, roots, leaf, nodes, taken[:missing_nodes])
                    del taken[:missing_nodes]
            new.update(taken)
            if len(taken) == len(present):
                present = taken
            else:
                filler = iter(taken)
                present = [pointer or next(filler, 0) for pointer in present]
            if taken:
                _store(transaction, roots, nodes, leaf, present)
        if 0 in present:
            pointers += present[: present.index(0)]
            new.intersection_update(pointers)
            break
        pointers += present
    inode = inode.mapped(inode.i_blocks_after(added, superblock.block_size), _ROOTS.pack(*roots))
    return Mapped(inode, pointers, new)


def _map_one(change: Change, inode: Inode, logical: int, goal: int) -> Mapped | None:
    """``map_for_writing`` of one block, in fewer steps; None if it needs an indirect block as well."""
    superblock, allocator, transaction = change.superblock, change.allocator, change.transaction
    path = block_path(inode, superblock.block_size // 4, logical)
    nodes: list[int] = []
    (pointer,) = _POINTER.unpack_from(inode.i_block, 4 * path[0])
    for index in path[1:]:
        if not pointer:
            return None
        nodes.append(pointer)
        (pointer,) = _POINTER.unpack_from(indirect_block(superblock, transaction, inode, pointer), 4 * index)
    if pointer:
        if not superblock.is_data_block(pointer):
            check_pointers(superblock, inode, [pointer])
        allocator.check_writable(transaction, [pointer])
    if not transaction.spend_for([pointer]):
        return Mapped(inode, [], frozenset())
    if pointer:
        return Mapped(inode, [pointer], frozenset())
    if nodes:
        allocator.check_writable(transaction, nodes)
    taken = _take(change, goal or _goal(change, inode, [], nodes, 0), 1)
    if not taken:
        return Mapped(inode, [], frozenset())
    i_block, slot = inode.i_block, 4 * path[-1]
    if nodes:
        _POINTER.pack_into(transaction.change(nodes[-1]), slot, taken[0])
    else:
        i_block = i_block[:slot] + _POINTER.pack(taken[0]) + i_block[slot + 4 :]
    return Mapped(inode.mapped(inode.i_blocks_after(1, superblock.block_size), i_block), taken, frozenset(taken))


def add_block(change: Change, inode: Inode, logical: int) -> tuple[Inode, int, bytearray]:
    """Give a directory or a symbolic link its block ``logical``, whatever room the overlay has for file data.

    Returns:
        The inode, not written, the block's number, and the block: zeros, to be filled in place.

    Raises:
        OSError: ENOSPC, there is no free block.
        BlocksMissing, CorruptFilesystem
    """
    transaction = change.transaction
    transaction.budget = max(transaction.budget, 1)
    inode, pointers, _ = map_for_writing(change, inode, logical, 1)
    if not pointers:
        raise OSError(ENOSPC, "no free block")
    return inode, pointers[0], transaction.create(pointers[0])


def _take(change: Change, goal: int, count: int) -> list[int]:
    """``Allocator.take_blocks`` of blocks whose numbers a block map can hold."""
    allocator, transaction = change.allocator, change.transaction
    taken = allocator.take_blocks(transaction, change.caller, goal, count)
    if change.superblock.s_blocks_count > _MOST_BLOCKS:
        allocator.free_blocks(transaction, [number for number in taken if number >= _MOST_BLOCKS])
        taken = [number for number in taken if number < _MOST_BLOCKS]
    return taken


class _Leaf(NamedTuple):
    """A range of a file whose pointers are next to each other: in i_block, or in one indirect block."""

    path: list[int]
    """The index in i_block of the root, then the index in each indirect block on the way to the leaf's own."""
    slot: int
    """The place in the leaf of the first pointer."""
    logical: int
    length: int


def _leaves(inode: Inode, per_block: int, first: int, count: int) -> Iterator[_Leaf]:
    """The leaves of ``count`` blocks of a file from block ``first`` on."""
    end = first + count
    while first < end:
        *path, slot = block_path(inode, per_block, first)
        length = min((per_block if path else EXT2_NDIR_BLOCKS) - slot, end - first)
        yield _Leaf(path, slot, first, length)
        first += length


def _path_nodes(transaction: Transaction, roots: list[int], leaf: _Leaf) -> list[int]:
    """The indirect blocks on the way to a leaf, its own last; 0 where there is none."""
    node = roots[leaf.path[0]]
    nodes = [node]
    for index in leaf.path[1:]:
        if node:
            (node,) = _POINTER.unpack_from(transaction.block(node), index * 4)
        nodes.append(node)
    return nodes


def _link_nodes(
    transaction: Transaction, roots: list[int], leaf: _Leaf, nodes: list[int], taken: list[int]
) -> list[int]:
    """Put new, empty indirect blocks into the holes of a path; returns the whole path."""
    filler = iter(taken)
    linked: list[int] = []
    for depth, (index, node) in enumerate(zip(leaf.path, nodes, strict=True)):
        if not node:
            node = next(filler)
            transaction.create(node)
            if depth == 0:
                roots[index] = node
            else:
                struct.pack_into("<I", transaction.change(linked[-1]), index * 4, node)
        linked.append(node)
    return linked


def _store(transaction: Transaction, roots: list[int], nodes: list[int], leaf: _Leaf, pointers: list[int]) -> None:
    if nodes and len(pointers) == 1:
        _POINTER.pack_into(transaction.change(nodes[-1]), leaf.slot * 4, *pointers)
    elif nodes:
        struct.pack_into(f"<{len(pointers)}I", transaction.change(nodes[-1]), leaf.slot * 4, *pointers)
    else:
        roots[leaf.slot : leaf.slot + len(pointers)] = pointers


def _goal(change: Change, inode: Inode, pointers: list[int], nodes: list[int], goal: int) -> int:
    """The preferred place of the next block: behind the one before, else behind its indirect block, else in its group
    (fs/ext2/inode.c, ext2_find_goal and ext2_find_near)."""
    if pointers:
        return pointers[-1] + 1
    if goal:
        return goal
    if nodes and nodes[-1]:
        return nodes[-1] + 1
    return change.filesystem.groups.block_near_inode(inode.ino)

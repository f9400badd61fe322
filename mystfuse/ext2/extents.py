"""The extent tree of an inode: runs of blocks, in i_block itself or in blocks of their own.

Source: Documentation/filesystems/ext4/ifork.rst, and fs/ext4/extents.c (__ext4_ext_check, ext4_valid_extent_entries)
for what is refused. An extent that is allocated and not written yet reads as a hole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing
from mystfuse.ext2.extent_format import (
    ENTRY_SIZE,
    HEADER,
    HEADER_SIZE,
    INDEX,
    LEAF,
    LONGEST_WRITTEN,
    MAGIC,
    MAX_DEPTH,
    MAX_LOGICAL,
    room_of,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

MAX_TREE_BYTES = 16 << 20
"""Of tree blocks for one range: more, in a range that programs ask for, make up a broken tree."""
OWNER = "extent block of inode"


class Extent(NamedTuple):
    """A run of blocks of a file."""

    logical: int
    """Its first block in the file."""
    length: int
    """Blocks."""
    physical: int
    """The number of its first block; 0 if it is not written yet, so that it reads as a hole."""

    @property
    def end(self) -> int:
        return self.logical + self.length


class _Child(NamedTuple):
    """An entry of an index block."""

    logical: int
    """The first of the file's blocks that it is for."""
    number: int
    """Block number."""


class _Node(NamedTuple):
    """A block of the tree to be read, and what it has to be."""

    number: int
    depth: int
    low: int
    high: int
    """The file's blocks that it may have: from ``low`` on, ``high`` excluded."""


def map_extents(superblock: Superblock, blocks: Blocks, inode: Inode, first: int, count: int) -> list[int]:
    """The block numbers of ``count`` blocks of a file from block ``first`` on; 0 for holes.

    Raises:
        BlocksMissing: naming all the blocks of one level of the tree that are needed.
        CorruptFilesystem: the tree is broken.
    """
    pointers = [0] * count
    end = first + count
    for extent in find_extents(superblock, blocks, inode, first, end):
        if extent.physical:
            low, high = max(extent.logical, first), min(extent.end, end)
            start = extent.physical + low - extent.logical
            pointers[low - first : high - first] = range(start, start + high - low)
    return pointers


def find_extents(superblock: Superblock, blocks: Blocks, inode: Inode, first: int, end: int) -> list[Extent]:
    """The extents that have any of a file's blocks ``first`` to ``end`` (excluded), in order.

    Raises:
        BlocksMissing, CorruptFilesystem: as ``map_extents``.
    """
    if end > MAX_LOGICAL:
        raise CorruptFilesystem(f"inode {inode.ino}: block {end - 1} is past what an extent tree can hold")
    entries: Sequence[Extent | _Child]
    depth, entries = _read_root(superblock, inode)
    visited = 0
    nodes = list(_children(entries, depth, 0, MAX_LOGICAL, first, end))
    while depth:
        visited += len(nodes)
        if visited * superblock.block_size > MAX_TREE_BYTES:
            raise CorruptFilesystem(f"inode {inode.ino}: its extent tree is far too large for {end - first} blocks")
        try:
            found = blocks.all([node.number for node in nodes])
        except BlocksMissing as missing:
            raise missing.of(OWNER, inode.ino)  # noqa: B904  # it is the same exception
        depth -= 1
        extents: list[Extent | _Child] = []
        below: list[_Node] = []
        for node, block in zip(nodes, found, strict=True):
            some = _read_block(superblock, blocks, inode, node, block)
            if depth:
                below += _children(some, depth, node.low, node.high, first, end)
            else:
                extents += some
        entries, nodes = extents, below
    return [extent for extent in entries if isinstance(extent, Extent) and extent.logical < end and first < extent.end]


def find_stretch(superblock: Superblock, blocks: Blocks, inode: Inode, first: int) -> tuple[bool, int]:
    """Whether a file has data or a hole from its block ``first`` on, and for how many blocks at least, as far as one
    block of the tree tells.

    Raises:
        BlocksMissing: naming one block of the tree.
        CorruptFilesystem: the tree is broken, or the block is past what it can hold.
    """
    if first >= MAX_LOGICAL:
        raise CorruptFilesystem(f"inode {inode.ino}: block {first} is past what an extent tree can hold")
    depth, entries = _read_root(superblock, inode)
    high = MAX_LOGICAL
    low = 0
    while depth:
        children = list(_children(entries, depth, low, high, first, first + 1))
        if not children:
            following = next((entry.logical for entry in entries if entry.logical > first), high)
            return False, following - first
        (node,) = children
        try:
            block = blocks.block(node.number)
        except BlocksMissing as missing:
            raise missing.of(OWNER, inode.ino)  # noqa: B904
        depth, low, high = node.depth, node.low, node.high
        entries = _read_block(superblock, blocks, inode, node, block)
    is_data: bool | None = None
    position = first
    for extent in entries:
        if not isinstance(extent, Extent) or extent.end <= first:
            continue
        if extent.logical > position:
            if is_data:
                break
            is_data, position = False, extent.logical
        if is_data is not None and is_data != bool(extent.physical):
            return is_data, position - first
        is_data, position = bool(extent.physical), extent.end
    return (True, position - first) if is_data else (False, high - first)


_Entries = Sequence[Extent | _Child]


def _children(entries: _Entries, depth: int, low: int, high: int, first: int, end: int) -> Iterator[_Node]:
    """The blocks below an index block with these entries, for the range ``low`` to ``high``, that may have any of the
    file's blocks ``first`` to ``end``."""
    if not depth:
        return
    starts = [entry.logical for entry in entries]
    position = max(bisect_right(starts, first) - 1, 0)
    for index in range(position, len(entries)):
        entry = entries[index]
        stop = starts[index + 1] if index + 1 < len(starts) else high
        if entry.logical >= end:
            return
        if isinstance(entry, _Child) and stop > first:
            yield _Node(entry.number, depth - 1, entry.logical, stop)


def _read_root(superblock: Superblock, inode: Inode) -> tuple[int, _Entries]:
    """The depth of the tree, and the entries in the inode."""
    eh_depth = HEADER.unpack_from(inode.i_block)[3]
    if eh_depth > MAX_DEPTH:
        raise CorruptFilesystem(f"inode {inode.ino}: its extent tree has {eh_depth} levels")
    return eh_depth, _parse(superblock, inode, inode.i_block, "i_block", eh_depth, 0, MAX_LOGICAL)


def _read_block(superblock: Superblock, blocks: Blocks, inode: Inode, node: _Node, block: Block) -> _Entries:
    """The entries of a block of the tree."""
    where = f"extent block {node.number}"
    entries = _parse(superblock, inode, block, where, node.depth, node.low, node.high)
    if superblock.checksums is not None and blocks.is_sealed(node.number):
        superblock.checksums.check_extents(inode.ino, inode.i_generation, node.number, block)
    return entries


def _parse(superblock: Superblock, inode: Inode, data: Block, where: str, depth: int, low: int, high: int) -> _Entries:
    """The entries of a node, all checked.

    Args:
        low: the first of the file's blocks that they may be for.
        high: the one behind the last.
    """

    def broken(what: str) -> CorruptFilesystem:
        return CorruptFilesystem(f"inode {inode.ino}: {where} is broken: {what}")

    magic, count, most, eh_depth, _ = HEADER.unpack_from(data)
    room = room_of(len(data))
    if magic != MAGIC:
        raise broken(f"eh_magic is {magic:#x}")
    if eh_depth != depth:
        raise broken(f"eh_depth is {eh_depth} instead of {depth}")
    if not count <= most <= room or not most:
        raise broken(f"eh_entries {count} and eh_max {most} do not fit")
    if depth and not count:
        raise broken("an index without entries")
    area = data[HEADER_SIZE : HEADER_SIZE + count * ENTRY_SIZE]
    least, first_data, limit = low, superblock.s_first_data_block, superblock.s_blocks_count
    if depth:
        children: list[_Child] = []
        for logical, leaf_low, leaf_high, _ in INDEX.iter_unpack(area):
            number = leaf_low | leaf_high << 32
            if not least <= logical < high:
                raise broken(f"block {logical} of the file is out of order")
            if not first_data < number < limit:
                raise broken(f"block pointer {number} is outside the file system")
            children.append(_Child(logical, number))
            least = logical + 1
        return children
    extents: list[Extent] = []
    for logical, length, start_high, start_low in LEAF.iter_unpack(area):
        physical = start_low | start_high << 32
        is_written = length <= LONGEST_WRITTEN
        if not is_written:
            length -= LONGEST_WRITTEN
        if not length or not least <= logical or logical + length > high:
            raise broken(f"an extent of {length} blocks from block {logical} of the file on is out of order")
        if not first_data < physical or physical + length > limit:
            raise broken(f"block pointer {physical} is outside the file system")
        extents.append(Extent(logical, length, physical if is_written else 0))
        least = logical + length
    return extents

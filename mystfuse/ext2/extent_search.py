"""Searching the extent tree of an inode for single blocks, and for changing it.

A tree is searched without reading it whole: what is checked are the headers of the nodes on the way, and the entries
that are used. So in a broken tree a search finds the wrong entries, or an error, and ends all the same.

Source: fs/ext4/extents.c (ext4_find_extent, __ext4_ext_check).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing
from mystfuse.ext2.extent_format import (
    ENTRY_SIZE,
    HEADER,
    HEADER_SIZE,
    INDEX,
    KEY,
    LEAF,
    LONGEST_WRITTEN,
    MAGIC,
    MAX_DEPTH,
    MAX_LOGICAL,
    ROOT_SIZE,
    Piece,
    room_of,
)
from mystfuse.ext2.extents import OWNER, find_extents
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

ROOT_ROOM = room_of(ROOT_SIZE)
"""Entries of i_block."""
AHEAD = 64
"""Leaves that are fetched together, where an operation will need one after the other."""


class Step(NamedTuple):
    """A node on the way from the root to a leaf."""

    number: int
    """Block number; 0 for i_block."""
    entries: int
    """How many it has."""
    at: int
    """In an index node the entry by which the way goes on; in a leaf the last one that begins at or before the block
    that was looked for, -1 if there is none."""
    low: int
    high: int
    """The file's blocks that it may have: from ``low`` on, ``high`` excluded."""


class ExtentSearch:
    """The extent tree of an inode, as an operation finds it.

    All methods raise BlocksMissing, and CorruptFilesystem if what they see of the tree is broken.

    Args:
        inode: has EXT4_EXTENTS_FL.
    """

    def __init__(self, superblock: Superblock, blocks: Blocks, inode: Inode) -> None:
        self._inode = inode
        self._superblock = superblock
        self._blocks = blocks
        self._root: Block = inode.i_block
        self._room = room_of(superblock.block_size)

    @property
    def depth(self) -> int:
        """Levels of nodes below i_block."""
        return int(HEADER.unpack_from(self._root)[3])

    def fetch(self, first: int, end: int) -> None:
        """Name all that is not in memory of a level of the tree for the file's blocks ``first`` to ``end`` (excluded),
        by BlocksMissing: an operation that needs all of it would be run again too often where index nodes have few
        entries each."""
        if self.depth > 1:
            find_extents(self._superblock, self._blocks, self._inode, first, end)

    def seek(self, logical: int, ahead: int = 0) -> list[Step]:
        """The way to the leaf for a block of the file.

        Args:
            ahead: how many further leaves are worth fetching with one that is missing; negative: those in front of it.
        """
        data, number = self._root, 0
        low, high = 0, MAX_LOGICAL
        _, _, _, depth, _ = HEADER.unpack_from(data)
        if depth > MAX_DEPTH:
            raise self._broken(0, f"{depth} levels")
        steps: list[Step] = []
        while True:
            count = self._count(data, number, depth)
            index = search(data, count, logical)
            if not depth:
                steps.append(Step(number, count, index, low, high))
                return steps
            index = max(index, 0)
            steps.append(Step(number, count, index, low, high))
            key, child = self._child(data, number, index)
            following = self._child(data, number, index + 1)[0] if index + 1 < count else high
            if not low <= key < following <= high:
                raise self._broken(number, f"block {key} of the file is out of order")
            others = self._siblings(data, index, count, ahead) if ahead and depth == 1 else ()
            depth -= 1
            data, number, low, high = self._node(child, depth, others), child, key, following

    def find(self, logical: int) -> int:
        """The number of one block of the file; 0 for a hole, which one is too that counts as zeros."""
        if logical >= MAX_LOGICAL:
            raise CorruptFilesystem(f"inode {self._inode.ino}: block {logical} is past what an extent tree can hold")
        leaf = self.seek(logical)[-1]
        if leaf.at < 0:
            return 0
        extent = self.entry(leaf, leaf.at)
        return extent.physical + logical - extent.logical if extent.is_written and logical < extent.end else 0

    def entry(self, leaf: Step, index: int) -> Piece:
        """An entry of a leaf."""
        return next(self.entries(leaf, index))

    def entries(self, leaf: Step, start: int) -> Iterator[Piece]:
        """The entries of a leaf from one on. The tree must not be changed meanwhile."""
        superblock = self._superblock
        first_data, limit = superblock.s_first_data_block, superblock.s_blocks_count
        data, new = self._data(leaf.number), tuple.__new__
        least, most = leaf.low, leaf.high
        area = data[HEADER_SIZE + start * ENTRY_SIZE : HEADER_SIZE + leaf.entries * ENTRY_SIZE]
        for logical, length, high, low in LEAF.iter_unpack(area):
            is_written = length <= LONGEST_WRITTEN
            if not is_written:
                length -= LONGEST_WRITTEN
            physical = low | high << 32
            if not length or not least <= logical or logical + length > most:
                raise self._broken(leaf.number, f"an extent of {length} blocks from block {logical} on is out of order")
            if not first_data < physical or physical + length > limit:
                raise self._broken(leaf.number, f"block pointer {physical} is outside the file system")
            least = logical + length
            yield new(Piece, (logical, length, physical, is_written))

    def pieces(self, first: int, end: int) -> Iterator[Piece]:
        """What the tree has of the file's blocks ``first`` to ``end`` (excluded), holes included, in order. It must not
        be changed meanwhile."""
        if end > MAX_LOGICAL:
            raise CorruptFilesystem(f"inode {self._inode.ino}: block {end - 1} is past what an extent tree can hold")
        position = first
        while position < end:
            leaf = self.seek(position, AHEAD)[-1]
            stop = min(leaf.high, end)
            for extent in self.entries(leaf, max(leaf.at, 0)):
                if extent.logical >= stop:
                    break
                if extent.end <= position:
                    continue
                if extent.logical > position:
                    yield Piece(position, extent.logical - position, 0, False)
                piece = extent.part(position, stop)
                yield piece
                position = piece.end
            if position < stop:
                yield Piece(position, stop - position, 0, False)
                position = stop

    def _data(self, number: int) -> Block:
        return self._blocks.block(number) if number else self._root

    def _node(self, number: int, depth: int, others: Iterable[int]) -> Block:
        """A block of the tree, whose number has been checked."""
        try:
            data = self._blocks.block(number, others)
        except BlocksMissing as missing:
            raise missing.of(OWNER, self._inode.ino)  # noqa: B904  # it is the same exception
        if self._superblock.checksums is not None and self._blocks.is_sealed(number):
            self._count(data, number, depth)
            self._superblock.checksums.check_extents(self._inode.ino, self._inode.i_generation, number, data)
        return data

    def _count(self, data: Block, number: int, depth: int) -> int:
        """The number of entries of a node, whose header is checked."""
        magic, count, most, eh_depth, _ = HEADER.unpack_from(data)
        if (
            magic != MAGIC
            or eh_depth != depth
            or not count <= most <= (self._room if number else ROOT_ROOM)
            or (depth and not count)
            or not most
        ):
            raise self._broken(number, f"eh_magic {magic:#x}, eh_depth {eh_depth}, eh_entries {count}, eh_max {most}")
        return int(count)

    def _child(self, data: Block, number: int, index: int) -> tuple[int, int]:
        """An entry of an index node: (its first block of the file, block number)."""
        key, low, high, _ = INDEX.unpack_from(data, HEADER_SIZE + index * ENTRY_SIZE)
        child = low | high << 32
        if not self._superblock.is_data_block(child):
            raise self._broken(number, f"block pointer {child} is outside the file system")
        return key, child

    def _siblings(self, data: Block, index: int, count: int, ahead: int) -> Iterator[int]:
        """The children of an index node behind or in front of one, as many as ``ahead`` says."""
        others = range(index + 1, min(index + 1 + ahead, count)) if ahead > 0 else range(max(index + ahead, 0), index)
        for other in others:
            _, low, high, _ = INDEX.unpack_from(data, HEADER_SIZE + other * ENTRY_SIZE)
            if self._superblock.is_data_block(low | high << 32):
                yield low | high << 32

    def _broken(self, number: int, what: str) -> CorruptFilesystem:
        where = f"extent block {number}" if number else "i_block"
        return CorruptFilesystem(f"inode {self._inode.ino}: {where} is broken: {what}")


def search(data: Block, count: int, logical: int) -> int:
    """The last of a node's ``count`` entries that begins at or before a block of the file; -1 if there is none."""
    unpack = KEY.unpack_from
    # The last one first: files grow at their end.
    if count and unpack(data, HEADER_SIZE + (count - 1) * ENTRY_SIZE)[0] <= logical:
        return count - 1
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if unpack(data, HEADER_SIZE + middle * ENTRY_SIZE)[0] <= logical:
            low = middle + 1
        else:
            high = middle
    return low - 1

"""Changing the extent tree of an inode: entries of a leaf are replaced, and nodes split, joined and freed as it needs.

Source: fs/ext4/extents.c (ext4_ext_find_extent, ext4_ext_split, ext4_ext_grow_indepth, ext4_ext_correct_indexes,
ext4_ext_rm_idx, ext4_ext_try_to_merge).

A tree is searched without reading it whole: what is checked are the headers of the nodes on the way, and the entries
that are used. So in a broken tree a search finds the wrong entries, or an error, and ends all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from errno import ENOSPC
from functools import partial
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block, BlocksMissing
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.extent_format import (
    ENTRY_SIZE,
    HEADER,
    HEADER_SIZE,
    INDEX,
    KEY,
    LEAF,
    LONGEST_UNWRITTEN,
    LONGEST_WRITTEN,
    MAGIC,
    MAX_DEPTH,
    MAX_LOGICAL,
    ROOT_SIZE,
    Piece,
    pack_index,
    room_of,
)
from mystfuse.ext2.extents import OWNER, find_extents
from mystfuse.ext2.inode import Inode

_ROOT_ROOM = room_of(ROOT_SIZE)
_LENGTH = struct.Struct("<H")
_LENGTH_OFFSET = 4
"""The offset of ee_len in an entry."""
_GENERATION = struct.Struct("<I")
_GENERATION_OFFSET = 8
"""The offset of eh_generation."""
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


class ExtentTree:
    """The extent tree of an inode, to be changed by an operation. ``finish`` gives the inode with what it has become.

    All methods raise BlocksMissing, and CorruptFilesystem if what they see of the tree is broken.

    Args:
        inode: has EXT4_EXTENTS_FL.
    """

    def __init__(self, change: Change, inode: Inode) -> None:
        self._inode = inode
        self._change = change
        self._superblock = change.superblock
        self._transaction = change.transaction
        self._root: Block = inode.i_block
        self._room = room_of(change.superblock.block_size)
        self._spare: list[int] = []
        """Blocks taken for new nodes."""
        self._added = 0
        """Blocks of the inode: taken less freed."""
        self._freed: list[int] = []

    @property
    def depth(self) -> int:
        """Levels of nodes below i_block."""
        return int(HEADER.unpack_from(self._root)[3])

    def finish(self) -> Inode:
        """Free what has been dropped. Returns the inode, not written."""
        if self._freed:
            if len(set(self._freed)) != len(self._freed):
                raise CorruptFilesystem(f"inode {self._inode.ino} has a block twice")
            self._change.allocator.free_blocks(self._transaction, self._freed)
        i_blocks = self._inode.i_blocks
        if self._added != len(self._freed):
            i_blocks = self._inode.i_blocks_after(self._added - len(self._freed), self._superblock.block_size)
        self._freed = []
        return self._inode.mapped(i_blocks, bytes(self._root))

    def count_added(self, blocks: int) -> None:
        """Blocks have been taken for the file's contents."""
        self._added += blocks

    def drop(self, numbers: Iterable[int]) -> None:
        """Blocks of the file's contents are to be freed at the end."""
        self._freed += numbers

    def fetch(self, first: int, end: int) -> None:
        """Have in memory what the tree has for the file's blocks ``first`` to ``end`` (excluded), level by level: an
        operation that needs all of it would be run again too often where index nodes have few entries each."""
        if self.depth > 1:
            find_extents(self._superblock, self._transaction, self._inode, first, end)

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
            index = _search(data, count, logical)
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

    def lengthen(self, leaf: Step, index: int, length: int) -> None:
        """Give an entry of a leaf, a written extent, another length."""
        offset = HEADER_SIZE + index * ENTRY_SIZE + _LENGTH_OFFSET
        _LENGTH.pack_into(self._changed(leaf.number), offset, length)

    def assign(self, path: Sequence[Step], first: int, end: int, pieces: Sequence[Piece], caller: Caller) -> None:
        """Put other extents in the place of what a leaf has of the file's blocks ``first`` to ``end`` (excluded).

        Args:
            path: from ``seek``; not to be used afterwards.
            pieces: none for a hole.
            caller: who takes blocks for the tree.

        Raises:
            OSError: ENOSPC, there is no block for the tree; nothing has been changed.
        """
        leaf = path[-1]
        start = stop = max(_search(self._data(leaf.number), leaf.entries, first), 0)
        before: list[Piece] = []
        after: list[Piece] = []
        for extent in self.entries(leaf, start):
            stop += 1
            if extent.logical < first:
                before.append(extent.part(extent.logical, first))
            if extent.end > end:
                after.append(extent.part(end, extent.end))
                break
        if start and not before:
            start -= 1
            before.append(self.entry(leaf, start))
        merged = self._merge(leaf, [*before, *pieces, *after])
        self._take_spare(path, len(merged) - (stop - start), caller)
        self._replace(path, start, stop, b"".join([piece.pack() for piece in merged]))

    def drop_leaf(self, path: Sequence[Step]) -> None:
        """Take out all entries of a leaf, and the leaf itself."""
        self._replace(path, 0, path[-1].entries, b"")

    def _merge(self, leaf: Step, pieces: Iterable[Piece]) -> list[Piece]:
        """The same as few extents as possible."""
        merged: list[Piece] = []
        for piece in pieces:
            if merged:
                last = merged[-1]
                if piece.logical < last.end:
                    raise self._broken(leaf.number, f"block {piece.logical} of the file has two extents")
                if (
                    piece.logical == last.end
                    and piece.physical == last.physical + last.length
                    and piece.is_written == last.is_written
                    and last.length + piece.length <= (LONGEST_WRITTEN if last.is_written else LONGEST_UNWRITTEN)
                ):
                    merged[-1] = last._replace(length=last.length + piece.length)
                    continue
            merged.append(piece)
        return merged

    def _take_spare(self, path: Sequence[Step], extra: int, caller: Caller) -> None:
        """Take the blocks that a leaf with ``extra`` more entries needs.

        Raises:
            OSError: ENOSPC
        """
        needed = 0
        for step in reversed(path):
            if step.entries + extra <= (self._room if step.number else _ROOT_ROOM):
                break
            needed, extra = needed + 1, 1
        if not needed:
            return
        allocator, near = self._change.allocator, path[-1].number
        if not near:
            near = self._change.filesystem.groups.block_near_inode(self._inode.ino)
        taken = allocator.take_blocks(self._transaction, caller, near, needed)
        if len(taken) < needed:
            allocator.free_blocks(self._transaction, taken)
            raise OSError(ENOSPC, "no free block for an extent tree")
        self._spare += reversed(taken)
        self._added += needed

    def _replace(self, path: Sequence[Step], start: int, stop: int, entries: bytes) -> None:
        """Put other entries in the place of entries ``start`` to ``stop`` (excluded) of the last node of a path."""
        step = path[-1]
        old = self._data(step.number)
        _, count, _, depth, _ = HEADER.unpack_from(old)
        area = bytes(old[HEADER_SIZE : HEADER_SIZE + count * ENTRY_SIZE])
        area = area[: start * ENTRY_SIZE] + entries + area[stop * ENTRY_SIZE :]
        above = path[:-1]
        if not area:
            if above:
                self._freed.append(step.number)
                self._replace(above, above[-1].at, above[-1].at + 1, b"")
            else:
                self._store(0, 0, b"")
            return
        if not above:
            if len(area) <= _ROOT_ROOM * ENTRY_SIZE:
                self._store(0, depth, area)
            else:
                self._grow(depth, area)
            return
        if len(above) == 1 and above[0].entries == 1 and len(area) <= _ROOT_ROOM * ENTRY_SIZE:
            self._freed.append(step.number)
            self._store(0, depth, area)
            return
        most = self._room * ENTRY_SIZE
        right = b""
        if len(area) > most:
            # A file that grows at its end leaves full nodes behind it.
            is_at_end = start * ENTRY_SIZE + len(entries) == len(area)
            cut = most if is_at_end else len(area) // ENTRY_SIZE // 2 * ENTRY_SIZE
            area, right = area[:cut], area[cut:]
        self._store(step.number, depth, area)
        if not start:
            (key,) = KEY.unpack_from(area)
            self._correct_indexes(above, key)
        if right:
            (key,) = KEY.unpack_from(right)
            index = above[-1].at + 1
            self._replace(above, index, index, pack_index(key, self._new_node(depth, right)))

    def _grow(self, depth: int, area: bytes) -> None:
        """Make the tree higher: what does not fit into the root goes into a block of its own."""
        if depth >= MAX_DEPTH:
            raise self._broken(0, f"no room in {depth} levels")
        (key,) = KEY.unpack_from(area)
        self._store(0, depth + 1, pack_index(key, self._new_node(depth, area)))

    def _new_node(self, depth: int, area: bytes) -> int:
        number = self._spare.pop()
        self._transaction.create(number)
        self._store(number, depth, area)
        return number

    def _correct_indexes(self, above: Sequence[Step], key: int) -> None:
        """The first entry of a node has changed: the index nodes above say so."""
        for step in reversed(above):
            KEY.pack_into(self._changed(step.number), HEADER_SIZE + step.at * ENTRY_SIZE, key)
            if step.at:
                return

    def _store(self, number: int, depth: int, area: bytes) -> None:
        data = self._changed(number)
        room = room_of(len(data))
        HEADER.pack_into(
            data, 0, MAGIC, len(area) // ENTRY_SIZE, room, depth, *_GENERATION.unpack_from(data, _GENERATION_OFFSET)
        )
        data[HEADER_SIZE : HEADER_SIZE + len(area)] = area

    def _data(self, number: int) -> Block:
        return self._transaction.block(number) if number else self._root

    def _changed(self, number: int) -> bytearray:
        """A node, to be changed in place."""
        if not number:
            if not isinstance(self._root, bytearray):
                self._root = bytearray(self._root)
            return self._root
        transaction = self._transaction
        data = transaction.change(number)
        if self._superblock.checksums is not None:
            inode = self._inode
            transaction.seal_later(
                number, partial(self._superblock.checksums.set_extents, inode.ino, inode.i_generation)
            )
        return data

    def _node(self, number: int, depth: int, others: Iterable[int]) -> Block:
        """A block of the tree, whose number has been checked."""
        try:
            data = self._transaction.block(number, others)
        except BlocksMissing as missing:
            raise missing.of(OWNER, self._inode.ino)  # noqa: B904  # it is the same exception
        if not isinstance(data, bytearray):
            self._change.allocator.check_writable(self._transaction, [number])
            if self._superblock.checksums is not None and self._transaction.is_sealed(number):
                self._count(data, number, depth)
                self._superblock.checksums.check_extents(self._inode.ino, self._inode.i_generation, number, data)
        return data

    def _count(self, data: Block, number: int, depth: int) -> int:
        """The number of entries of a node, whose header is checked."""
        magic, count, most, eh_depth, _ = HEADER.unpack_from(data)
        if (
            magic != MAGIC
            or eh_depth != depth
            or not count <= most <= (self._room if number else _ROOT_ROOM)
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


def _search(data: Block, count: int, logical: int) -> int:
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

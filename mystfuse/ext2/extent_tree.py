"""Changing the extent tree of an inode: entries of a leaf are replaced, and nodes split, joined and freed as it needs.

Source: fs/ext4/extents.c (ext4_ext_insert_extent, ext4_ext_split, ext4_ext_grow_indepth, ext4_ext_correct_indexes,
ext4_ext_rm_idx, ext4_can_extents_be_merged, ext4_ext_try_to_merge_up).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from errno import ENOSPC
from functools import partial

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.extent_format import (
    ENTRY_SIZE,
    HEADER,
    HEADER_SIZE,
    KEY,
    LONGEST_UNWRITTEN,
    LONGEST_WRITTEN,
    MAGIC,
    MAX_DEPTH,
    Piece,
    pack_index,
    room_of,
)
from mystfuse.ext2.extent_search import ROOT_ROOM, ExtentSearch, Step, search
from mystfuse.ext2.inode import Inode

_LENGTH = struct.Struct("<H")
_LENGTH_OFFSET = 4
"""The offset of ee_len in an entry."""
_GENERATION = struct.Struct("<I")
_GENERATION_OFFSET = 8
"""The offset of eh_generation."""


class ExtentTree(ExtentSearch):
    """The extent tree of an inode, which an operation changes. ``finish`` gives the inode with what it has become."""

    def __init__(self, change: Change, inode: Inode) -> None:
        super().__init__(change.superblock, change.transaction, inode)
        self._change = change
        self._transaction = change.transaction
        self._allocator = change.allocator
        self._spare: list[int] = []
        """Blocks taken for new nodes."""
        self._added = 0
        """Blocks of the inode: taken less freed."""
        self._freed: list[int] = []

    def finish(self) -> Inode:
        """Free what has been dropped. Returns the inode, not written."""
        if self._freed:
            if len(set(self._freed)) != len(self._freed):
                raise CorruptFilesystem(f"inode {self._inode.ino} has a block twice")
            self._allocator.free_blocks(self._transaction, self._freed)
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
        start = stop = max(search(self._data(leaf.number), leaf.entries, first), 0)
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
        """The same in as few extents as possible."""
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
            if step.entries + extra <= (self._room if step.number else ROOT_ROOM):
                break
            needed, extra = needed + 1, 1
        if not needed:
            return
        allocator, near = self._allocator, path[-1].number
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
            if len(area) <= ROOT_ROOM * ENTRY_SIZE:
                self._store(0, depth, area)
            else:
                self._grow(depth, area)
            return
        if len(above) == 1 and above[0].entries == 1 and len(area) <= ROOT_ROOM * ENTRY_SIZE:
            self._freed.append(step.number)
            self._store(0, depth, area)
            return
        if not start:
            (key,) = KEY.unpack_from(area)
            self._correct_indexes(above, key)
        # A file that grows at its end leaves full nodes behind it.
        cut = self._room if start * ENTRY_SIZE + len(entries) == len(area) else len(area) // ENTRY_SIZE // 2
        self._store_or_split(path, depth, area, cut * ENTRY_SIZE)

    def _store_or_split(self, path: Sequence[Step], depth: int, area: bytes, cut: int) -> None:
        """Store the entries of a node, or if there is no room for all, those behind byte ``cut`` in a new one."""
        if len(area) <= self._room * ENTRY_SIZE:
            self._store(path[-1].number, depth, area)
            return
        self._store(path[-1].number, depth, area[:cut])
        (key,) = KEY.unpack_from(area, cut)
        above = path[:-1]
        index = above[-1].at + 1
        self._replace(above, index, index, pack_index(key, self._new_node(depth, area[cut:])))

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

    def _node(self, number: int, depth: int, others: Iterable[int]) -> Block:
        data = super()._node(number, depth, others)
        if not isinstance(data, bytearray):
            self._allocator.check_writable(self._transaction, [number])
        return data

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

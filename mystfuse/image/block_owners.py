"""Finding out what the blocks of a file system belong to, from as much of it as is intact.

The walk reads every inode table and every indirect block once, asks of each block whether it is damaged, and keeps what
it finds about damaged ones alone: its memory grows with the damage, and by an eighth of a byte for each block of the
file system and each inode. Verified structures can be broken on purpose: pointers may lead anywhere and in circles, so
no indirect block is walked twice.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mystfuse.ext2.block_groups import GroupDescriptor
from mystfuse.ext2.extent_format import MAX_LOGICAL
from mystfuse.ext2.extent_nodes import ExtentRun, read_node
from mystfuse.ext2.fixed_blocks import INODE_TABLE, FixedRun, copies_of, inodes_of, own_blocks_of
from mystfuse.ext2.inode_blocks import (
    ATTRIBUTE_VALUE,
    DIRECTORY,
    RESERVED_INODE,
    InodeBlocks,
    direct_pointers,
    indirect_roots,
    inodes_in_use,
    runs_of,
)
from mystfuse.ext2.superblock import Superblock
from mystfuse.image.affected import ATTRIBUTES, DATA, EXTENT_BLOCK, INDIRECT, AffectedInodes, Part
from mystfuse.image.damaged_ranges import DamagedRanges
from mystfuse.image.group_places import GroupPlaces
from mystfuse.image.verified_blocks import VerifiedBlocks
from mystfuse.system.number_set import NumberSet, runs_of_bits

MAX_RECORDED = 100_000
"""Ranges of metadata, and of blocks without an owner, that are recorded; others are counted."""
MAX_DIRECTORY_BLOCKS = 4_000_000
"""Of all directories, 16 bytes each; names in further ones are not found."""
MAX_STEPS = 50_000_000
"""Blocks of directories, and damaged ranges of files, that are looked at in extents: a broken file system may have the
same blocks in any number of these."""
INLINE = 0xFFFFFFFF
"""In the place of a block's place: the names are in the directory's inode, and the block is of the inode table."""


class FixedDamage(NamedTuple):
    """Damaged blocks in a fixed place."""

    run: FixedRun
    first: int
    """Block number."""
    length: int
    """Blocks."""
    unverifiable: bool
    inodes: range
    """The inodes that they are for."""
    in_use: int | None
    """Of a damaged inode table, how many of these the inode bitmap has in use; None if that is not known."""


class _MapBlock(NamedTuple):
    """An indirect block, or a block of an extent tree, to be read."""

    number: int
    level: int
    """1 for one that leads to data, and more for each level that is below."""
    logical: int
    end: int
    """It leads to the file's blocks from ``logical`` to ``end``, at most."""
    what: str
    """``INDIRECT`` or ``EXTENT_BLOCK``."""
    inode: InodeBlocks


class BlockOwners:
    """The owners of the damaged blocks of a file system. ``find`` fills it.

    Args:
        damaged: ranges of bytes of the file system.
    """

    def __init__(self, superblock: Superblock, blocks: VerifiedBlocks, damaged: DamagedRanges) -> None:
        self.superblock = superblock
        self.affected = AffectedInodes()
        self.fixed: list[FixedDamage] = []
        """In the order of the blocks."""
        self.fixed_count = 0
        """Blocks."""
        self.free_bytes = 0
        """Damaged bytes of blocks that nothing uses."""
        self.spare_bytes = 0
        """Damaged bytes of files' blocks behind their ends."""
        self.unowned: list[tuple[int, int]] = []
        """Damaged blocks that are in use, or may be, by nobody knows whom: (first, count)."""
        self.unowned_bytes = 0
        self.is_complete = True
        """Whether every inode and every block that leads to data could be read."""
        self.has_lost_names = False
        """Whether a directory has a damaged block, or is lost."""
        self.directory_inodes = array("I")
        """Ascending."""
        self.directory_blocks = array("Q"), array("I"), array("I")
        """Of each block of a directory: its number, its directory's index in ``directory_inodes``, its place there."""
        self.in_use = NumberSet()
        """Inodes whose links are counted."""
        self.lost_inodes = NumberSet()
        """Inodes of damaged blocks of the inode tables."""
        self.places = GroupPlaces(superblock, blocks)
        self._groups = self.places.numbers
        self._blocks = blocks
        self._damaged = damaged
        self._files = DamagedRanges()
        """What is damaged outside fixed places."""
        self._walked = NumberSet()
        """Blocks that lead to data."""
        self._steps_left = MAX_STEPS
        self._noted = NumberSet()
        """Blocks of directories: each is read once, whatever leads to it."""
        self._owned = NumberSet()
        """Damaged blocks of which the owner is known."""
        self._stack: list[_MapBlock] = []
        self.groups = self.places.groups

    @property
    def table_bytes(self) -> int:
        """Bytes of inode tables: what ``find`` mostly reads."""
        return len(self._groups) * self.superblock.table_blocks * self.superblock.block_size

    async def find(self, advance: Callable[[int], None]) -> None:
        """Walk the file system.

        Args:
            advance: called with the number of bytes of inode table read since the last call.

        Raises:
            StorageTimeout: storage does not answer.
        """
        superblock = self.superblock
        await self.places.read()
        self.is_complete = superblock.groups_count == len(self._groups)
        await self._sort_out()
        for group in self._groups:
            places = self.places.of(group)
            if places is None:
                first = group * superblock.s_inodes_per_group + 1
                await self._lose_inodes(group, range(first, first + superblock.s_inodes_per_group))
            else:
                await self._walk_table(group, places)
                advance(superblock.table_blocks * superblock.block_size)
        await self._find_free()
        for found in self.affected.recorded.values():
            found.tidy()

    # What lies in fixed places.

    async def _sort_out(self) -> None:
        """Record the damage of the file system's own blocks; the rest goes into ``_files``."""
        size = self.superblock.block_size
        last = self._groups[-1]
        position, end = 0, self.groups.first_block(last) + self.groups.size(last)
        for run in (*sorted(self._damaged_runs(), key=lambda run: run.first), None):
            stop = end if run is None else max(run.first, position)
            for low, high, unverifiable in self._damaged.within(position * size, stop * size):
                self._files.add(low, high, unverifiable)
            if run is not None:
                for low, high, unverifiable in self._damaged.within(stop * size, max(run.end, stop) * size):
                    await self._record_fixed(run, low // size, -(-high // size), unverifiable)
                position = max(run.end, stop)

    def _damaged_runs(self) -> list[FixedRun]:
        """The runs of blocks in fixed places that have some damage."""
        size, is_anywhere = self.superblock.block_size, "flex_bg" in self.superblock.features
        found: list[FixedRun] = []
        for group in self._groups:
            start = self.groups.first_block(group) if group else 0
            end = self.groups.first_block(group) + self.groups.size(group)
            if not is_anywhere and not self._damaged.touch(start * size, end * size):
                continue
            places = self.places.of(group)
            runs = copies_of(self.groups, group) + (own_blocks_of(self.superblock, group, places) if places else [])
            found += [run for run in runs if self._damaged.touch(run.first * size, run.end * size)]
            if len(found) > MAX_RECORDED:
                break
        return found

    async def _record_fixed(self, run: FixedRun, first: int, end: int, unverifiable: bool) -> None:
        last = self.fixed[-1] if self.fixed else None
        if last and last.run == run:
            # Several damaged ranges may be in one block.
            first = max(first, last.first + last.length)
            if first >= end:
                return
        inodes = inodes_of(self.superblock, run, first, end - first)
        in_use = await self._lose_inodes(run.group, inodes) if run.what == INODE_TABLE else None
        self.fixed_count += end - first
        if len(self.fixed) < MAX_RECORDED:
            self.fixed.append(FixedDamage(run, first, end - first, unverifiable, inodes, in_use))

    async def _lose_inodes(self, group: int, inodes: range) -> int | None:
        """Record that inodes of a group cannot be read, and return how many of them are in use, if that is known."""
        in_use = await self.places.count_in_use(group, inodes)
        if in_use != 0:
            self.is_complete = False
            self.has_lost_names = True
            self.lost_inodes.add_run(inodes.start, len(inodes))
        return in_use

    # What inodes have.

    async def _walk_table(self, group: int, places: GroupDescriptor) -> None:
        superblock = self.superblock
        per_block = superblock.block_size // superblock.s_inode_size
        base = group * superblock.s_inodes_per_group + 1
        past = base + self.places.inodes_used(group, places)
        first, end = places.bg_inode_table, places.bg_inode_table - (base - past) // per_block
        for start in range(first, end, self._blocks.at_once):
            numbers = range(start, min(start + self._blocks.at_once, end))
            found = await self._blocks.read(numbers)
            for number in numbers:
                block, ino = found.get(number), base + (number - first) * per_block
                if block is None:
                    # A damaged one has been recorded, unless storage has changed since.
                    await self._lose_inodes(group, range(ino, min(ino + per_block, past)))
                elif block.count(0) != len(block):
                    for inode in inodes_in_use(superblock, block[: (past - ino) * superblock.s_inode_size], ino):
                        self._walk_inode(inode, number)
            await self._walk_maps()

    def _walk_inode(self, inode: InodeBlocks, table_block: int) -> None:
        if inode.kind != ATTRIBUTE_VALUE and inode.ino not in self.superblock.hidden_inodes:
            self.in_use.add(inode.ino)
        if inode.kind == DIRECTORY:
            self.directory_inodes.append(inode.ino)
        if inode.file_acl and self._is_wanted(inode.file_acl):
            self._record(inode, Part(ATTRIBUTES, 0, 0, self._is_unverifiable(inode.file_acl)))
            self._owned.add(inode.file_acl)
        if inode.tree:
            self._walk_node(inode, inode.tree, None, 0, MAX_LOGICAL)
        elif inode.is_inline and inode.kind == DIRECTORY:
            self._note_names(table_block, inode, INLINE)
        if not inode.roots:
            return
        self._walk_pointers(inode, direct_pointers(inode), 0)
        if any(inode.roots[12:]):
            for number, level, logical in indirect_roots(self.superblock, inode):
                end = logical + (self.superblock.block_size // 4) ** level
                self._stack.append(_MapBlock(number, level, logical, end, INDIRECT, inode))

    def _walk_node(self, inode: InodeBlocks, node: bytes, depth: int | None, logical: int, end: int) -> None:
        """Note the owner of what the entries of an extent tree's node lead to."""
        runs, below = read_node(node, depth, logical, end)
        for run in runs:
            self._walk_extent(inode, run)
        self._stack += [_MapBlock(e.number, e.depth + 1, e.logical, e.end, EXTENT_BLOCK, inode) for e in below]

    def _walk_extent(self, inode: InodeBlocks, run: ExtentRun) -> None:
        size = self.superblock.block_size
        if inode.kind == DIRECTORY:
            wanted = min(run.length, max(inode.size // size - run.logical, 0))
            length = min(wanted, max(self._steps_left, 0))
            self._steps_left -= length
            self.is_complete &= length == wanted
            self._note_directory(inode, range(run.number, run.number + length), run.logical)
        if self._files.touch(run.number * size, (run.number + run.length) * size):
            self._own_run(inode, run.number, run.length, run.logical, run.is_written)

    def _walk_pointers(self, inode: InodeBlocks, pointers: Sequence[int], logical: int) -> None:
        """Note the owner of data blocks."""
        highest = max(pointers)
        if not highest:
            return
        size = self.superblock.block_size
        if inode.kind == DIRECTORY:
            self._note_directory(inode, pointers, logical)
        lowest = min(pointers) or min(filter(None, pointers))
        if not self._files.touch(lowest * size, (highest + 1) * size):
            return
        for number, length, position in runs_of(pointers, logical):
            self._own_run(inode, number, length, position, True)

    def _own_run(self, inode: InodeBlocks, number: int, length: int, logical: int, is_written: bool) -> None:
        """Note the owner of damaged blocks among ``length`` of a file from block ``number`` on."""
        size = self.superblock.block_size
        for low, high, unverifiable in self._files.within(number * size, (number + length) * size):
            self._steps_left -= 1
            if self._steps_left < 0:
                self.is_complete = False
                return
            first, end = low // size, -(-high // size)
            self._owned.add_run(first, end - first)
            shift = (logical - number) * size
            if not is_written:
                self.spare_bytes += high - low
                continue
            if inode.kind == DIRECTORY:
                # A block of names is read as a whole.
                low, high = first * size, end * size
                self.has_lost_names = True
            self._lose_bytes(inode, DATA, low + shift, high + shift, unverifiable)

    def _lose_bytes(self, inode: InodeBlocks, what: str, start: int, end: int, unverifiable: bool) -> None:
        if inode.kind != RESERVED_INODE:
            # Blocks behind its end have nothing of the file.
            kept = min(start, inode.size), min(end, inode.size)
            if what == DATA:
                self.spare_bytes += end - start - (kept[1] - kept[0])
            start, end = kept
        if start < end:
            self._record(inode, Part(what, start, end, unverifiable))

    def _record(self, inode: InodeBlocks, part: Part) -> None:
        found = self.affected.record(inode.ino, inode.kind, inode.size)
        if found is not None:
            found.add_part(part)

    def _note_directory(self, inode: InodeBlocks, pointers: Iterable[int], logical: int) -> None:
        end = inode.size // self.superblock.block_size
        for place, number in enumerate(pointers, logical):
            if place < end and self.superblock.is_data_block(number) and self._noted.add(number):
                self._note_names(number, inode, place)

    def _note_names(self, number: int, inode: InodeBlocks, place: int) -> None:
        """Note that a block has names of a directory."""
        numbers, indices, places = self.directory_blocks
        index = len(self.directory_inodes) - 1
        if self.directory_inodes[index] != inode.ino:
            index = self.index_of(inode.ino)
        if len(numbers) < MAX_DIRECTORY_BLOCKS:
            numbers.append(number)
            indices.append(index)
            places.append(place)

    def index_of(self, ino: int) -> int:
        """The index of a directory in ``directory_inodes``; -1 if it is none."""
        low, high = 0, len(self.directory_inodes)
        while low < high:
            middle = (low + high) // 2
            if self.directory_inodes[middle] < ino:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.directory_inodes) and self.directory_inodes[low] == ino else -1

    async def _walk_maps(self) -> None:
        """Walk the blocks on the stack, and those below them: the lowest ones many at a time."""
        size = self.superblock.block_size
        pack = struct.Struct(f"<{size // 4}I")
        while self._stack:
            batch: list[_MapBlock] = []
            while self._stack and len(batch) < self._blocks.at_once and (self._stack[-1].level == 1 or not batch):
                item = self._stack.pop()
                if self._is_wanted(item.number):
                    self._owned.add(item.number)
                if self.superblock.is_data_block(item.number) and self._walked.add(item.number):
                    batch.append(item)
                    if item.level > 1:
                        break
            found = await self._blocks.read([item.number for item in batch])
            for item in batch:
                block = found.get(item.number)
                if block is None:
                    self._lose_map(item)
                elif item.what == EXTENT_BLOCK:
                    self._walk_node(item.inode, block, item.level - 1, item.logical, item.end)
                elif item.level == 1:
                    self._walk_pointers(item.inode, pack.unpack(block), item.logical)
                else:
                    span = (size // 4) ** (item.level - 1)
                    self._stack += [
                        _MapBlock(pointer, item.level - 1, start, start + span, INDIRECT, item.inode)
                        for start, pointer in zip(range(item.logical, item.end, span), pack.unpack(block), strict=True)
                        if pointer
                    ]

    def _lose_map(self, item: _MapBlock) -> None:
        if item.inode.kind == RESERVED_INODE and not self._is_wanted(item.number):
            # Those of the inode that keeps blocks for growth are in fixed places.
            return
        size = self.superblock.block_size
        self.is_complete = False
        if item.inode.kind == DIRECTORY:
            self.has_lost_names = True
        start, end = item.logical * size, item.end * size
        self._lose_bytes(item.inode, item.what, start, end, self._is_unverifiable(item.number))

    def _is_wanted(self, number: int) -> bool:
        size = self.superblock.block_size
        return self._files.touch(number * size, (number + 1) * size)

    def _is_unverifiable(self, number: int) -> bool:
        size = self.superblock.block_size
        return all(part.unverifiable for part in self._damaged.within(number * size, (number + 1) * size))

    # What nothing has.

    async def _find_free(self) -> None:
        """Divide the damaged blocks that no inode has into free ones and others."""
        size = self.superblock.block_size
        for group in self._groups:
            start, count = self.groups.first_block(group), self.groups.size(group)
            if not self._files.touch(start * size, (start + count) * size):
                continue
            damaged = 0
            for low, high, _ in self._files.within(start * size, (start + count) * size):
                first, end = low // size, -(-high // size)
                damaged |= ((1 << end - first) - 1) << first - start
            damaged &= ~self._owned.bits(start, count)
            in_use = await self.places.blocks_in_use(group)
            if in_use is None or (self.is_complete and self.superblock.blocks_per_cluster > 1):
                # What no file has is free, or was lost by the file system, or is the rest of a file's cluster.
                in_use = 0 if self.is_complete else damaged
            used = damaged & in_use
            self.free_bytes += (damaged & ~used).bit_count() * size
            self.unowned_bytes += used.bit_count() * size
            for run in runs_of_bits(used, start):
                if len(self.unowned) == MAX_RECORDED:
                    break
                self.unowned.append(run)

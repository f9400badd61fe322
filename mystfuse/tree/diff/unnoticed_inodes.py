"""Inodes that differ in their blocks and not in themselves.

Whatever changes a file sets a time of its inode. But where inodes hold whole seconds, as those of 128 bytes do, or the
clock was set back, that time may be what it was before. Such a file shows by written blocks that belong to nothing else
that has changed.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Sequence

import trio

from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_XATTR_MAGIC
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode_blocks import RESERVED_INODE, InodeBlocks, inodes_in_use
from mystfuse.ext2.xattr import BLOCK_HEADER
from mystfuse.tree.diff.extent_walk import runs_of_tree
from mystfuse.volume.volume import Volume

_AT_ONCE = 64
"""Blocks that are read between two checkpoints."""


async def find_unnoticed(old: Volume, new: Volume, written: Iterable[int], known: Iterable[int]) -> set[int]:
    """The inodes that own written blocks, besides those that are known to have changed.

    It costs the block maps of the known ones. If there are others, all inode tables are read, and block maps until
    they are found.

    Args:
        written: numbers of the blocks that may differ.
        known: inode numbers.

    Raises:
        CorruptFilesystem, IntegrityError, ImageReadError
    """
    left = set(written)
    finder = _Owners(new, left)
    tables = await _tables_of(new, known)
    for number, wanted in tables.items():
        for inode in await new.run(_inodes_in, number, wanted[0]):
            if inode.ino in wanted[1]:
                await finder.take(inode)
    await _drop_fixed(new, left)
    await _drop_equal(old, new, left)
    found: set[int] = set()
    if not left:
        return found
    finder = _Owners(new, left)
    superblock = new.superblock
    for group in range(superblock.groups_count):
        for start in range(superblock.table_blocks):
            if not left:
                return found
            first = group * superblock.s_inodes_per_group + 1
            first += start * (superblock.block_size // superblock.s_inode_size)
            number = await new.run(_table_block, group, start)
            for inode in await new.run(_inodes_in, number, first):
                if await finder.take(inode) and inode.kind != RESERVED_INODE:
                    found.add(inode.ino)
        await trio.lowlevel.checkpoint()
    return found


async def _tables_of(volume: Volume, inos: Iterable[int]) -> dict[int, tuple[int, set[int]]]:
    """The blocks of the inode tables that inodes are in: of each the number of its first inode, and which are in it."""
    superblock = volume.superblock
    per_block = superblock.block_size // superblock.s_inode_size
    found: dict[int, tuple[int, set[int]]] = {}
    for ino in inos:
        group, index = divmod(ino - 1, superblock.s_inodes_per_group)
        number = await volume.run(_table_block, group, index // per_block)
        found.setdefault(number, (ino - index % per_block, set()))[1].add(ino)
    return found


def _table_block(filesystem: FileSystem, blocks: Blocks, group: int, index: int) -> int:
    return filesystem.groups.places(blocks, group).bg_inode_table + index


def _inodes_in(filesystem: FileSystem, blocks: Blocks, number: int, first: int) -> list[InodeBlocks]:
    superblock = filesystem.superblock
    ahead = range(number, min(number + _AT_ONCE, superblock.s_blocks_count))
    block = bytes(blocks.block(number, ahead))
    if not any(block):
        return []
    group, index = filesystem.groups.locate_inode(first)
    end = first - index + filesystem.groups.inodes_used(blocks, group)
    return [inode for inode in inodes_in_use(superblock, block, first) if inode.ino < end]


class _Owners:
    """Takes blocks of inodes from a set.

    Args:
        left: the set of block numbers.
    """

    def __init__(self, volume: Volume, left: set[int]) -> None:
        self._volume = volume
        self._left = left
        self._walked: set[int] = set()
        """Indirect blocks: pointers of broken file systems may lead in circles."""

    async def take(self, inode: InodeBlocks) -> bool:
        """Whether some of the blocks are the inode's."""
        count = len(self._left)
        self._left.discard(inode.file_acl)
        self._left.difference_update(inode.roots)
        if inode.roots:
            for level, root in enumerate(inode.roots[12:], 1):
                async for pointers in self._walk(root, level):
                    self._left.difference_update(pointers)
        if inode.tree:
            async for runs in runs_of_tree(self._volume, inode.tree):
                for number, length in runs:
                    self._left.difference_update(range(number, number + length))
        return len(self._left) < count

    async def _walk(self, root: int, level: int) -> AsyncIterator[Sequence[int]]:
        """The pointers in an indirect block and those below it."""
        layer = [root]
        for depth in range(level, 0, -1):
            below: list[int] = []
            for start in range(0, len(layer), _AT_ONCE):
                await trio.lowlevel.checkpoint()
                some = self._new_ones(layer[start : start + _AT_ONCE])
                pointers = await self._volume.run(_pointers_in, some)
                yield pointers
                if depth > 1:
                    below += pointers
            layer = below

    def _new_ones(self, numbers: Iterable[int]) -> list[int]:
        superblock = self._volume.superblock
        some = {number for number in numbers if superblock.is_data_block(number)} - self._walked
        self._walked |= some
        return sorted(some)


def _pointers_in(filesystem: FileSystem, blocks: Blocks, numbers: Sequence[int]) -> list[int]:
    layout = f"<{filesystem.superblock.block_size // 4}I"
    return [pointer for block in blocks.all(numbers) for pointer in struct.unpack(layout, block) if pointer]


async def _drop_fixed(volume: Volume, left: set[int]) -> None:
    """Drop what lies in fixed places: superblocks, descriptors, bitmaps and inode tables."""
    for count, number in enumerate(sorted(left)):
        if count % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        if await volume.run(_is_fixed, number):
            left.discard(number)


def _is_fixed(filesystem: FileSystem, blocks: Blocks, number: int) -> bool:
    groups = filesystem.groups
    if number < filesystem.superblock.s_first_data_block:
        return True
    group, bit = groups.locate_block(number)
    return any(first <= bit < first + count for first, count in groups.metadata_runs(blocks, group))


async def _drop_equal(old: Volume, new: Volume, left: set[int]) -> None:
    """Drop blocks that are as they were; and of extended attributes those that only have more or fewer inodes."""
    numbers = sorted(left)
    for start in range(0, len(numbers), _AT_ONCE):
        await trio.lowlevel.checkpoint()
        some = numbers[start : start + _AT_ONCE]
        pairs = zip(some, await old.run(_read, some), await new.run(_read, some), strict=True)
        for number, before, after in pairs:
            if before == after or _is_shared_otherwise(before, after):
                left.discard(number)


def _read(filesystem: FileSystem, blocks: Blocks, numbers: Sequence[int]) -> list[bytes]:
    return [bytes(block) for block in blocks.all(numbers)]


def _is_shared_otherwise(before: bytes, after: bytes) -> bool:
    magic = EXT2_XATTR_MAGIC.to_bytes(4, "little")
    return before[:4] == after[:4] == magic and before[BLOCK_HEADER.size :] == after[BLOCK_HEADER.size :]

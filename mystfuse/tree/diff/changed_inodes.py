"""Which inodes differ between two states of a file system, and which names do in directories, from the written blocks
alone."""

from __future__ import annotations

import stat
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

import trio

from mystfuse.errors import CorruptFilesystem, FormatError
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_ROOT_INO, EXT4_EA_INODE_FL
from mystfuse.ext2.directory import block_count, directory_block, parse_block
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.volume.volume import Volume

_AT_ONCE = 64
"""Blocks of inode tables that are compared between two checkpoints."""
_DIRECTORY_AT_ONCE = 1024
"""Blocks of a directory whose places are compared between two checkpoints."""


class ChangedInode(NamedTuple):
    """An inode number whose inode differs; None for one that is not in use, or broken."""

    old: Inode | None
    new: Inode | None

    @property
    def survives(self) -> bool:
        """Whether both are the same file: the number has not been used anew."""
        old, new = self
        return old is not None and new is not None and is_same_file(old, new)


def is_same_file(old: Inode, new: Inode) -> bool:
    """Whether two states of one inode number are the same file: each new one gets another generation."""
    return (
        old.ino == new.ino
        and old.i_generation == new.i_generation
        and stat.S_IFMT(old.i_mode) == stat.S_IFMT(new.i_mode)
    )


async def find_changed_inodes(old: Volume, new: Volume, written: Sequence[int]) -> dict[int, ChangedInode]:
    """The inodes that differ, in whatever: in times alone as well.

    Args:
        written: the numbers of the blocks that may differ, ascending.

    Raises:
        CorruptFilesystem: the two are no states of one file system.
        MystfuseError: reading failed.
    """
    superblock = new.superblock
    fields = (
        "block_size",
        "s_blocks_count",
        "s_blocks_per_group",
        "s_inodes_count",
        "s_inodes_per_group",
        "s_inode_size",
    )
    for field in fields:
        if getattr(superblock, field) != getattr(old.superblock, field):
            raise CorruptFilesystem(f"the superblock's {field} has changed: these are two file systems")
    tables = await _written_tables(new, written)
    changed: dict[int, ChangedInode] = {}
    for start in range(0, len(tables), _AT_ONCE):
        await trio.lowlevel.checkpoint()
        some = tables[start : start + _AT_ONCE]
        numbers = [table.number for table in some]
        before, after = await old.run(_read, numbers), await new.run(_read, numbers)
        for table, one, other in zip(some, before, after, strict=True):
            for ino in _differing(one, other, table.inodes, superblock.s_inode_size):
                pair = ChangedInode(await old.run(_parse, table, one, ino), await new.run(_parse, table, other, ino))
                is_named = ino >= superblock.s_first_ino and ino not in superblock.hidden_inodes
                if is_named or ino == EXT2_ROOT_INO:
                    changed[ino] = pair
    return changed


class _TableBlock(NamedTuple):
    """A block of an inode table."""

    number: int
    inodes: range
    """The numbers of those in it."""


async def _written_tables(volume: Volume, written: Sequence[int]) -> list[_TableBlock]:
    """The blocks of inode tables among the written ones."""
    superblock = volume.superblock
    per_block = superblock.block_size // superblock.s_inode_size
    found: list[_TableBlock] = []
    async for group, table in _likely_tables(volume, written):
        low = bisect_left(written, table)
        high = bisect_left(written, table + superblock.table_blocks, low)
        past = (group + 1) * superblock.s_inodes_per_group + 1
        for number in written[low:high]:
            first = group * superblock.s_inodes_per_group + 1 + (number - table) * per_block
            found.append(_TableBlock(number, range(first, min(first + per_block, past))))
    return found


async def _likely_tables(volume: Volume, written: Sequence[int]) -> AsyncIterator[tuple[int, int]]:
    """Groups whose inode tables may be among the written blocks, and where these begin."""
    superblock = volume.superblock
    if "flex_bg" in superblock.features:
        # They may be anywhere.
        for start in range(0, superblock.groups_count, _AT_ONCE):
            await trio.lowlevel.checkpoint()
            groups = range(start, min(start + _AT_ONCE, superblock.groups_count))
            for group, table in zip(groups, await volume.run(_tables_of, groups), strict=True):
                yield group, table
        return
    index = bisect_left(written, superblock.s_first_data_block)
    while index < len(written):
        await trio.lowlevel.checkpoint()
        group = (written[index] - superblock.s_first_data_block) // superblock.s_blocks_per_group
        (table,) = await volume.run(_tables_of, range(group, group + 1))
        yield group, table
        end = superblock.s_first_data_block + (group + 1) * superblock.s_blocks_per_group
        index = bisect_left(written, end, index)


def _tables_of(filesystem: FileSystem, blocks: Blocks, groups: range) -> list[int]:
    """The first block of each group's inode table."""
    filesystem.groups.want_places(blocks, groups)
    return [filesystem.groups.places(blocks, group).bg_inode_table for group in groups]


def _read(filesystem: FileSystem, blocks: Blocks, numbers: Sequence[int]) -> list[bytes]:
    return [bytes(block) for block in blocks.all(numbers)]


def _differing(before: bytes, after: bytes, inodes: range, size: int) -> Iterator[int]:
    """The numbers of the inodes that differ in a block of an inode table.

    Args:
        inodes: the numbers of those in it.
        size: bytes of each.
    """
    if before == after:
        return
    for ino, offset in zip(inodes, range(0, len(after), size), strict=False):
        if before[offset : offset + size] != after[offset : offset + size]:
            yield ino


def _parse(filesystem: FileSystem, blocks: Blocks, table: _TableBlock, block: bytes, ino: int) -> Inode | None:
    size = filesystem.superblock.s_inode_size
    offset = (ino - table.inodes.start) * size
    group, index = filesystem.groups.locate_inode(ino)
    if index >= filesystem.groups.inodes_used(blocks, group):
        return None
    try:
        inode = filesystem.inode_table.parse(block[offset : offset + size], ino)
    except FormatError:
        # Whoever meets a name of it will say what is wrong.
        return None
    # One with the value of an attribute is a part of its owner, which has changed too.
    return inode if inode.i_links_count and not inode.i_flags & EXT4_EA_INODE_FL else None


class ChangedNames(NamedTuple):
    """The names, with inode numbers, in those blocks of a directory that differ: some are in both."""

    old: dict[bytes, int]
    new: dict[bytes, int]


async def compare_names(old: Volume, new: Volume, before: Inode, after: Inode, written: Sequence[int]) -> ChangedNames:
    """The names of a directory that may differ. Only blocks that have been written, or are not the directory's in both
    states, are read.

    Raises:
        CorruptFilesystem: a name is there twice, or the directory is broken.
        MystfuseError: reading failed.
    """
    found = ChangedNames({}, {})
    counts = block_count(old.superblock, before), block_count(new.superblock, after)
    for start in range(0, max(counts), _DIRECTORY_AT_ONCE):
        await trio.lowlevel.checkpoint()
        maps = [
            await volume.run(_map, inode, start, max(min(count - start, _DIRECTORY_AT_ONCE), 0))
            for volume, inode, count in ((old, before, counts[0]), (new, after, counts[1]))
        ]
        length = max(map(len, maps))
        pairs = [[*pointers, *[0] * (length - len(pointers))] for pointers in maps]
        for logical, (one, other) in enumerate(zip(*pairs, strict=True), start):
            if one == other and not _is_among(written, one) and not (before.is_inline and after.is_inline):
                continue
            for volume, inode, count, names in (
                (old, before, counts[0], found.old),
                (new, after, counts[1], found.new),
            ):
                if logical < count:
                    _add_names(names, inode, await volume.run(_names_in, inode, logical))
            await trio.lowlevel.checkpoint()
    return found


def _map(filesystem: FileSystem, blocks: Blocks, inode: Inode, first: int, count: int) -> list[int]:
    return map_blocks(filesystem.superblock, blocks, inode, first, count) if count else []


def _is_among(numbers: Sequence[int], number: int) -> bool:
    index = bisect_left(numbers, number)
    return index < len(numbers) and numbers[index] == number


def _names_in(filesystem: FileSystem, blocks: Blocks, inode: Inode, logical: int) -> list[tuple[bytes, int]]:
    superblock = filesystem.superblock
    (number,) = map_blocks(superblock, blocks, inode, logical, 1)
    block = directory_block(superblock, inode, blocks, logical, number)
    return [(entry.name, entry.ino) for entry in parse_block(superblock, inode, block, logical)]


def _add_names(names: dict[bytes, int], inode: Inode, more: list[tuple[bytes, int]]) -> None:
    for name, ino in more:
        if name in names:
            raise CorruptFilesystem(f"directory inode {inode.ino} has {name!r} twice")
        names[name] = ino


async def all_names(volume: Volume, inode: Inode) -> dict[bytes, int]:
    """All names of a directory, with inode numbers; raises as ``compare_names``."""
    found: dict[bytes, int] = {}
    for logical in range(block_count(volume.superblock, inode)):
        await trio.lowlevel.checkpoint()
        _add_names(found, inode, await volume.run(_names_in, inode, logical))
    return found

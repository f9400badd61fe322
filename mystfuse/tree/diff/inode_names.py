"""Finding the names of an inode, which does not record them: a directory's by its ``..``, others by a search."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import NamedTuple

import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Block, Blocks
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.directory import block_count, parse_block
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inline_data import inline_directory
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume

_BLOCKS_AT_ONCE = 64
"""Blocks of a directory, or of an inode table, that are searched between two checkpoints."""
_FEW_BLOCKS = 8
_INODES_AT_ONCE = 64
"""Inodes that are sought at a time: as many make one pattern."""
_LINKS_OFFSET = 26


class Link(NamedTuple):
    """A name of an inode."""

    directory: int
    """Inode number."""
    name: bytes


class InodeNames:
    """Finds names in one state of a file system.

    A search looks into the directories that are likely first: those given, then the directory whose inode lies in front
    of the sought one and the directories above it (mke2fs numbers the inodes of a tree in its order), then all others,
    the groups nearest to the sought inodes first (ext2 puts a file into its directory's group). So it mostly takes a
    few blocks; at worst it reads the inode tables of all groups that have directories, and all directories.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._above: dict[int, Link | None] = {}
        """The name of each directory that has been asked for; None if it is in no place of the tree."""

    async def above(self, ino: int) -> Link | None:
        """The directory above directory ``ino``, and its name there; None for the root, and for a directory that its
        parent does not name.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        if ino == EXT2_ROOT_INO:
            return None
        if ino not in self._above:
            parent, _ = await self._volume.dots(ino)
            inode = await self._volume.inode(parent)
            found: list[Link] = []
            if inode.is_directory:
                _, found = await self._search_directory(inode, {ino})
            self._above[ino] = found[0] if found else None
        return self._above[ino]

    async def find(self, sought: Mapping[int, int], likely: Iterable[int]) -> dict[int, set[Link]]:
        """All names of inodes that are no directories.

        Args:
            sought: how many links each inode has; the search for it ends when as many are found.
            likely: directories to be searched first.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        search = _Search(sought)
        for ino in likely:
            if search.is_done:
                return search.found
            await self._visit(ino, search)
        for ino in sorted(sought):
            if search.is_missing(ino):
                async for directory in self._directories_before(ino):
                    await self._visit(directory, search)
                    if not search.is_missing(ino):
                        break
        for group in await self._groups_by_distance(search):
            if search.is_done:
                break
            for directory in await self._directories_of(group):
                if search.is_done:
                    break
                await self._visit(directory, search)
        return search.found

    async def _visit(self, ino: int, search: _Search) -> None:
        """Search one directory, if that has not been done."""
        if ino in search.visited:
            return
        search.visited.add(ino)
        inode = await self._volume.inode(ino)
        if not inode.is_directory:
            return
        names, found = await self._search_directory(inode, search.missing)
        for number, link in zip(names, found, strict=True):
            search.add(number, link)

    async def _search_directory(self, inode: Inode, sought: Iterable[int]) -> tuple[list[int], list[Link]]:
        """The inodes, of those that are sought, that a directory names, and by which names."""
        patterns = [_pattern(some) for some in _batches(sorted(sought))]
        inos: list[int] = []
        links: list[Link] = []
        for start in range(0, block_count(self._volume.superblock, inode), _BLOCKS_AT_ONCE):
            await trio.lowlevel.checkpoint()
            for ino, name in await self._volume.run(_search_blocks, inode, start, patterns, sought):
                inos.append(ino)
                links.append(Link(inode.ino, name))
        return inos, links

    async def _directories_before(self, ino: int) -> AsyncIterator[int]:
        """The last directory with a smaller number in the same group, and the directories above it."""
        directory = 0
        for count in (_FEW_BLOCKS, _BLOCKS_AT_ONCE):
            directory = directory or await self._volume.run(_last_directory_before, ino, count)
        seen: set[int] = set()
        while directory and directory not in seen:
            seen.add(directory)
            yield directory
            try:
                directory, _ = (0, 0) if directory == EXT2_ROOT_INO else await self._volume.dots(directory)
            except MystfuseError:
                # It was a guess.
                return

    async def _groups_by_distance(self, search: _Search) -> list[int]:
        """All groups with directories, those with missing inodes and their neighbours first."""
        if search.is_done:
            return []
        per_group = self._volume.superblock.s_inodes_per_group
        near = sorted({(ino - 1) // per_group for ino in search.missing})
        counts = await self._volume.run(lambda filesystem, blocks: filesystem.groups.counts(blocks))
        groups = [group for group, count in enumerate(counts) if count.used_dirs]
        return sorted(groups, key=lambda group: min([abs(group - other) for other in near[:_INODES_AT_ONCE]]))

    async def _directories_of(self, group: int) -> list[int]:
        """The directories whose inodes are in a group."""
        superblock = self._volume.superblock
        found: list[int] = []
        for start in range(0, superblock.table_blocks, _BLOCKS_AT_ONCE):
            await trio.lowlevel.checkpoint()
            found += await self._volume.run(_directories_in, group, start)
        return found


class _Search:
    """What is still missing."""

    def __init__(self, sought: Mapping[int, int]) -> None:
        self.found: dict[int, set[Link]] = {ino: set() for ino in sought}
        self.missing = set(sought)
        self.visited: set[int] = set()
        self._counts = sought

    @property
    def is_done(self) -> bool:
        return not self.missing

    def is_missing(self, ino: int) -> bool:
        return ino in self.missing

    def add(self, ino: int, link: Link) -> None:
        links = self.found[ino]
        links.add(link)
        if len(links) >= self._counts[ino]:
            self.missing.discard(ino)


def _batches(numbers: list[int]) -> Iterable[list[int]]:
    return (numbers[start : start + _INODES_AT_ONCE] for start in range(0, len(numbers), _INODES_AT_ONCE))


def _pattern(inos: Iterable[int]) -> re.Pattern[bytes]:
    """Matches one of these inode numbers, as an entry begins with it."""
    return re.compile(b"|".join(re.escape(struct.pack("<I", ino)) for ino in inos), re.DOTALL)


def _search_blocks(
    filesystem: FileSystem,
    blocks: Blocks,
    inode: Inode,
    first: int,
    patterns: list[re.Pattern[bytes]],
    sought: Iterable[int],
) -> list[tuple[int, bytes]]:
    superblock = filesystem.superblock
    count = min(block_count(superblock, inode) - first, _BLOCKS_AT_ONCE)
    wanted = set(sought)
    found: list[tuple[int, bytes]] = []
    for logical, block in _blocks_of(superblock, blocks, inode, first, count):
        # Only a few blocks are worth a look at each name.
        if any(pattern.search(block) for pattern in patterns):
            entries = parse_block(superblock, inode, block, logical)
            found += [(entry.ino, entry.name) for entry in entries if entry.ino in wanted]
    return found


def _blocks_of(
    superblock: Superblock, blocks: Blocks, inode: Inode, first: int, count: int
) -> Iterator[tuple[int, Block]]:
    """The blocks of a part of a directory, with their places in it; holes are left out."""
    if inode.is_inline:
        yield 0, inline_directory(superblock, inode)
        return
    numbers = map_blocks(superblock, blocks, inode, first, count)
    logicals = [first + index for index, number in enumerate(numbers) if number]
    yield from zip(logicals, blocks.all([number for number in numbers if number]), strict=True)


def _table_blocks(filesystem: FileSystem, blocks: Blocks, group: int, first: int, count: int) -> bytes:
    table = filesystem.groups.places(blocks, group).bg_inode_table
    return b"".join(blocks.all(range(table + first, table + first + count)))


_DIRECTORY_MODES = re.compile(rb"[\x40-\x4f]")


def _find_directories(table: bytes, size: int) -> list[int]:
    """The indices of the inodes in use in a part of an inode table that are directories."""
    # The second byte of each inode has the file type.
    candidates = [match.start() for match in _DIRECTORY_MODES.finditer(table[1::size])]
    return [
        index
        for index in candidates
        if table[index * size + _LINKS_OFFSET : index * size + _LINKS_OFFSET + 2] != b"\0\0"
    ]


def _directories_in(filesystem: FileSystem, blocks: Blocks, group: int, first: int) -> list[int]:
    """The directories in up to 64 blocks of a group's inode table, from block ``first`` of it on."""
    superblock = filesystem.superblock
    count = min(superblock.table_blocks - first, _BLOCKS_AT_ONCE)
    base = first * (superblock.block_size // superblock.s_inode_size)
    found = _find_directories(_table_blocks(filesystem, blocks, group, first, count), superblock.s_inode_size)
    inos = [group * superblock.s_inodes_per_group + base + index + 1 for index in found]
    end = group * superblock.s_inodes_per_group + filesystem.groups.inodes_used(blocks, group)
    return [ino for ino in inos if (ino == EXT2_ROOT_INO or ino >= superblock.s_first_ino) and ino <= end]


def _last_directory_before(filesystem: FileSystem, blocks: Blocks, ino: int, count: int) -> int:
    """The last directory in front of an inode, in ``count`` blocks of its group's inode table; 0 if there is none."""
    superblock = filesystem.superblock
    group, index = filesystem.groups.locate_inode(ino)
    per_block = superblock.block_size // superblock.s_inode_size
    last = index // per_block
    first = max(last + 1 - count, 0)
    table = _table_blocks(filesystem, blocks, group, first, last + 1 - first)
    found = [first * per_block + place for place in _find_directories(table, superblock.s_inode_size)]
    before = [place for place in found if place < index]
    base = group * superblock.s_inodes_per_group + 1
    return base + before[-1] if before else 0

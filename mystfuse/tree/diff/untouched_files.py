"""Inodes of two images of one file system of which no block differs: nothing else of them has to be compared.

The hash trees say which blocks differ. One pass over the inode tables and block maps finds the inodes that have none of
them. It looks at all inodes: in a hostile image, several may have the same blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from mystfuse.devices.tree_difference import differing_blocks
from mystfuse.errors import MystfuseError, StorageTimeout
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode_blocks import DIRECTORY, FILE, InodeBlocks, direct_pointers, indirect_roots, inodes_in_use
from mystfuse.system.number_set import NumberSet
from mystfuse.tree.diff.extent_walk import runs_of_tree
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.volume.volume import Volume

_MOST_BLOCKS = 1 << 18
"""Blocks that may differ; more are not worth it."""
_AT_ONCE = 128
"""Blocks that are read between two checkpoints."""
_LAYOUT = (
    "block_size",
    "features",
    "s_blocks_count",
    "s_blocks_per_group",
    "s_first_data_block",
    "s_first_ino",
    "s_inode_size",
    "s_inodes_count",
    "s_inodes_per_group",
    "s_rev_level",
)
"""Fields of the superblock that say where inodes are, and what their bytes mean."""


@dataclass(frozen=True, slots=True)
class UntouchedFiles:
    """Inodes that are surely the same in two images, with all that they hold. Use ``between``."""

    inodes: NumberSet | None
    """None for all."""

    def has(self, ino: int) -> bool:
        """Whether inode ``ino``, which both images have, is one of them. If not, nobody knows."""
        return self.inodes is None or ino in self.inodes

    @classmethod
    async def between(cls, old: ImageView, new: ImageView) -> UntouchedFiles | None:
        """For two images; None if they have no hash trees that can be compared, differ in too much, have their inodes
        in other places, or cannot be read in full.

        Raises:
            StorageTimeout: storage does not answer.
        """
        try:
            return await cls._between(old, new)
        except StorageTimeout:
            raise
        except MystfuseError:
            # Whoever needs what is broken or damaged will meet it.
            return None

    @classmethod
    async def _between(cls, old: ImageView, new: ImageView) -> UntouchedFiles | None:
        if old.verity is None or new.verity is None:
            return None
        superblock = new.volume.superblock
        if any(getattr(superblock, field) != getattr(old.volume.superblock, field) for field in _LAYOUT):
            return None
        touched = await differing_blocks(old.verity, new.verity, _MOST_BLOCKS)
        if touched is None:
            return None
        if not touched:
            return cls(None)
        tables = await _tables_of(new.volume)
        if tables != await _tables_of(old.volume):
            return None
        unit, size = old.verity.superblock.data_block_size, superblock.block_size
        numbers = {
            number
            for block in touched
            for number in range(block * unit // size, max(-(-(block + 1) * unit // size), block * unit // size + 1))
        }
        # No inode has block 0: it stands for none.
        numbers.discard(0)
        search = _Search(new.volume, numbers)
        return cls(search.found) if await search.run(tables) else None


class _Layer(NamedTuple):
    """Indirect blocks of one level, and the inodes that they are of."""

    numbers: list[int]
    inos: list[int]


class _Search:
    """Finds the inodes that have none of the ``touched`` blocks."""

    def __init__(self, volume: Volume, touched: set[int]) -> None:
        self.found = NumberSet()
        self._volume = volume
        self._touched = touched
        self._maps_left = volume.superblock.s_blocks_count
        """Indirect blocks that may still be read; in a hostile image each may be of any number of inodes."""

    async def run(self, tables: Sequence[int]) -> bool:
        """Look at all inodes; False if that would take too long.

        Args:
            tables: the first block of each group's inode table.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        superblock = self._volume.superblock
        per_block = superblock.block_size // superblock.s_inode_size
        for group, table in enumerate(tables):
            for start in range(0, superblock.table_blocks, _AT_ONCE):
                await trio.lowlevel.checkpoint()
                numbers = range(table + start, table + min(start + _AT_ONCE, superblock.table_blocks))
                first = group * superblock.s_inodes_per_group + 1 + start * per_block
                inodes = [
                    inode
                    for inode in await self._volume.run(_inodes_in, numbers, first)
                    if numbers[(inode.ino - first) // per_block] not in self._touched
                ]
                if not await self._take(inodes):
                    return False
        return True

    async def _take(self, inodes: list[InodeBlocks]) -> bool:
        touched = self._touched
        layers = {level: _Layer([], []) for level in (1, 2, 3)}
        untouched: set[int] = set()
        for inode in inodes:
            if inode.file_acl in touched or not touched.isdisjoint(direct_pointers(inode)):
                continue
            if inode.tree:
                if await self._has_untouched_tree(inode):
                    untouched.add(inode.ino)
                if self._maps_left < 0:
                    return False
                continue
            if not inode.roots and not inode.is_inline and inode.kind in (FILE, DIRECTORY):
                # Not a map as we know it.
                continue
            untouched.add(inode.ino)
            for number, level, _ in indirect_roots(self._volume.superblock, inode):
                layers[level].numbers.append(number)
                layers[level].inos.append(inode.ino)
        for level in (3, 2, 1):
            layer = layers[level]
            below = layers.get(level - 1)
            for start in range(0, len(layer.numbers), _AT_ONCE):
                await trio.lowlevel.checkpoint()
                numbers, inos = (part[start : start + _AT_ONCE] for part in layer)
                self._maps_left -= len(numbers)
                if self._maps_left < 0:
                    return False
                maps = await self._volume.run(_pointers_in, numbers)
                for number, ino, pointers in zip(numbers, inos, maps, strict=True):
                    if number in touched or not touched.isdisjoint(pointers):
                        untouched.discard(ino)
                    elif below is not None:
                        inner = [pointer for pointer in pointers if pointer]
                        below.numbers.extend(inner)
                        below.inos.extend([ino] * len(inner))
                        if len(below.numbers) > self._maps_left:
                            return False
        for ino in untouched:
            self.found.add(ino)
        return True

    async def _has_untouched_tree(self, inode: InodeBlocks) -> bool:
        """Whether none of the blocks of an inode with extents is touched; False, too, if the search takes too long."""
        touched = self._touched
        async for runs in runs_of_tree(self._volume, inode.tree):
            self._maps_left -= 1
            if self._maps_left < 0 or any(not touched.isdisjoint(range(first, first + count)) for first, count in runs):
                return False
        return True


async def _tables_of(volume: Volume) -> list[int]:
    """The first block of each group's inode table."""
    tables: list[int] = []
    for start in range(0, volume.superblock.groups_count, _AT_ONCE):
        await trio.lowlevel.checkpoint()
        groups = range(start, min(start + _AT_ONCE, volume.superblock.groups_count))
        tables += await volume.run(_tables_in, groups)
    return tables


def _tables_in(filesystem: FileSystem, blocks: Blocks, groups: range) -> list[int]:
    filesystem.groups.want_places(blocks, groups)
    return [filesystem.groups.places(blocks, group).bg_inode_table for group in groups]


def _inodes_in(filesystem: FileSystem, blocks: Blocks, numbers: range, first: int) -> list[InodeBlocks]:
    superblock = filesystem.superblock
    per_block = superblock.block_size // superblock.s_inode_size
    found: list[InodeBlocks] = []
    for index, data in enumerate(blocks.all(numbers)):
        block = bytes(data)
        if block.count(0) < len(block):
            found += inodes_in_use(superblock, block, first + index * per_block)
    return found


def _pointers_in(filesystem: FileSystem, blocks: Blocks, numbers: Sequence[int]) -> list[tuple[int, ...]]:
    """The pointers in indirect blocks; none of one that would be outside the file system."""
    superblock = filesystem.superblock
    layout = struct.Struct(f"<{superblock.block_size // 4}I")
    inside = sorted({number for number in numbers if superblock.is_data_block(number)})
    known = {number: layout.unpack(block) for number, block in zip(inside, blocks.all(inside), strict=True)}
    return [known.get(number, ()) for number in numbers]

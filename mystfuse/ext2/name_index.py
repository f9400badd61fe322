"""In memory, which block of a directory holds which name: built once for a directory of more than one block.

Eight bytes a name: a sorted array of (hash of the name << 32 | block), so that a look-up is a bisection and a directory
of a million names takes 8 MB.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from mystfuse.errors import CorruptFilesystem, ImageReadError, MystfuseError
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks, BlocksMissing
from mystfuse.ext2.directory import block_count, directory_block, find_in_block, parse_block
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

MAX_NAMES = 4_000_000
"""Names in one directory: more are taken for a broken one."""
MAX_INDEXED_NAMES = 4_000_000
"""Names kept in all indexes together (8 bytes each), unless a single directory has more."""
_BLOCKS_AT_ONCE = 256
_INDEX_WEIGHT = 64
"""What an index costs besides its names, in names."""


class NameIndex:
    """The index of one directory. ``indexed`` blocks of it are in; it is of use when all are."""

    def __init__(self) -> None:
        self.indexed = 0
        self.damage: MystfuseError | None = None
        """Why a name that is not found may still be there: a block that could not be read, or not to its end."""
        self._keys = array("Q")
        self._is_sorted = True
        self._blocks: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add_block(self, logical: int, names: Iterable[bytes]) -> None:
        """Enter the names of block ``logical``, which must be the next one; CorruptFilesystem in the middle of it is
        noted as damage."""
        try:
            for name in names:
                self._keys.append(_key(name) | logical)
        except CorruptFilesystem as error:
            self.damage = self.damage or error
        self._is_sorted = False
        self.indexed = logical + 1

    def check_blocks(self, inode: Inode, numbers: list[int]) -> None:
        """Raise CorruptFilesystem if a directory maps a block twice: a small image could claim to hold a huge one."""
        new = {number for number in numbers if number}
        if len(new) + numbers.count(0) != len(numbers) or not self._blocks.isdisjoint(new):
            raise CorruptFilesystem(f"directory inode {inode.ino} has a block twice")

    def remember_blocks(self, numbers: list[int]) -> None:
        """Note blocks that are about to be entered, for ``check_blocks``."""
        self._blocks.update(numbers)
        self._blocks.discard(0)

    def forget_blocks(self) -> None:
        """What ``check_blocks`` compares with is not needed once all are in."""
        self._blocks = set()

    def candidates(self, name: bytes) -> Iterator[int]:
        """The blocks that may hold ``name``, in order; nearly always none or one."""
        if not self._is_sorted:
            self._keys = array("Q", sorted(self._keys))
            self._is_sorted = True
        key = _key(name)
        for position in range(bisect_left(self._keys, key), len(self._keys)):
            found = self._keys[position]
            if found >> 32 != key >> 32:
                return
            yield found & 0xFFFFFFFF


def _key(name: bytes) -> int:
    return (hash(name) & 0xFFFFFFFF) << 32


class NameIndexes:
    """The indexes of the directories looked into lately, bounded by the names in them."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[int, NameIndex] = OrderedDict()
        self._weight = 0

    def find(self, superblock: Superblock, blocks: Blocks, inode: Inode, name: bytes) -> int:
        """The inode number behind ``name`` in directory ``inode``, or 0.

        A damaged block does not matter to names in other blocks.

        Raises:
            BlocksMissing: with ``progress`` while the index of a large directory is being built.
            MystfuseError: the name was not found, and there is damage where it may be.
        """
        count = block_count(superblock, inode)
        if count == 1:
            number = map_blocks(superblock, blocks, inode, 0, 1)[0]
            return find_in_block(superblock, inode, directory_block(inode, blocks, 0, number), 0, name)
        index = self._complete_index(superblock, blocks, inode, count)
        for logical in index.candidates(name):
            number = map_blocks(superblock, blocks, inode, logical, 1)[0]
            if ino := find_in_block(superblock, inode, directory_block(inode, blocks, logical, number), logical, name):
                return ino
        if index.damage is not None:
            if isinstance(index.damage, ImageReadError):
                # Storage may answer next time.
                self._drop(inode.ino)
            raise index.damage
        return 0

    def _complete_index(self, superblock: Superblock, blocks: Blocks, inode: Inode, count: int) -> NameIndex:
        index = self._indexes.get(inode.ino)
        if index is None:
            index = self._indexes[inode.ino] = NameIndex()
            self._weight += _INDEX_WEIGHT
        self._indexes.move_to_end(inode.ino)
        while index.indexed < count:
            first = index.indexed
            numbers = map_blocks(superblock, blocks, inode, first, min(_BLOCKS_AT_ONCE, count - first))
            index.check_blocks(inode, numbers)
            try:
                blocks.want(number for number in numbers if number)
            except BlocksMissing as missing:
                raise BlocksMissing(missing.numbers, progress=first > 0) from None
            index.remember_blocks(numbers)
            names_before = len(index)
            for logical, number in enumerate(numbers, first):
                try:
                    block = directory_block(inode, blocks, logical, number)
                except MystfuseError as error:
                    index.damage = index.damage or error
                    index.indexed = logical + 1
                    continue
                index.add_block(logical, (entry.name for entry in parse_block(superblock, inode, block, logical)))
            self._weight += len(index) - names_before
            if len(index) > MAX_NAMES:
                self._drop(inode.ino)
                raise CorruptFilesystem(f"directory inode {inode.ino} has over {MAX_NAMES} names")
        index.forget_blocks()
        while len(self._indexes) > 1 and self._weight > MAX_INDEXED_NAMES:
            self._drop(next(iter(self._indexes)))
        return index

    def _drop(self, ino: int) -> None:
        self._weight -= _INDEX_WEIGHT + len(self._indexes.pop(ino))

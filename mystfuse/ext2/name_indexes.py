"""The blocks of a directory's names: an index in memory, built once for a directory of more than one block that has no
usable index of its own (``htree``), and kept up to date when names come and go.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOSPC
from functools import partial
from itertools import islice
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, ImageReadError, MystfuseError
from mystfuse.ext2.block_map import map_block, map_blocks
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing, Transaction
from mystfuse.ext2.directory import (
    OWNER,
    Found,
    block_count,
    directory_block,
    find_in_block,
    parse_block,
    want_blocks,
)
from mystfuse.ext2.htree import KnownBlocks, find_by_hash
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.name_index import NameIndex
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.directory_names import block_keys

MAX_NAMES = 4_000_000
"""Names in one directory: one that has more counts as broken."""
MAX_INDEXED_NAMES = 4_000_000
"""Names kept in all indexes together (8 bytes each), unless the two latest directories have more."""
_BYTES_AT_ONCE = 256 << 10
"""Of a directory, indexed in one step: 20,000 names at most, which take some hundredths of a second."""
_MAX_PROBED_TOGETHER = 256
"""Blocks of a directory that are searched together."""
_LARGE = 64
"""Blocks: a directory that has more gets ``_ARRAY_BITS``."""
_ARRAY_BITS = 8
_INDEX_WEIGHT = 64
"""The cost of an index besides its names, in names."""
_MAX_LATEST = 1024
_MAX_KNOWN_DIRECTORIES, _MAX_KNOWN_BYTES = 16, 256 << 10
"""Directories, and of each how much of its own index is kept in memory."""


def _blocks_at_once(superblock: Superblock) -> int:
    return max(_BYTES_AT_ONCE // superblock.block_size, 1)


class LatestEntry(NamedTuple):
    """Where the entry is that was added to a directory last."""

    logical: int
    number: int
    """Its block's."""
    offset: int


class NameIndexes:
    """The indexes of the directories used lately, bounded by the names in them."""

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self._indexes: OrderedDict[int, NameIndex] = OrderedDict()
        self._weight = 0
        self._latest: OrderedDict[int, LatestEntry] = OrderedDict()
        self._known: OrderedDict[int, KnownBlocks] = OrderedDict()
        """Of indexed directories, index blocks. They change with the directory's length alone."""

    def find(self, blocks: Blocks, inode: Inode, name: bytes) -> tuple[Found, int, int] | None:
        """Where ``name`` in directory ``inode`` is: (its place in a block, the number of that block in the directory,
        the number of the block).

        A damaged block does not matter to names in other blocks.

        Raises:
            BlocksMissing: with ``progress`` while the index of a large directory is being built.
            MystfuseError: the name was not found, and there is damage where it may be.
        """
        count = block_count(self._superblock, inode)
        if count == 1:
            number = map_block(self._superblock, blocks, inode, 0)
            found = find_in_block(
                self._superblock, inode, directory_block(self._superblock, inode, blocks, 0, number), 0, name
            )
            return (found, 0, number) if found else None
        if inode.is_indexed and self._superblock.name_hash is not None and not inode.has_other_names:
            try:
                return find_by_hash(self._superblock, blocks, inode, name, self._known_blocks(inode.ino))
            except MystfuseError:
                # Where the directory's own index is of no use, ours finds what can be found.
                pass
        index = self._complete_index(blocks, inode, count)
        found_in = self._find_indexed(blocks, inode, index, name)
        if found_in is None and (index.unread or index.damage):
            error = self._read_again(blocks, inode, index)
            found_in = self._find_indexed(blocks, inode, index, name)
            if found_in is None and error is not None:
                raise error
        return found_in

    def _known_blocks(self, ino: int) -> KnownBlocks:
        """The index blocks of a directory that are in memory."""
        known = self._known.get(ino)
        if known is None or len(known) > max(_MAX_KNOWN_BYTES // self._superblock.block_size, 4):
            if len(self._known) >= _MAX_KNOWN_DIRECTORIES:
                self._known.popitem(last=False)
            known = self._known[ino] = {}
        return known

    def _find_indexed(
        self, blocks: Blocks, inode: Inode, index: NameIndex, name: bytes
    ) -> tuple[Found, int, int] | None:
        logicals = index.candidates(name)
        if not logicals:
            return None
        if len(logicals) == 1:
            # As below, in fewer steps.
            (logical,) = logicals
            number = map_block(self._superblock, blocks, inode, logical)
            block = directory_block(self._superblock, inode, blocks, logical, number)
            only = find_in_block(self._superblock, inode, block, logical, name)
            return (only, logical, number) if only else None
        candidates = iter(logicals)
        while some := self._next_blocks(blocks, inode, candidates):
            for logical, number in some:
                block = directory_block(self._superblock, inode, blocks, logical, number)
                if found := find_in_block(self._superblock, inode, block, logical, name):
                    return found, logical, number
        return None

    def _next_blocks(self, blocks: Blocks, inode: Inode, logicals: Iterator[int]) -> list[tuple[int, int]]:
        """The next blocks of a directory to search, each with its block number; fetched together: removed names may
        leave many, each a miss in the overlay's store."""
        some = [
            (logical, map_block(self._superblock, blocks, inode, logical))
            for logical in islice(logicals, _MAX_PROBED_TOGETHER)
        ]
        want_blocks(inode, blocks, [number for _, number in some if number])
        return some

    def _read_again(self, blocks: Blocks, inode: Inode, index: NameIndex) -> MystfuseError | None:
        """Enter the blocks that failed to read when the index was built; returns why names may still be missing, or
        None."""
        try:
            return self._enter_unread(blocks, inode, index)
        except MemoryError:
            # A block may count as read before all its names are in.
            self.forget_all()
            raise

    def _enter_unread(self, blocks: Blocks, inode: Inode, index: NameIndex) -> MystfuseError | None:
        if len(index.unread) > _blocks_at_once(self._superblock):
            self._drop(inode.ino)
            return ImageReadError(f"directory inode {inode.ino}: {len(index.unread)} blocks could not be read")
        numbers = {logical: map_block(self._superblock, blocks, inode, logical) for logical in sorted(index.unread)}
        want_blocks(inode, blocks, numbers.values())
        failure: MystfuseError | None = None
        names_before = len(index)
        for logical, number in numbers.items():
            try:
                block = directory_block(self._superblock, inode, blocks, logical, number)
            except MystfuseError as error:
                failure = error
            else:
                index.unread.discard(logical)
                index.add_names(logical, (entry.name for entry in parse_block(self._superblock, inode, block, logical)))
        self._weight += len(index) - names_before
        return failure or (CorruptFilesystem(index.damage) if index.damage else None)

    def is_empty(self, blocks: Blocks, inode: Inode) -> bool:
        """Whether directory ``inode`` holds nothing but ``.`` and ``..``.

        Raises:
            BlocksMissing: with ``progress`` while the index of a large directory is being built.
            MystfuseError: there is damage, so that it is unknown.
        """
        count = block_count(self._superblock, inode)
        if count == 1:
            logicals = iter((0,))
        elif inode.ino not in self._indexes and self._begins_with_names(blocks, inode, count):
            return False
        else:
            index = self._complete_index(blocks, inode, count)
            if index.unread or index.damage:
                error = self._read_again(blocks, inode, index)
                if error is not None:
                    raise error
            logicals = index.blocks_with_names()
        while some := self._next_blocks(blocks, inode, logicals):
            for logical, number in some:
                block = directory_block(self._superblock, inode, blocks, logical, number)
                if any(True for _ in parse_block(self._superblock, inode, block, logical)):
                    return False
        return True

    def _begins_with_names(self, blocks: Blocks, inode: Inode, count: int) -> bool:
        """Whether the first blocks of a directory have names; also False if that is not known."""
        numbers = map_blocks(self._superblock, blocks, inode, 0, min(_blocks_at_once(self._superblock), count))
        want_blocks(inode, blocks, [number for number in numbers if number])
        for logical, number in enumerate(numbers):
            with suppress(MystfuseError):
                block = directory_block(self._superblock, inode, blocks, logical, number)
                if any(True for _ in parse_block(self._superblock, inode, block, logical)):
                    return True
        return False

    def blocks_with_room(self, blocks: Blocks, inode: Inode, length: int) -> Iterator[tuple[int, int]]:
        """Blocks of a directory to try for an entry of ``length`` bytes: where each is in the directory, and its block
        number. The first one nearly always has room; the others are fetched together.

        Raises:
            OSError: ENOSPC, the directory has as many names as one may have.
            BlocksMissing, MystfuseError
        """
        count = block_count(self._superblock, inode)
        if count == 1:
            yield 0, map_block(self._superblock, blocks, inode, 0)
            return
        index = self._complete_index(blocks, inode, count)
        if len(index) >= MAX_NAMES:
            raise OSError(ENOSPC, f"directory inode {inode.ino} has {MAX_NAMES} names")
        first, *others = index.blocks_with_room(length) or (-1,)
        if first < 0:
            return
        yield first, map_block(self._superblock, blocks, inode, first)
        if others:
            chosen = [(logical, map_block(self._superblock, blocks, inode, logical)) for logical in others]
            want_blocks(inode, blocks, [number for _, number in chosen])
            yield from chosen

    def set_room(self, ino: int, logical: int, length: int) -> None:
        """See ``NameIndex.set_room``."""
        index = self._indexes.get(ino)
        if index is not None and logical < index.indexed:
            index.set_room(logical, length)

    def latest(self, ino: int) -> LatestEntry | None:
        """The latest entry of a directory, if it is known: the next one fits behind it, most often."""
        index = self._indexes.get(ino)
        return None if index is not None and len(index) >= MAX_NAMES else self._latest.get(ino)

    def note_insertion(
        self, transaction: Transaction, ino: int, place: LatestEntry, name: bytes, new_block_room: int | None = None
    ) -> None:
        """At the commit, record an entry for ``name``; ``new_block_room`` bytes are left behind it if its block is
        new."""
        transaction.on_commit.append(partial(self._insert, ino, place, name, new_block_room))

    def note_name(self, transaction: Transaction, ino: int, logical: int, name: bytes) -> None:
        """At the commit, record a name in block ``logical`` of an indexed directory."""
        transaction.on_commit.append(partial(self._enter, ino, logical, name))

    def note_block(self, transaction: Transaction, ino: int, logical: int) -> None:
        """At the commit, record that an indexed directory has block ``logical``, without names so far."""
        transaction.on_commit.append(partial(self._add_block, ino, logical))

    def note_move(
        self, transaction: Transaction, ino: int, logical: int, to: int, names: Callable[[], list[bytes]]
    ) -> None:
        """At the commit, record that ``names`` have gone from block ``logical`` to block ``to``."""
        transaction.on_commit.append(partial(self._move, ino, logical, to, names))

    def note_all_moved(self, transaction: Transaction, ino: int) -> None:
        """At the commit, forget where names are in a directory that becomes an indexed one."""
        transaction.on_commit.append(partial(self.forget, ino))

    def note_removal(self, transaction: Transaction, ino: int, logical: int, name: bytes, room: int) -> None:
        """At the commit, record that ``name`` is gone from block ``logical``, leaving up to ``room`` bytes."""
        transaction.on_commit.append(partial(self._remove, ino, logical, name, room))

    def forget(self, ino: int) -> None:
        """The inode is not a directory any more."""
        self._latest.pop(ino, None)
        self._known.pop(ino, None)
        if ino in self._indexes:
            self._drop(ino)

    def _insert(self, ino: int, place: LatestEntry, name: bytes, new_block_room: int | None) -> None:
        self._latest[ino] = place
        self._latest.move_to_end(ino)
        if len(self._latest) > _MAX_LATEST:
            self._latest.popitem(last=False)
        index = self._indexes.get(ino)
        is_new_block = new_block_room is not None
        if index is None or place.logical >= index.indexed + is_new_block:
            # The index is being built: it will reach this block.
            return
        if new_block_room is not None:
            index.add_blocks(1, [])
            index.set_room(place.logical, new_block_room)
        index.add_name(name, place.logical)
        self._weight += 1
        if is_new_block and not index.bits and index.indexed > _LARGE:
            # It has grown large: its next index is one for a large directory.
            self._drop(ino)

    def _enter(self, ino: int, logical: int, name: bytes) -> None:
        index = self._indexes.get(ino)
        if index is not None and logical < index.indexed:
            index.add_name(name, logical)
            self._weight += 1

    def _add_block(self, ino: int, logical: int) -> None:
        self._known.pop(ino, None)
        index = self._indexes.get(ino)
        if index is not None and logical == index.indexed:
            index.add_blocks(1, [])
            if not index.bits and index.indexed > _LARGE:
                self._drop(ino)

    def _move(self, ino: int, logical: int, to: int, names: Callable[[], list[bytes]]) -> None:
        if ino not in self._indexes:
            return
        for name in names():
            self._enter(ino, to, name)
            self._remove(ino, logical, name, 0)

    def _remove(self, ino: int, logical: int, name: bytes, room: int) -> None:
        self._latest.pop(ino, None)
        index = self._indexes.get(ino)
        if index is None or logical >= index.indexed:
            return
        before = len(index)
        index.remove_name(name, logical)
        index.raise_room(logical, room)
        self._weight += len(index) - before
        if index.is_mostly_stale:
            self._drop(ino)

    def _complete_index(self, blocks: Blocks, inode: Inode, count: int) -> NameIndex:
        index = self._indexes.get(inode.ino)
        if index is not None and index.indexed >= count and self._weight <= MAX_INDEXED_NAMES:
            self._indexes.move_to_end(inode.ino)
            return index
        try:
            return self._build_index(blocks, inode, count)
        except MemoryError:
            # Half a step may be indexed.
            self.forget_all()
            raise

    def forget_all(self) -> None:
        """Drop every index. Takes no memory."""
        self._indexes.clear()
        self._latest.clear()
        self._known.clear()
        self._weight = 0

    def _build_index(self, blocks: Blocks, inode: Inode, count: int) -> NameIndex:
        index = self._indexes.get(inode.ino)
        if index is None:
            index = self._indexes[inode.ino] = NameIndex(_ARRAY_BITS if count > _LARGE else 0)
            self._weight += _INDEX_WEIGHT
        self._indexes.move_to_end(inode.ino)
        while index.indexed < count:
            first = index.indexed
            numbers = map_blocks(
                self._superblock, blocks, inode, first, min(_blocks_at_once(self._superblock), count - first)
            )
            index.check_blocks(inode, numbers)
            try:
                blocks.want([number for number in numbers if number])
            except BlocksMissing as missing:
                raise BlocksMissing(missing.numbers, progress=first > 0).of(OWNER, inode.ino) from None
            index.remember_blocks(numbers)
            names_before = len(index)
            found: list[Block] = []
            for logical, number in enumerate(numbers, first):
                try:
                    found.append(directory_block(self._superblock, inode, blocks, logical, number))
                except MystfuseError as error:
                    found.append(b"")
                    if isinstance(error, CorruptFilesystem):
                        index.damage = index.damage or str(error)
                    else:
                        index.unread.add(logical)
            if inode.is_encrypted:
                # Names are known as they are shown.
                keys, unusual = [array("Q")] * (1 << index.bits), list(range(len(found)))
            else:
                keys, unusual = block_keys(found, first, self._superblock.has_filetype, index.bits)
            index.add_blocks(len(found), keys)
            for logical in (first + position for position in unusual if found[position]):
                block = found[logical - first]
                index.add_names(logical, (entry.name for entry in parse_block(self._superblock, inode, block, logical)))
            self._weight += len(index) - names_before
            if len(index) > MAX_NAMES:
                self._drop(inode.ino)
                raise CorruptFilesystem(f"directory inode {inode.ino} has over {MAX_NAMES} names")
        index.forget_blocks()
        # Except those of the two directories of a rename: it would build them in turns for ever.
        while len(self._indexes) > 2 and self._weight > MAX_INDEXED_NAMES:
            self._drop(next(iter(self._indexes)))
        return index

    def _drop(self, ino: int) -> None:
        self._weight -= _INDEX_WEIGHT + len(self._indexes.pop(ino))

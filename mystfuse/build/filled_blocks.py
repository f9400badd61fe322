"""How many blocks a tree fills when mke2fs copies it: the smallest file system has that many free before.

mke2fs (1.47: misc/create_inode.c, lib/ext2fs/link.c) writes no block of zeros, so that the data have to be read; and
puts each name into the first block of its directory that has room. What other versions do otherwise, ``mkext2`` notices
by the result.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing

from mystfuse.archives.file_tree import Attributes, Contents, Entry, OpenContents
from mystfuse.build.filesystem_kind import EXT2, Kind
from mystfuse.build.tree_limits import IN_INODE, stored_attribute
from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_NDIR_BLOCKS

_CHUNK = 1 << 20
_FAST_LINK = 60
"""Bytes of a link's target, with its end, that the inode has room for (i_block)."""
_DOTS = 24
"""Bytes of the entries ``.`` and ``..``."""
_LOST_AND_FOUND_ENTRY = 20
_LOST_AND_FOUND_SIZE = 16 << 10
"""Bytes that mke2fs gives lost+found beforehand, but no more than 12 blocks and no fewer than 2 (misc/mke2fs.c)."""
_UNIT = 4
"""Bytes: entries of directories are multiples of it."""


_CHECKSUM_TAIL = 12
"""Bytes at the end of a directory's block, with metadata_csum."""
_ENTRY_SIZE = 12
"""Bytes of a header or an entry of an extent tree."""
_IN_INODE_EXTENTS = 4
_LONGEST_EXTENT = 32768


def count_blocks(root: Entry, contents: Contents, block_size: int, kind: Kind = EXT2) -> int:
    """Blocks of ``block_size`` bytes that are taken from an empty file system's free ones. Of ext4 it is an estimate:
    what is in the inodes is not left out.

    Raises:
        MystfuseError: reading a file failed.
    """
    blocks = 0
    # Data are counted in clusters.
    unit = block_size * kind.blocks_per_cluster
    for entry in root.walk():
        type_ = stat.S_IFMT(entry.mode)
        if type_ == stat.S_IFDIR:
            blocks += _directory_blocks(entry, block_size, kind)
        elif type_ == stat.S_IFREG and entry.size:
            blocks += _file_blocks(entry, contents, unit, kind)
        elif type_ == stat.S_IFLNK:
            blocks += len(entry.target) >= _FAST_LINK
        blocks += _needs_attribute_block(entry.attributes)
    return blocks * kind.blocks_per_cluster


def _directory_blocks(entry: Entry, block_size: int, kind: Kind) -> int:
    """Blocks that a directory takes, beyond those that an empty file system has given it."""
    has, used = 0, _DOTS
    if not entry.path:
        has, used = 1, _DOTS + _LOST_AND_FOUND_ENTRY
    elif entry.path == b"lost+found":
        has = min(max(_LOST_AND_FOUND_SIZE // block_size, 2), EXT2_NDIR_BLOCKS)
    names = [name for name in sorted(entry.children) if entry.path or name != b"lost+found"]
    room = block_size - (_CHECKSUM_TAIL if kind.has_block_checksums else 0)
    length = max(packed_blocks(names, room, used), has)
    if kind.has_extents:
        return -(-(length - has) // kind.blocks_per_cluster)
    return length - has + indirect_blocks([(0, length)], block_size // 4)


def packed_blocks(names: Iterable[bytes], block_size: int, used: int) -> int:
    """Blocks of a directory whose names were put one by one into the first block with room.

    Args:
        used: bytes in use in the first block.
    """
    room = [block_size - used]
    # For each length of an entry, a block before which none has room for it.
    first = [0] * (264 // _UNIT + 1)
    for name in names:
        length = 8 + -(-len(name) // _UNIT) * _UNIT
        index = first[length // _UNIT]
        while index < len(room) and room[index] < length:
            index += 1
        if index == len(room):
            room.append(block_size)
        room[index] -= length
        first[length // _UNIT] = index
    return len(room)


def _file_blocks(entry: Entry, contents: Contents, block_size: int, kind: Kind) -> int:
    if entry.size <= block_size:
        # It could be all zeros; that is rare, and to open every small file takes long.
        return 1
    try:
        with closing(contents.open(entry)) as opened:
            runs = list(_joined(_data_runs(opened, entry.size, block_size)))
    except OSError as error:
        raise MystfuseError(f"{os.fsdecode(entry.path)}: cannot be read: {error.strerror}") from error
    filled = sum(end - start for start, end in runs)
    if kind.has_extents:
        return filled + extent_blocks(runs, block_size // kind.blocks_per_cluster)
    return filled + indirect_blocks(runs, block_size // 4)


def _data_runs(opened: OpenContents, size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The blocks, from and to, that are neither holes nor zeros."""
    position = 0
    while position < size:
        try:
            position = opened.seek(position, os.SEEK_DATA)
            hole = opened.seek(position, os.SEEK_HOLE)
        except OSError:
            # ENXIO: only holes are left.
            return
        position = position // block_size * block_size
        end = min(-(-hole // block_size) * block_size, size)
        while position < end:
            data = opened.read(position, min(_CHUNK, end - position))
            if not data:
                return
            first = position // block_size
            for start, stop in _nonzero(data.ljust(-(-len(data) // block_size) * block_size, b"\0"), block_size):
                yield first + start, first + stop
            position += len(data)
        position = max(position, hole)


def _nonzero(data: bytes, block_size: int) -> Iterator[tuple[int, int]]:
    """The ranges of whole blocks, from and to, that are not all zeros."""
    zeros = bytes(block_size)
    start = 0
    found = data.find(zeros)
    while found >= 0:
        block = -(-found // block_size)
        end = block
        while data[end * block_size : (end + 1) * block_size] == zeros:
            end += 1
        if end > block:
            if block > start:
                yield start, block
            start = end
        # The block at ``end`` is not one of them.
        found = data.find(zeros, (end + 1) * block_size)
    if start < len(data) // block_size:
        yield start, len(data) // block_size


def _joined(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbours as one; a block that comes twice, where a hole ends within it, once."""
    before: tuple[int, int] | None = None
    for start, end in runs:
        if before is not None and start <= before[1]:
            before = before[0], max(before[1], end)
            continue
        if before is not None:
            yield before
        before = start, end
    if before is not None:
        yield before


def indirect_blocks(runs: Iterable[tuple[int, int]], pointers: int) -> int:
    """Indirect blocks of a file.

    Args:
        runs: its blocks, from and to, in ascending order.
        pointers: how many a block holds.
    """
    # Behind the 12 direct ones, each of these maps ``pointers`` blocks: the single indirect block, then those below the
    # double indirect one, then the rest. Likewise those one level above, from the double indirect block on.
    count, next_leaf, next_double = 0, 0, 0
    has_triple = False
    for start, end in runs:
        if end <= EXT2_NDIR_BLOCKS:
            continue
        leaf = max((max(start, EXT2_NDIR_BLOCKS) - EXT2_NDIR_BLOCKS) // pointers, next_leaf)
        last = (end - 1 - EXT2_NDIR_BLOCKS) // pointers
        count += max(last - leaf + 1, 0)
        next_leaf = max(last + 1, next_leaf)
        if last < 1:
            continue
        double, last_double = max((max(leaf, 1) - 1) // pointers, next_double), (last - 1) // pointers
        count += max(last_double - double + 1, 0)
        next_double = max(last_double + 1, next_double)
        if last_double and not has_triple:
            has_triple = True
            count += 1
    return count


def extent_blocks(runs: Iterable[tuple[int, int]], block_size: int) -> int:
    """Blocks of a file's extent tree, if each run of its blocks is together on the disk."""
    entries = sum(-(-(end - start) // _LONGEST_EXTENT) for start, end in runs)
    per_block, count = block_size // _ENTRY_SIZE - 1, 0
    while entries > _IN_INODE_EXTENTS:
        entries = -(-entries // per_block)
        count += entries
    return count


def _needs_attribute_block(attributes: Attributes) -> bool:
    """Whether some attribute has no room in the inode (of 256 bytes), where they go as they come."""
    room = IN_INODE
    for name, value in attributes:
        size = stored_attribute(name, value)
        if size > room:
            return True
        room -= size
    return False

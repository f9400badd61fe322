"""Changing directories: entries put into free room, taken out again, and pointed elsewhere. Always linear: a directory
that was hash-indexed loses EXT2_INDEX_FL when a name is added, since its index no longer finds everything.

Source: fs/ext2/dir.c (ext2_add_link, ext2_delete_entry, ext2_make_empty).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from errno import EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOSPC, EPERM
from functools import partial
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_block
from mystfuse.ext2.block_map_changes import add_block
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER, EXT2_INDEX_FL, EXT2_NAME_LEN
from mystfuse.ext2.directory import (
    MAX_DIRECTORY_SIZE,
    block_count,
    directory_block,
    find_in_block,
    rec_lengths,
)
from mystfuse.ext2.inline_directory_changes import (
    add_inline,
    move_entries_out,
    point_inline,
    remove_inline,
    set_inline_parent,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.name_index import LatestEntry
from mystfuse.ext2.superblock import Superblock

_HEADER = struct.Struct("<IHBB")
_REC_LEN = struct.Struct("<H")
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_DOTDOT_OFFSET = 12


def changeable_directory(change: Change, ino: int) -> Inode:
    """A directory for adding, removing or changing names.

    Raises:
        OSError: ENOTDIR; ENOENT, it has been removed; EPERM, it is immutable.
        BlocksMissing, MystfuseError
    """
    directory = change.filesystem.directory(change.transaction, ino)
    if not directory.i_links_count:
        raise OSError(ENOENT, f"directory inode {ino} has been removed")
    if directory.is_immutable:
        raise OSError(EPERM, f"directory inode {ino} is immutable")
    return directory


def directory_for_new_name(change: Change, ino: int, name: bytes) -> Inode:
    """A directory for adding ``name``; raises as ``changeable_directory`` and ``check_name``, and OSError (EEXIST) if
    it has that name."""
    directory = changeable_directory(change, ino)
    check_name(name)
    if change.filesystem.name_indexes.find(change.transaction, directory, name):
        raise OSError(EEXIST, f"{name!r} exists already")
    return directory


def check_name(name: bytes) -> None:
    """OSError if no file can have such a name: ENAMETOOLONG or EINVAL."""
    if len(name) > EXT2_NAME_LEN:
        raise OSError(ENAMETOOLONG, f"a name of {len(name)} bytes")
    if not name or name == b"." or name == b".." or b"/" in name or b"\0" in name:
        raise OSError(EINVAL, f"{name!r} is no valid name")


def write_directory(change: Change, directory: Inode, links: int = 0) -> None:
    """Write the inode of a directory after adding, removing or changing a name.

    Args:
        links: the number of added subdirectories (negative: removed).

    Raises:
        BlocksMissing, CorruptFilesystem
    """
    now, count = change.now_ns, directory.i_links_count + links
    if count < 0:
        raise CorruptFilesystem(f"directory inode {directory.ino} would have {count} links")
    directory = directory.touched(now)
    change.write_inode(directory._replace(i_links_count=count) if links else directory)


class Place(NamedTuple):
    """Where a name is in a directory."""

    ino: int
    logical: int
    number: int
    offset: int
    """In its block."""
    previous: int
    """Offset of the entry in front of it; -1 for the first of a block."""


def find_place(change: Change, directory: Inode, name: bytes) -> Place | None:
    """Where ``name`` is in ``directory``, which the transaction has not changed yet; None if it is not there.

    Raises:
        BlocksMissing, MystfuseError: as ``NameIndexes.find``.
    """
    found = change.filesystem.name_indexes.find(change.transaction, directory, name)
    if found is None:
        return None
    (ino, offset, previous), logical, number = found
    return Place(ino, logical, number, offset, previous)


def find_place_again(change: Change, directory: Inode, name: bytes, place: Place) -> Place:
    """Where a name is that was at ``place`` before the transaction changed the directory: in the same block still.

    The name indexes know committed directories alone, and must not be asked about one that has been changed.
    """
    number = place.number
    if not number and not directory.is_inline:
        # Its entries have moved out of the inode.
        number = map_block(change.superblock, change.transaction, directory, place.logical)
    block = directory_block(change.superblock, directory, change.transaction, place.logical, number)
    found = find_in_block(change.superblock, directory, block, place.logical, name)
    if found is None:
        raise CorruptFilesystem(f"directory inode {directory.ino}: {name!r} is gone from its block")
    return Place(found.ino, place.logical, number, found.offset, found.previous)


def new_directory_block(superblock: Superblock, block: bytearray, ino: int, parent: int) -> None:
    """Fill the first block of a new directory: ``.`` and ``..``."""
    file_type = _FILE_TYPES[stat.S_IFDIR] if superblock.has_filetype else 0
    _put_entry(block, 0, ino, 12, b".", file_type)
    _put_entry(block, _DOTDOT_OFFSET, parent, superblock.block_size - 12, b"..", file_type)


def insert_entry(change: Change, directory: Inode, name: bytes, inode: Inode) -> Inode:
    """Enter ``name`` for ``inode`` into ``directory``; returns the directory's inode, perhaps grown, not written.

    Raises:
        OSError: ENOSPC, no room for another block.
        BlocksMissing, MystfuseError
    """
    superblock, transaction, indexes = change.superblock, change.transaction, change.filesystem.name_indexes
    needed = EXT2_DIR_ENTRY_HEADER + len(name) + 3 & ~3
    file_type = _FILE_TYPES[inode.i_mode & 0o170000] if superblock.has_filetype else 0
    if directory.is_inline:
        added = add_inline(superblock, directory, name, inode.ino, file_type)
        if added is not None:
            return added
        directory, _ = move_entries_out(change, directory)
    if latest := indexes.latest(directory.ino):
        # Adding names one after the other takes no search.
        block = transaction.block(latest.number)
        room = _room_behind(superblock, block, latest.offset, needed)
        if room is not None:
            _insert_at(change, directory, latest.logical, latest.number, room, name, inode.ino, file_type)
            return _linear(directory)
    for logical, number in indexes.blocks_with_room(transaction, directory, needed):
        block = directory_block(change.superblock, directory, transaction, logical, number)
        room = _find_room(superblock, directory, block, logical, needed)
        if room is None:
            # The index has only an upper bound. Not before the commit: when other blocks are fetched, the same ones
            # are to be tried then, rather than always one more.
            left = _most_room(superblock, directory, block, logical)
            transaction.on_commit.append(partial(indexes.set_room, directory.ino, logical, left))
            continue
        changed = _insert_at(change, directory, logical, number, room, name, inode.ino, file_type)
        left = _most_room(superblock, directory, changed, logical)
        transaction.on_commit.append(partial(indexes.set_room, directory.ino, logical, left))
        return _linear(directory)
    if directory.size + superblock.block_size > MAX_DIRECTORY_SIZE:
        raise OSError(ENOSPC, f"directory inode {directory.ino} is full")
    logical = block_count(superblock, directory)
    grown, number, new_block = add_block(change, directory, logical)
    _put_entry(new_block, 0, inode.ino, superblock.block_size, name, file_type)
    left = superblock.block_size - needed
    indexes.note_insertion(transaction, directory.ino, LatestEntry(logical, number, 0), name, new_block_room=left)
    return _linear(grown._replace(size=grown.size + superblock.block_size))


def _insert_at(
    change: Change,
    directory: Inode,
    logical: int,
    number: int,
    room: tuple[int, int, int],
    name: bytes,
    ino: int,
    file_type: int,
) -> bytearray:
    """Put an entry into the room that ``_find_room`` has found in a block of a directory; returns the block."""
    offset, used, rec_len = room
    change.allocator.check_writable(change.transaction, [number])
    block = change.transaction.change(number)
    if used:
        _set_rec_len(block, offset, used)
    _put_entry(block, offset + used, ino, rec_len - used, name, file_type)
    place = LatestEntry(logical, number, offset + used)
    change.filesystem.name_indexes.note_insertion(change.transaction, directory.ino, place, name)
    return block


def _linear(directory: Inode) -> Inode:
    flags = directory.i_flags
    return directory._replace(i_flags=flags & ~EXT2_INDEX_FL) if flags & EXT2_INDEX_FL else directory


def remove_entry(change: Change, directory: Inode, name: bytes, place: Place) -> Inode:
    """Remove an entry: its room goes to the entry in front of it; at the front of a block, it becomes free. Returns the
    directory's inode, not written."""
    if directory.is_inline:
        return remove_inline(change.superblock, directory, place.offset, place.previous)
    block = change.transaction.change(place.number)
    _, joined = next(rec_lengths(change.superblock, directory, block, place.logical, place.offset))
    if place.previous < 0:
        struct.pack_into("<I", block, place.offset, 0)
    else:
        joined += place.offset - place.previous
        _set_rec_len(block, place.previous, joined)
        # So that the raw block keeps no stale name.
        block[place.offset : place.offset + _HEADER.size] = bytes(_HEADER.size)
    change.filesystem.name_indexes.note_removal(change.transaction, directory.ino, place.logical, name, joined)
    return directory


def point_entry(change: Change, directory: Inode, place: Place, inode: Inode) -> Inode:
    """Make an entry refer to another inode. Returns the directory's inode, not written."""
    if directory.is_inline:
        file_type = _FILE_TYPES[stat.S_IFMT(inode.i_mode)]
        return point_inline(change.superblock, directory, place.offset, inode.ino, file_type)
    block = change.transaction.change(place.number)
    struct.pack_into("<I", block, place.offset, inode.ino)
    if change.superblock.has_filetype:
        block[place.offset + 7] = _FILE_TYPES[stat.S_IFMT(inode.i_mode)]
    return directory


def set_parent(change: Change, directory: Inode, parent: int) -> Inode:
    """Point ``..`` elsewhere. The caller has called ``read_parent``, which checks its place. Returns the directory's
    inode, not written."""
    if directory.is_inline:
        return set_inline_parent(directory, parent)
    number = map_block(change.superblock, change.transaction, directory, 0)
    struct.pack_into("<I", change.transaction.change(number), _DOTDOT_OFFSET, parent)
    return directory


def _raw_entries(
    superblock: Superblock, directory: Inode, block: Block, logical: int, start: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Every entry of a block, free ones and dots included: (offset, rec_len, bytes of it in use)."""
    has_filetype = superblock.has_filetype
    for offset, rec_len in rec_lengths(superblock, directory, block, logical, start):
        ino, _, name_len, file_type = _HEADER.unpack_from(block, offset)
        if not has_filetype:
            name_len |= file_type << 8
        yield offset, rec_len, EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3 if ino else 0


def _find_room(
    superblock: Superblock, directory: Inode, block: Block, logical: int, needed: int
) -> tuple[int, int, int] | None:
    """The first entry with room behind it: (offset, bytes it uses itself, its rec_len)."""
    for offset, rec_len, used in _raw_entries(superblock, directory, block, logical):
        if rec_len - used >= needed:
            return offset, used, rec_len
    return None


def _room_behind(superblock: Superblock, block: Block, offset: int, needed: int) -> tuple[int, int, int] | None:
    """The same for the entry at ``offset`` alone; None, too, if there is anything unusual about it."""
    ino, rec_len, name_len, _ = _HEADER.unpack_from(block, offset)
    used = EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3
    if ino and used + needed <= rec_len <= superblock.block_size - offset and not rec_len & 3:
        return offset, used, rec_len
    return None


def _most_room(superblock: Superblock, directory: Inode, block: Block, logical: int) -> int:
    # In a block that also belongs to a file, a name may be longer than its entry.
    return max(0, max(rec_len - used for _, rec_len, used in _raw_entries(superblock, directory, block, logical)))


def _put_entry(block: bytearray, offset: int, ino: int, rec_len: int, name: bytes, file_type: int) -> None:
    # 65536 does not fit: 65535 stands for it (fs/ext4/ext4.h, ext4_rec_len_to_disk).
    _HEADER.pack_into(block, offset, ino, rec_len if rec_len < 65536 else 65535, len(name), file_type)
    start = offset + EXT2_DIR_ENTRY_HEADER
    block[start : start + len(name)] = name


def _set_rec_len(block: bytearray, offset: int, rec_len: int) -> None:
    _REC_LEN.pack_into(block, offset + 4, rec_len if rec_len < 65536 else 65535)

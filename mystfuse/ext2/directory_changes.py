"""Changing directories: entries put into free room, taken out again, and pointed elsewhere. Indexed directories stay
indexed (``htree_changes``); others are linear.

Source: fs/ext2/dir.c (ext2_add_link, ext2_delete_entry, ext2_make_empty), fs/ext4/namei.c (ext4_add_entry).
"""

from __future__ import annotations

import struct
from errno import EEXIST, EINVAL, EMLINK, ENAMETOOLONG, ENOENT, EOPNOTSUPP, EPERM
from functools import partial
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import check_not_encrypted, map_block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_INDEX_FL, EXT2_LINK_MAX, EXT2_NAME_LEN, EXT4_LINK_MAX
from mystfuse.ext2.directory import block_count, directory_block, find_in_block, rec_lengths
from mystfuse.ext2.directory_blocks import (
    DOTDOT_OFFSET,
    Room,
    changed_block,
    entry_size,
    file_type,
    fill_room,
    find_room,
    finish_new_block,
    most_room,
    names_end,
    put_entry,
    room_behind,
    set_rec_len,
)
from mystfuse.ext2.htree import find_by_hash
from mystfuse.ext2.htree_changes import append_block, insert_by_hash, make_index, usable_path
from mystfuse.ext2.inline_directory_changes import (
    add_inline,
    move_entries_out,
    point_inline,
    remove_inline,
    set_inline_parent,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.name_indexes import LatestEntry

_HEADER_SIZE = 8


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
    check_can_grow(directory)
    return directory


def check_can_grow(directory: Inode) -> None:
    """Raise an error if names cannot be added to a directory: EncryptedContents if they are encrypted there; OSError
    (EOPNOTSUPP) with casefold, since which spellings are the same name, and their hash, is a table of the kernel's
    (fs/unicode) for one version of Unicode."""
    check_not_encrypted(directory)
    if directory.is_casefolded:
        raise OSError(EOPNOTSUPP, f"directory inode {directory.ino} has casefold: names cannot be added")


def check_name(name: bytes) -> None:
    """OSError if no file can have such a name: ENAMETOOLONG or EINVAL."""
    if len(name) > EXT2_NAME_LEN:
        raise OSError(ENAMETOOLONG, f"a name of {len(name)} bytes")
    if not name or name == b"." or name == b".." or b"/" in name or b"\0" in name:
        raise OSError(EINVAL, f"{name!r} is no valid name")


def max_links(change: Change) -> int:
    """Links that an inode has at most; subdirectories count as links of their directory."""
    return EXT4_LINK_MAX if change.superblock.is_extended else EXT2_LINK_MAX


def check_links(change: Change, directory: Inode) -> None:
    """OSError (EMLINK) if a directory has as many subdirectories as it may have (fs/ext4/ext4.h, EXT4_DIR_LINK_MAX)."""
    if directory.i_links_count >= max_links(change) and not (
        "dir_nlink" in change.superblock.features and _counts_as_indexed(change, directory)
    ):
        raise OSError(EMLINK, f"directory inode {directory.ino} has {directory.i_links_count} links")


def _counts_as_indexed(change: Change, directory: Inode) -> bool:
    return directory.is_indexed and change.superblock.name_hash is not None


def write_directory(change: Change, directory: Inode, links: int = 0) -> None:
    """Write the inode of a directory after adding, removing or changing a name.

    Args:
        links: the number of added subdirectories (negative: removed).

    Raises:
        BlocksMissing, CorruptFilesystem
    """
    now = change.now_ns
    directory = directory.touched(now)
    if links:
        directory = directory._replace(i_links_count=_links_after(change, directory, links))
    change.write_inode(directory)


def _links_after(change: Change, directory: Inode, links: int) -> int:
    """i_links_count of a directory with more subdirectories, or fewer. On ext4, 1 stands for more than can be counted
    (fs/ext4/namei.c, ext4_inc_count and ext4_dec_count)."""
    count = directory.i_links_count
    if change.superblock.is_extended:
        if links < 0:
            return max(count + links, 2) if count > 2 else count
        count += links
        return 1 if _counts_as_indexed(change, directory) and (count > EXT4_LINK_MAX or count == 2) else count
    if count + links < 0:
        raise CorruptFilesystem(f"directory inode {directory.ino} would have {count + links} links")
    return count + links


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
    """Where a name is that was at ``place`` before the transaction changed the directory: in the same block still,
    unless an index has made it move.

    The name indexes know committed directories alone, and must not be asked about one that has been changed.
    """
    if _counts_as_indexed(change, directory):
        try:
            moved = find_by_hash(change.superblock, change.transaction, directory, name)
        except CorruptFilesystem:
            moved = None
        if moved:
            (ino, offset, previous), logical, number = moved
            return Place(ino, logical, number, offset, previous)
    number = place.number
    if not number and not directory.is_inline:
        # Its entries have moved out of the inode.
        number = map_block(change.superblock, change.transaction, directory, place.logical)
    block = directory_block(change.superblock, directory, change.transaction, place.logical, number)
    found = find_in_block(change.superblock, directory, block, place.logical, name)
    if found is None:
        raise CorruptFilesystem(f"directory inode {directory.ino}: {name!r} is gone from its block")
    return Place(found.ino, place.logical, number, found.offset, found.previous)


def insert_entry(change: Change, directory: Inode, name: bytes, inode: Inode) -> Inode:
    """Enter ``name`` for ``inode`` into ``directory``; returns the directory's inode, perhaps grown, not written.

    Raises:
        OSError: ENOSPC, no room for another block.
        BlocksMissing, MystfuseError
    """
    kind = file_type(change.superblock, inode.i_mode)
    if not directory.is_indexed:
        return _insert_linear(change, directory, name, inode.ino, kind, may_become_indexed=True)
    if change.superblock.name_hash is not None:
        path = usable_path(change, directory, name)
        if path is not None:
            return insert_by_hash(change, directory, path, name, inode.ino, kind)
    directory = directory._replace(i_flags=directory.i_flags & ~EXT2_INDEX_FL)
    return _insert_linear(change, directory, name, inode.ino, kind, may_become_indexed=False)


def _insert_linear(
    change: Change, directory: Inode, name: bytes, ino: int, kind: int, may_become_indexed: bool
) -> Inode:
    superblock, transaction, indexes = change.superblock, change.transaction, change.filesystem.name_indexes
    if directory.is_inline:
        added = add_inline(superblock, directory, name, ino, kind)
        if added is not None:
            return added
        directory, _ = move_entries_out(change, directory)
    needed = entry_size(name)
    if latest := indexes.latest(directory.ino):
        # Adding names one after the other takes no search.
        block = transaction.block(latest.number)
        room = room_behind(superblock, block, latest.offset, needed)
        if room is not None:
            _insert_at(change, directory, latest.logical, latest.number, room, name, ino, kind)
            return directory
    for logical, number in indexes.blocks_with_room(transaction, directory, needed):
        block = directory_block(superblock, directory, transaction, logical, number)
        room = find_room(superblock, directory, block, logical, needed)
        if room is None:
            # The index has only an upper bound. Not before the commit: when other blocks are fetched, the same ones
            # are to be tried then, rather than always one more.
            left = most_room(superblock, directory, block, logical)
            transaction.on_commit.append(partial(indexes.set_room, directory.ino, logical, left))
            continue
        changed = _insert_at(change, directory, logical, number, room, name, ino, kind)
        left = most_room(superblock, directory, changed, logical)
        transaction.on_commit.append(partial(indexes.set_room, directory.ino, logical, left))
        return directory
    if may_become_indexed and block_count(superblock, directory) == 1:
        indexed = make_index(change, directory)
        if indexed is not None:
            path = usable_path(change, indexed, name)
            assert path is not None
            return insert_by_hash(change, indexed, path, name, ino, kind)
    grown, logical, number, new_block = append_block(change, directory)
    room = Room(0, 0, names_end(superblock))
    put_entry(new_block, 0, ino, room.rec_len, name, kind)
    finish_new_block(change, directory, number, new_block)
    indexes.note_insertion(
        transaction, directory.ino, LatestEntry(logical, number, 0), name, new_block_room=room.rec_len - needed
    )
    return grown


def _insert_at(
    change: Change, directory: Inode, logical: int, number: int, room: Room, name: bytes, ino: int, kind: int
) -> bytearray:
    """Put an entry into the room that was found in a block of a directory; returns the block."""
    change.allocator.check_writable(change.transaction, [number])
    block = changed_block(change, directory, number)
    place = LatestEntry(logical, number, fill_room(block, room, ino, name, kind))
    change.filesystem.name_indexes.note_insertion(change.transaction, directory.ino, place, name)
    return block


def remove_entry(change: Change, directory: Inode, name: bytes, place: Place) -> Inode:
    """Remove an entry: its room goes to the entry in front of it; at the front of a block, it becomes free. Returns the
    directory's inode, not written."""
    if directory.is_inline:
        return remove_inline(change.superblock, directory, place.offset, place.previous)
    block = changed_block(change, directory, place.number)
    _, joined = next(rec_lengths(change.superblock, directory, block, place.logical, place.offset))
    if place.previous < 0:
        struct.pack_into("<I", block, place.offset, 0)
    else:
        joined += place.offset - place.previous
        set_rec_len(block, place.previous, joined)
        # So that the raw block keeps no stale name.
        block[place.offset : place.offset + _HEADER_SIZE] = bytes(_HEADER_SIZE)
    change.filesystem.name_indexes.note_removal(change.transaction, directory.ino, place.logical, name, joined)
    return directory


def point_entry(change: Change, directory: Inode, place: Place, inode: Inode) -> Inode:
    """Make an entry of a directory refer to another inode. Returns the directory's inode, not written."""
    kind = file_type(change.superblock, inode.i_mode)
    if directory.is_inline:
        return point_inline(change.superblock, directory, place.offset, inode.ino, kind)
    block = changed_block(change, directory, place.number)
    struct.pack_into("<I", block, place.offset, inode.ino)
    if change.superblock.has_filetype:
        block[place.offset + 7] = kind
    return directory


def set_parent(change: Change, directory: Inode, parent: int) -> Inode:
    """Point ``..`` elsewhere. The caller has called ``read_parent``, which checks its place. Returns the directory's
    inode, not written."""
    if directory.is_inline:
        return set_inline_parent(directory, parent)
    number = map_block(change.superblock, change.transaction, directory, 0)
    struct.pack_into("<I", changed_block(change, directory, number), DOTDOT_OFFSET, parent)
    return directory

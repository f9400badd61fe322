"""Changing the entries of a directory that are in its inode: in i_block behind the number of ``..``, and then in
``system.data``, which takes all the room that the inode's body has.

Offsets are those in the block that ``inline_data.inline_directory`` shows. Source: fs/ext4/inline.c
(ext4_try_add_inline_entry, ext4_delete_inline_entry, ext4_try_create_inline_dir, ext4_finish_convert_inline_dir).
"""

from __future__ import annotations

import struct

from mystfuse.ext2.block_map_changes import add_block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER
from mystfuse.ext2.directory_blocks import finish_new_block, names_end
from mystfuse.ext2.inline_changes import HEAD_SIZE, room_inline, with_contents, without_contents
from mystfuse.ext2.inline_data import DIRECTORY_OFFSET, inline_areas, inline_directory
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

_HEADER = struct.Struct("<IHBB")  # inode rec_len name_len file_type
_INO = struct.Struct("<I")
_REC_LEN, _REC_LEN_OFFSET = struct.Struct("<H"), 4
_TYPE_OFFSET = 7
_MIN_REC_LEN = 12
_HEAD_AREA = HEAD_SIZE - _INO.size


def begin_inline(superblock: Superblock, inode: Inode, parent: int) -> Inode | None:
    """A new directory, not written, that has its entries in itself; None if it has no room for that."""
    if not room_inline(superblock, inode):
        return None
    area = _HEADER.pack(0, _HEAD_AREA, 0, 0).ljust(_HEAD_AREA, b"\0")
    return with_contents(superblock, inode, _INO.pack(parent) + area)._replace(size=HEAD_SIZE)


def add_inline(superblock: Superblock, directory: Inode, name: bytes, ino: int, file_type: int) -> Inode | None:
    """The directory, not written, with another entry in its inode; None if there is no room for it.

    Raises:
        CorruptFilesystem: the entries are broken.
    """
    head, rest = map(bytearray, inline_areas(directory))
    if _add(superblock, head, name, ino, file_type):
        return _with_areas(superblock, directory, bytes(head + rest))
    if not rest:
        room = room_inline(superblock, directory) - HEAD_SIZE
        if room <= _MIN_REC_LEN:
            return None
        rest = bytearray(_HEADER.pack(0, room, 0, 0).ljust(room, b"\0"))
    if _add(superblock, rest, name, ino, file_type):
        return _with_areas(superblock, directory, bytes(head + rest))
    return None


def _add(superblock: Superblock, area: bytearray, name: bytes, ino: int, file_type: int) -> bool:
    """Put an entry into the first room for it in an area; whether there is any."""
    needed, offset = EXT2_DIR_ENTRY_HEADER + len(name) + 3 & ~3, 0
    while offset < len(area):
        other, rec_len, name_len, name_high = _HEADER.unpack_from(area, offset)
        if not superblock.has_filetype:
            name_len |= name_high << 8
        used = EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3 if other else 0
        if rec_len - used >= needed:
            if used:
                _REC_LEN.pack_into(area, offset + _REC_LEN_OFFSET, used)
            start = offset + used
            _HEADER.pack_into(area, start, ino, rec_len - used, len(name), file_type)
            area[start + EXT2_DIR_ENTRY_HEADER : start + EXT2_DIR_ENTRY_HEADER + len(name)] = name
            return True
        offset += rec_len
    return False


def remove_inline(superblock: Superblock, directory: Inode, offset: int, previous: int) -> Inode:
    """The directory, not written, without an entry.

    Args:
        previous: the offset of the entry in front of it.
    """
    areas, position, before = _areas(directory), offset - DIRECTORY_OFFSET, previous - DIRECTORY_OFFSET
    if before < 0 or (before < _HEAD_AREA) != (position < _HEAD_AREA):
        # It is the first one of its area.
        _INO.pack_into(areas, position, 0)
    else:
        (joined,) = _REC_LEN.unpack_from(areas, position + _REC_LEN_OFFSET)
        _REC_LEN.pack_into(areas, before + _REC_LEN_OFFSET, joined + position - before)
        # So that the inode keeps no stale name.
        areas[position : position + _HEADER.size] = bytes(_HEADER.size)
    return _with_areas(superblock, directory, bytes(areas))


def point_inline(superblock: Superblock, directory: Inode, offset: int, ino: int, file_type: int) -> Inode:
    """The directory, not written, with an entry that refers to another inode."""
    areas, position = _areas(directory), offset - DIRECTORY_OFFSET
    _INO.pack_into(areas, position, ino)
    if superblock.has_filetype:
        areas[position + _TYPE_OFFSET] = file_type
    return _with_areas(superblock, directory, bytes(areas))


def set_inline_parent(directory: Inode, parent: int) -> Inode:
    """The directory, not written, with another one above it."""
    return directory._replace(i_block=_INO.pack(parent) + directory.i_block[_INO.size :])


def move_entries_out(change: Change, directory: Inode) -> tuple[Inode, int]:
    """The directory, not written, with its entries in a block; and the number of that.

    Raises:
        OSError: ENOSPC
        BlocksMissing, MystfuseError
    """
    superblock = change.superblock
    entries = inline_directory(superblock, directory, superblock.block_size - names_end(superblock))
    directory, number, block = add_block(change, without_contents(superblock, directory), 0)
    block[:] = entries
    finish_new_block(change, directory, number, block)
    return directory._replace(size=superblock.block_size), number


def _areas(directory: Inode) -> bytearray:
    """Both places that have entries, one behind the other."""
    return bytearray(b"".join(inline_areas(directory)))


def _with_areas(superblock: Superblock, directory: Inode, areas: bytes) -> Inode:
    directory = with_contents(superblock, directory, directory.i_block[: _INO.size] + areas)
    return directory._replace(size=_INO.size + len(areas))

"""The blocks of directories when they are changed: entries, the room between them, and the checksum at the end.

Source: fs/ext4/namei.c (ext4_find_dest_de, ext4_initialize_dirent_tail), fs/ext4/ext4.h (ext4_rec_len_to_disk).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.change import Change
from mystfuse.ext2.checksum import DIRECTORY_TAIL, put_directory_tail
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER
from mystfuse.ext2.directory import rec_lengths
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.directory_hash import find_room as native_find_room
from mystfuse.kernels.interface import NO_ROOM

_HEADER = struct.Struct("<IHBB")
_REC_LEN = struct.Struct("<H")
FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
DOTDOT_OFFSET = 12


class Room(NamedTuple):
    """An entry with room behind it, or in its place if it is free."""

    offset: int
    used: int
    """Bytes that it needs itself."""
    rec_len: int


def entry_size(name: bytes) -> int:
    """Bytes that an entry for ``name`` needs."""
    return EXT2_DIR_ENTRY_HEADER + len(name) + 3 & ~3


def file_type(superblock: Superblock, mode: int) -> int:
    """What an entry has as its file type."""
    return FILE_TYPES[stat.S_IFMT(mode)] if superblock.has_filetype else 0


def names_end(superblock: Superblock) -> int:
    """Where the names of a block end: at its end, or with metadata_csum in front of the checksum."""
    return superblock.block_size if superblock.checksums is None else superblock.block_size - DIRECTORY_TAIL


def seal_directory_block(change: Change, directory: Inode, number: int) -> None:
    """Have the checksum of a changed block of a directory brought up to date."""
    checksums = change.superblock.checksums
    if checksums is not None:
        seal = partial(checksums.set_directory, directory.ino, directory.i_generation)
        change.transaction.seal_later(number, seal)


def changed_block(change: Change, directory: Inode, number: int) -> bytearray:
    """A block of a directory to be changed in place, of names or of its index."""
    block = change.transaction.change(number)
    seal_directory_block(change, directory, number)
    return block


def new_directory_block(change: Change, directory: Inode, number: int, block: bytearray, parent: int) -> None:
    """Fill the first block of a new directory: ``.`` and ``..``."""
    superblock = change.superblock
    kind = file_type(superblock, stat.S_IFDIR)
    put_entry(block, 0, directory.ino, DOTDOT_OFFSET, b".", kind)
    put_entry(block, DOTDOT_OFFSET, parent, names_end(superblock) - DOTDOT_OFFSET, b"..", kind)
    finish_new_block(change, directory, number, block)


def finish_new_block(change: Change, directory: Inode, number: int, block: bytearray) -> None:
    """Give a new block of names its checksum, which comes with the commit."""
    if change.superblock.checksums is not None:
        put_directory_tail(block)
        seal_directory_block(change, directory, number)


def raw_entries(
    superblock: Superblock, directory: Inode, block: Block, logical: int, start: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Every entry of a block of names, free ones and dots included: (offset, rec_len, bytes of it in use).

    Raises:
        CorruptFilesystem: a length is invalid.
    """
    has_filetype, end = superblock.has_filetype, names_end(superblock)
    for offset, rec_len in rec_lengths(superblock, directory, block, logical, start):
        if offset + rec_len > end:
            if offset == end:
                return
            raise CorruptFilesystem(f"directory inode {directory.ino}: block {logical} has no room for a checksum")
        ino, _, name_len, file_type = _HEADER.unpack_from(block, offset)
        if not has_filetype:
            name_len |= file_type << 8
        yield offset, rec_len, EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3 if ino else 0


def find_room(superblock: Superblock, directory: Inode, block: Block, logical: int, needed: int) -> Room | None:
    """The first entry with room for one of ``needed`` bytes; raises as ``raw_entries``."""
    offset = native_find_room(block, names_end(superblock), superblock.has_filetype, needed)
    if offset >= 0:
        ino, rec_len, name_len, high = _HEADER.unpack_from(block, offset)
        if not superblock.has_filetype:
            name_len |= high << 8
        return Room(offset, EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3 if ino else 0, rec_len)
    if offset == NO_ROOM:
        return None
    for offset, rec_len, used in raw_entries(superblock, directory, block, logical):
        if rec_len - used >= needed:
            return Room(offset, used, rec_len)
    return None


def room_behind(superblock: Superblock, block: Block, offset: int, needed: int) -> Room | None:
    """The same for the entry at ``offset`` alone; None, too, if there is anything unusual about it."""
    ino, rec_len, name_len, _ = _HEADER.unpack_from(block, offset)
    used = EXT2_DIR_ENTRY_HEADER + name_len + 3 & ~3
    if ino and used + needed <= rec_len <= names_end(superblock) - offset and not rec_len & 3:
        return Room(offset, used, rec_len)
    return None


def most_room(superblock: Superblock, directory: Inode, block: Block, logical: int) -> int:
    """The longest entry for which a block has room."""
    # In a block that also belongs to a file, a name may be longer than its entry.
    return max(0, max(rec_len - used for _, rec_len, used in raw_entries(superblock, directory, block, logical)))


def fill_room(block: bytearray, room: Room, ino: int, name: bytes, file_type: int) -> int:
    """Put an entry into room that was found; returns its offset."""
    offset, used, rec_len = room
    if used:
        set_rec_len(block, offset, used)
    put_entry(block, offset + used, ino, rec_len - used, name, file_type)
    return offset + used


def put_entry(block: bytearray, offset: int, ino: int, rec_len: int, name: bytes, file_type: int) -> None:
    """Write an entry; for a name of no bytes and inode 0, a free one."""
    # 65536 does not fit: 65535 stands for it.
    _HEADER.pack_into(block, offset, ino, rec_len if rec_len < 65536 else 65535, len(name), file_type)
    start = offset + EXT2_DIR_ENTRY_HEADER
    block[start : start + len(name)] = name


def set_rec_len(block: bytearray, offset: int, rec_len: int) -> None:
    """Change the length of an entry."""
    _REC_LEN.pack_into(block, offset + 4, rec_len if rec_len < 65536 else 65535)

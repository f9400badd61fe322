"""Changes to the inodes of a new file system that mke2fs does not make: the root directory's own attributes, times that
do not depend on when the image was made, and one owner for all files."""

from __future__ import annotations

import os
import stat
import struct

from mystfuse.archives.file_tree import Entry
from mystfuse.build.hash_tree import write_all
from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_GOOD_OLD_INODE_SIZE, EXT2_ROOT_INO
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock

# Offsets in an inode: kernel, fs/ext4/ext4.h, struct ext4_inode.
_I_MODE, _I_UID, _I_GID, _L_I_UID_HIGH = 0, 2, 24, 120
_I_ATIME, _I_CTIME, _I_MTIME = 8, 12, 16
_I_EXTRA_ISIZE, _I_CTIME_EXTRA, _I_MTIME_EXTRA, _I_ATIME_EXTRA = 128, 132, 136, 140
_I_CRTIME, _I_CRTIME_EXTRA = 144, 148


def stamp_inodes(
    fd: int,
    superblock: Superblock,
    source: str,
    top: Entry,
    late_times: dict[bytes, int],
    epoch: int | None,
    owner: tuple[int, int] | None = None,
) -> None:
    """Give the root directory the source's mode, owner and time, and every inode the time that mke2fs cuts to 32 bits.
    With ``epoch``, replace the times that change from run to run (access, change) in every inode. With ``owner``, make
    all files this user's and group's.

    Args:
        source: its name, for messages.
        top: its root directory.
    """
    block_size, inode_size = superblock.block_size, superblock.s_inode_size
    blocks = Blocks(lambda number: os.pread(fd, block_size, number * block_size))
    filesystem = FileSystem(superblock)
    times = {b"": top.mtime_ns // 1_000_000_000, **late_times}
    for path, mtime in times.items():
        ino = EXT2_ROOT_INO
        for name in path.split(b"/") if path else ():
            found = filesystem.lookup(blocks, ino, name)
            if found is None:
                raise MystfuseError(f"{os.fsdecode(path)}: vanished while the image was made")
            ino = found.ino
        number, offset = filesystem.inode_table.locate(blocks, ino)
        position = number * block_size + offset
        inode = bytearray(os.pread(fd, inode_size, position))
        if ino == EXT2_ROOT_INO:
            struct.pack_into("<H", inode, _I_MODE, stat.S_IFDIR | stat.S_IMODE(top.mode))
            _set_owner(inode, 0, top.uid, top.gid)
        # Before it loses its upper bits, by which it may be later.
        low, high = _encode_time(mtime if epoch is None else min(mtime, epoch))
        struct.pack_into("<I", inode, _I_MTIME, low)
        if _has_extra_times(inode, 0, inode_size):
            struct.pack_into("<I", inode, _I_MTIME_EXTRA, high)
        elif high:
            shown = os.path.join(source, os.fsdecode(path))
            raise MystfuseError(f"{shown}: its time is after 2038, which inodes of {inode_size} bytes cannot hold")
        if superblock.checksums is not None:
            superblock.checksums.set_inode(ino, inode, 0, inode_size)
        write_all(fd, bytes(inode), position)
    if epoch is None and owner is None:
        return
    for group in range(superblock.groups_count):
        start = filesystem.groups.places(blocks, group).bg_inode_table * block_size
        table = bytearray(os.pread(fd, superblock.s_inodes_per_group * inode_size, start))
        if len(table) != superblock.s_inodes_per_group * inode_size:
            raise CorruptFilesystem(f"group {group}: its inode table is cut short")
        if table.count(0) == len(table):
            # Unused, and probably a hole that should stay one.
            continue
        for index in range(superblock.s_inodes_per_group):
            offset = index * inode_size
            ino = group * superblock.s_inodes_per_group + index + 1
            if not any(table[offset : offset + 2]):
                continue
            if epoch is not None:
                _stamp_inode(table, offset, inode_size, epoch)
            if owner is not None and (ino == EXT2_ROOT_INO or ino >= superblock.s_first_ino):
                _set_owner(table, offset, *owner)
            if superblock.checksums is not None:
                superblock.checksums.set_inode(ino, table, offset, inode_size)
        write_all(fd, bytes(table), start)


def _set_owner(table: bytearray, offset: int, uid: int, gid: int) -> None:
    struct.pack_into("<H", table, offset + _I_UID, uid & 0xFFFF)
    struct.pack_into("<H", table, offset + _I_GID, gid & 0xFFFF)
    struct.pack_into("<HH", table, offset + _L_I_UID_HIGH, uid >> 16, gid >> 16)


def _stamp_inode(table: bytearray, offset: int, inode_size: int, epoch: int) -> None:
    (mtime,) = struct.unpack_from("<i", table, offset + _I_MTIME)
    mtime_extra = 0
    has_extra = _has_extra_times(table, offset, inode_size)
    if has_extra:
        (mtime_extra,) = struct.unpack_from("<I", table, offset + _I_MTIME_EXTRA)
    low, high = _encode_time(epoch)
    if mtime + ((mtime_extra & 3) << 32) > epoch:
        struct.pack_into("<I", table, offset + _I_MTIME, low)
        mtime_extra = high
    struct.pack_into("<I", table, offset + _I_ATIME, low)
    struct.pack_into("<I", table, offset + _I_CTIME, low)
    if has_extra:
        for field, value in (
            (_I_CTIME_EXTRA, high),
            (_I_MTIME_EXTRA, mtime_extra),
            (_I_ATIME_EXTRA, high),
            (_I_CRTIME, low),
            (_I_CRTIME_EXTRA, high),
        ):
            struct.pack_into("<I", table, offset + field, value)


def _has_extra_times(table: bytearray, offset: int, inode_size: int) -> bool:
    """Whether i_extra_isize covers the extra time fields up to i_crtime_extra."""
    position = offset + _I_EXTRA_ISIZE
    return inode_size > EXT2_GOOD_OLD_INODE_SIZE and int.from_bytes(table[position : position + 2], "little") >= 24


def _encode_time(seconds: int) -> tuple[int, int]:
    """Seconds since 1970 as an inode holds them: the low 32 bits (signed), and the 2 bits for the extra field."""
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, (seconds - signed) >> 32 & 3

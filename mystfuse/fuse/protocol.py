"""Structures of the kernel's requests and replies, in the machine's byte order.

Source: the kernel's include/uapi/linux/fuse.h, 7.36 and later; each structure is commented with its fields there.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum

from mystfuse.ext2.inode import Inode


class Opcode(IntEnum):
    """The kinds of requests that are decoded here."""

    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    FORGET = 2
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    SETXATTR = 21
    CREATE = 35
    IOCTL = 39
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OPCODES = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir",
    10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs",
    18: "release", 20: "fsync", 21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush",
    26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 31: "getlk", 34: "access",
    35: "create", 38: "destroy", 39: "ioctl", 42: "batch_forget", 43: "fallocate", 44: "readdirplus", 45: "rename2",
    46: "lseek", 47: "copy_file_range", 50: "syncfs", 51: "tmpfile", 52: "statx",
    53: "copy_file_range_64",
}  # fmt: skip
"""The names of all kinds of requests, for the status."""


IN_HEADER = struct.Struct("=IIQQIII4x")
"""len (bytes of the whole request), opcode, unique (the request's number), nodeid, uid, gid, pid"""
SETATTR_IN = struct.Struct("=I4xQQQqqqIIII4xII4x")
"""valid, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid"""
MKNOD_IN = struct.Struct("=III4x")
"""mode, rdev, umask"""
MKDIR_IN = struct.Struct("=II")
"""mode, umask"""
RENAME_IN = struct.Struct("=Q")
"""newdir"""
RENAME2_IN = struct.Struct("=QI4x")
"""newdir, flags"""
LINK_IN = struct.Struct("=Q")
"""oldnodeid"""
READ_IN = struct.Struct("=QQIIQI4x")
"""fh, offset, size, read_flags, lock_owner, flags"""
OPEN_IN = struct.Struct("=II")
"""flags, open_flags"""
CREATE_IN = struct.Struct("=IIII")
"""flags, mode, umask, open_flags"""
WRITE_IN = struct.Struct("=QQIIQI4x")
"""fh, offset, size, write_flags, lock_owner, flags"""
RELEASE_IN = struct.Struct("=QIIQ")
"""fh, flags, release_flags, lock_owner"""
SETXATTR_IN = struct.Struct("=II")
"""size, flags"""
LSEEK_IN = struct.Struct("=QQI4x")
"""fh, offset, whence"""
FALLOCATE_IN = struct.Struct("=QQQI4x")
"""fh, offset, length, mode"""
COPY_FILE_RANGE_IN = struct.Struct("=QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags"""
IOCTL_IN = struct.Struct("=QIIQII")
"""fh, flags, cmd, arg, in_size, out_size"""

OUT_HEADER = struct.Struct("=IiQ")
"""len, error (an errno, negative), unique"""
OPEN_OUT = struct.Struct("=QI4x")
"""fh, open_flags"""
WRITE_OUT = struct.Struct("=I4x")
"""size"""
LSEEK_OUT = struct.Struct("=Q")
"""offset"""
COPY_FILE_RANGE_OUT = struct.Struct("=Q")
"""bytes_copied"""
IOCTL_OUT = struct.Struct("=iIII")
"""result, flags, in_iovs, out_iovs"""
STATX_OUT = struct.Struct("=QII16x")
"""attr_valid, attr_valid_nsec, flags; ``STATX`` follows"""
STATX = struct.Struct("=IIQIIIHxxQQQQ" + 4 * "qI4x" + "IIII112x")
"""mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask; tv_sec and tv_nsec of atime,
btime, ctime and mtime; rdev_major, rdev_minor, dev_major, dev_minor"""
ATTR = struct.Struct("=QQQqqqIIIIIIIIII")
"""ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize,
flags"""
ATTR_OUT = struct.Struct("=QI4x")
"""attr_valid, attr_valid_nsec; ``ATTR`` follows"""
ENTRY_OUT = struct.Struct("=QQQQII")
"""nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; ``ATTR`` follows"""

# fuse_setattr_in.valid
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = (1 << bit for bit in range(6))
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_KILL_SUIDGID = 1 << 7, 1 << 8, 1 << 11

WRITE_CACHE, WRITE_KILL_SUIDGID = 1 << 0, 1 << 2
"""fuse_write_in.write_flags: from the page cache, by no one in particular; by a caller without CAP_FSETID."""
OPEN_KILL_SUIDGID = 1 << 0
"""fuse_open_in.open_flags: truncated by a caller without CAP_FSETID."""
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE = 1 << 0, 1 << 1
"""fuse_open_out.open_flags"""

STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800
"""fuse_statx.mask (include/uapi/linux/stat.h)"""

_SECOND = 1_000_000_000


def pack_attributes(inode: Inode, owner: tuple[int, int], block_size: int, seconds: int) -> bytes:
    """fuse_attr_out of an inode.

    Args:
        owner: user and group, as the mount shows them.
        block_size: bytes, for st_blksize.
        seconds: how long the kernel may keep the attributes.
    """
    return ATTR_OUT.pack(seconds, 0) + _attr(inode, owner, block_size)


def pack_entry(inode: Inode, owner: tuple[int, int], block_size: int, seconds: int) -> bytes:
    """fuse_entry_out: what a name refers to, and its attributes. ``seconds`` are for both; see ``pack_attributes``."""
    head = ENTRY_OUT.pack(inode.ino, inode.i_generation, seconds, seconds, 0, 0)
    return head + _attr(inode, owner, block_size)


def pack_statx(inode: Inode, owner: tuple[int, int], block_size: int, seconds: int, birth_ns: int | None) -> bytes:
    """fuse_statx_out of an inode; see ``pack_attributes``.

    Args:
        birth_ns: when it was made, in nanoseconds since the epoch; None if it does not say so.
    """
    times: list[int] = []
    for time_ns in (inode.atime_ns, birth_ns or 0, inode.ctime_ns, inode.mtime_ns):
        times += divmod(time_ns, _SECOND)
    mask, links = STATX_BASIC_STATS | (0 if birth_ns is None else STATX_BTIME), inode.i_links_count
    numbers = (inode.ino, inode.st_size, inode.st_blocks, 0)
    device = (os.major(inode.rdev), os.minor(inode.rdev), 0, 0)
    statx = STATX.pack(mask, block_size, 0, links, *owner, inode.i_mode, *numbers, *times, *device)
    return STATX_OUT.pack(seconds, 0, 0) + statx


def _attr(inode: Inode, owner: tuple[int, int], block_size: int) -> bytes:
    atime, mtime, ctime = inode.atime_ns, inode.mtime_ns, inode.ctime_ns
    return ATTR.pack(
        inode.ino,
        inode.st_size,
        inode.st_blocks,
        atime // _SECOND,
        mtime // _SECOND,
        ctime // _SECOND,
        atime % _SECOND,
        mtime % _SECOND,
        ctime % _SECOND,
        inode.i_mode,
        inode.i_links_count,
        *owner,
        # makedev(3) puts 12 bits of the major and 20 of the minor number there, as the kernel does (kdev_t.h,
        # new_encode_dev); ext2 has no more.
        inode.rdev & 0xFFFFFFFF,
        block_size,
        0,
    )

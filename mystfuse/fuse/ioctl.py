"""IOCTL: an inode's flags, as the kernel's ext4 driver has them, and its generation. pyfuse3 has no ioctl.

The generation cannot be set (FS_IOC_SETVERSION): the kernel takes an inode whose generation changes for another one,
and fails whoever has it open (fs/fuse/inode.c, fuse_stale_inode).

Sources: include/uapi/linux/fs.h (the numbers, struct fsxattr); fs/ioctl.c (fileattr_fill_flags, fileattr_fill_xflags);
fs/fuse/ioctl.c: the kernel itself checks who may set flags, and sends only commands whose data it can copy.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from mystfuse.ext2 import inode_flags
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import (
    EXT2_APPEND_FL,
    EXT2_IMMUTABLE_FL,
    EXT2_NOATIME_FL,
    EXT2_NODUMP_FL,
    EXT2_SYNC_FL,
    EXT4_DAX_FL,
    EXT4_PROJINHERIT_FL,
)
from mystfuse.ext2.projects import project_of
from mystfuse.fuse.protocol import IN_HEADER, IOCTL_IN, IOCTL_OUT
from mystfuse.fuse.requests import Requests, ext2_ino

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_GETVERSION = 0x80087601
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_NUMBER = struct.Struct("=I")
_FSXATTR = struct.Struct("=IIIII8x")
"""fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize"""
_XFLAGS = {
    0x08: EXT2_IMMUTABLE_FL, 0x10: EXT2_APPEND_FL, 0x20: EXT2_SYNC_FL, 0x40: EXT2_NOATIME_FL, 0x80: EXT2_NODUMP_FL,
    0x200: EXT4_PROJINHERIT_FL, 0x8000: EXT4_DAX_FL,
}  # fmt: skip
"""FS_XFLAG_IMMUTABLE and so on, and the flags of ext2 that they stand for."""


async def ioctl(
    requests: Requests, drop_attributes: Callable[[int], None], nodeid: int, caller: Caller, request: memoryview
) -> bytes:
    """Answer IOCTL: ENOTTY for commands that we do not know.

    Args:
        drop_attributes: called for an inode that has changed, of which the reply does not tell the kernel.
    """
    _handle, _flags, command, _argument, in_size, out_size = IOCTL_IN.unpack_from(request, IN_HEADER.size)
    data = request[IN_HEADER.size + IOCTL_IN.size :][:in_size]
    if requests.is_control(nodeid):
        raise OSError(errno.ENOTTY, "the control directory has no flags")
    volume, ino = requests.volume, ext2_ino(nodeid)
    answer = b""
    if command == _GETFLAGS:
        answer = _NUMBER.pack((await volume.inode(ino)).i_flags & inode_flags.VISIBLE)
    elif command == _GETVERSION:
        answer = _NUMBER.pack((await volume.inode(ino)).i_generation)
    elif command == _FSGETXATTR:
        inode = await volume.inode(ino)
        xflags = sum(xflag for xflag, flag in _XFLAGS.items() if inode.i_flags & flag)
        answer = _FSXATTR.pack(xflags, 0, 0, await volume.run(project_of, inode), 0)
    elif command in _SETTERS:
        await volume.change(ino, caller, inode_flags.set_flags, ino, *_SETTERS[command](data))
        drop_attributes(nodeid)
    else:
        raise OSError(errno.ENOTTY, f"ioctl {command:#x}")
    return IOCTL_OUT.pack(0, 0, 0, 0) + answer[:out_size]


def _flags_in(data: memoryview) -> tuple[int, int, None]:
    if len(data) < _NUMBER.size:
        raise OSError(errno.EINVAL, f"ioctl FS_IOC_SETFLAGS with {len(data)} bytes")
    return _NUMBER.unpack_from(data)[0], inode_flags.VISIBLE, None


def _flags_in_fsxattr(data: memoryview) -> tuple[int, int, int]:
    if len(data) < _FSXATTR.size:
        raise OSError(errno.EINVAL, f"ioctl FS_IOC_FSSETXATTR with {len(data)} bytes")
    # As the kernel's ext2: flags and sizes that it does not have change nothing.
    xflags, _extent_size, _extents, project, _cow_extent_size = _FSXATTR.unpack_from(data)
    return sum(flag for xflag, flag in _XFLAGS.items() if xflags & xflag), sum(_XFLAGS.values()), project


_SETTERS: dict[int, Callable[[memoryview], tuple[int, int, int | None]]] = {
    _SETFLAGS: _flags_in,
    _FSSETXATTR: _flags_in_fsxattr,
}
"""By command: what takes from its data the flags to set, those among which they are, and the project."""

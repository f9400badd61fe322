"""Requests about the holes of files, and copying between files: LSEEK, FALLOCATE, COPY_FILE_RANGE. pyfuse3 has none of
them."""

from __future__ import annotations

import errno
import os

import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.privileges import Loses
from mystfuse.fuse.protocol import (
    COPY_FILE_RANGE_IN,
    COPY_FILE_RANGE_OUT,
    FALLOCATE_IN,
    IN_HEADER,
    LSEEK_IN,
    LSEEK_OUT,
    WRITE_OUT,
)
from mystfuse.fuse.requests import Requests, ext2_ino
from mystfuse.volume import file_space

_BODY = IN_HEADER.size
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
"""fallocate(2), mode (include/uapi/linux/falloc.h)"""
_PIECE = 1 << 20
"""Bytes that are copied at a time."""
_MOST = 16 << 20
"""Bytes that one request copies: the caller, who may be interrupted, asks again for the rest."""


async def lseek(requests: Requests, nodeid: int, caller: Caller, request: memoryview) -> bytes:
    """LSEEK: the next data (SEEK_DATA) or hole (SEEK_HOLE). It must not answer ENOSYS, by which the kernel would never
    ask again and take each file for data."""
    handle, offset, whence = LSEEK_IN.unpack_from(request, _BODY)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise OSError(errno.EINVAL, f"lseek with whence {whence}")
    size = requests.control_file_size(handle)
    if size is not None:
        # All of it counts as data.
        if offset >= size:
            raise OSError(errno.ENXIO, f"a control file has {size} bytes")
        return LSEEK_OUT.pack(offset if whence == os.SEEK_DATA else size)
    requests.check_ours(nodeid)
    return LSEEK_OUT.pack(await file_space.seek(requests.volume, ext2_ino(nodeid), offset, whence == os.SEEK_DATA))


async def fallocate(requests: Requests, nodeid: int, caller: Caller, request: memoryview) -> bytes:
    """FALLOCATE. The kernel sends no other modes than those here (fs/fuse/file.c, fuse_file_fallocate), and has the
    file's privileges taken before."""
    _handle, offset, length, mode = FALLOCATE_IN.unpack_from(request, _BODY)
    requests.check_ours(nodeid)
    ino = ext2_ino(nodeid)
    if mode == _PUNCH_HOLE | _KEEP_SIZE:
        await file_space.punch(requests.volume, ino, offset, length, caller)
    elif not mode & ~(_KEEP_SIZE | _ZERO_RANGE):
        keeps_size, zeroes = bool(mode & _KEEP_SIZE), bool(mode & _ZERO_RANGE)
        await file_space.allocate(requests.volume, ino, offset, length, keeps_size, zeroes, caller)
    else:
        raise OSError(errno.EOPNOTSUPP, f"fallocate with mode {mode:#x}")
    return b""


async def copy_file_range(requests: Requests, nodeid: int, caller: Caller, request: memoryview) -> bytes:
    """COPY_FILE_RANGE: the reply says how many bytes were copied, perhaps fewer than asked for."""
    return WRITE_OUT.pack(await _copy(requests, nodeid, caller, request))


async def copy_file_range_64(requests: Requests, nodeid: int, caller: Caller, request: memoryview) -> bytes:
    """The same for kernels that copy more than 4 GiB at once."""
    return COPY_FILE_RANGE_OUT.pack(await _copy(requests, nodeid, caller, request))


async def _copy(requests: Requests, nodeid: int, caller: Caller, request: memoryview) -> int:
    source, offset, _nodeid_out, target, target_offset, length, flags = COPY_FILE_RANGE_IN.unpack_from(request, _BODY)
    if flags:
        raise OSError(errno.EINVAL, f"copy_file_range with flags {flags:#x}")
    copied, most = 0, min(length, _MOST)
    try:
        while copied < most:
            size = min(_PIECE, most - copied)
            if source in requests.files:
                data = await requests.read(source, offset + copied, size)
            else:
                data = await requests.read_inode(nodeid, offset + copied, size, is_direct=True)
            if not data:
                break
            count = await requests.write(target, target_offset + copied, data, caller, Loses.CAPABILITIES)
            copied += count
            if count < len(data):
                break
            await trio.lowlevel.checkpoint()
    except (MystfuseError, OSError):
        # The next call meets it again.
        if not copied:
            raise
    return copied

"""Requests that change the file system, straight from /dev/fuse: answered at once, without libfuse, pyfuse3 and trio,
where nothing has to be waited for.

Unlike pyfuse3, these requests say who writes, and whether the caller lacks CAP_FSETID. So with
FUSE_HANDLE_KILLPRIV_V2 a file loses its privileges in the transaction that changes it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.privileges import Loses
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.attributes import packed_plain_statx
from mystfuse.fuse.errnos import errno_of
from mystfuse.fuse.file_space_requests import copy_file_range, copy_file_range_64, fallocate, lseek
from mystfuse.fuse.ioctl import ioctl
from mystfuse.fuse.protocol import (
    CREATE_IN,
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    IN_HEADER,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OPEN_KILL_SUIDGID,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    RENAME2_IN,
    RENAME_IN,
    SETATTR_IN,
    SETXATTR_IN,
    WRITE_CACHE,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
)
from mystfuse.fuse.requests import Requests, ext2_ino
from mystfuse.volume.runner import NotNow

Reply = Callable[[int, int, bytes | memoryview], object]
"""Sends a reply: the request's number, an errno or 0, and what follows the header."""
_Answer = Callable[[int, Caller, memoryview], Coroutine[Any, Any, bytes | memoryview]]
"""Does what a caller asks of an inode by a request, and returns what follows the reply's header."""
_BODY = IN_HEADER.size
_CHANGES = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME
_TOUCH = FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME | FATTR_MTIME_NOW
_READING = {Opcode.READ, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64}
"""Requests that read file data, and so may have to wait."""
_SECOND = 1_000_000_000


class DirectRequests:
    """Answers requests of the kinds in ``Opcode``. For trio's thread.

    Args:
        requests: shared with ``Operations``.
        reply: sends a reply; it must not raise.
        drop_attributes: has the kernel drop the attributes that it keeps of an inode, by the kernel's number.
    """

    def __init__(self, requests: Requests, reply: Reply, drop_attributes: Callable[[int], None]) -> None:
        self._requests = requests
        self._now = requests.volume.now
        self._shown = requests.shown
        self._reply = reply
        self._answers: dict[int, _Answer] = {
            Opcode.SETATTR: self._setattr,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: partial(self._remove, False),
            Opcode.RMDIR: partial(self._remove, True),
            Opcode.RENAME: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.RELEASE: self._release,
            Opcode.CREATE: self._create,
            Opcode.RENAME2: self._rename2,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.STATX: self._statx,
            Opcode.SETXATTR: self._setxattr,
            Opcode.LSEEK: partial(lseek, requests),
            Opcode.FALLOCATE: partial(fallocate, requests),
            Opcode.COPY_FILE_RANGE: partial(copy_file_range, requests),
            Opcode.COPY_FILE_RANGE_64: partial(copy_file_range_64, requests),
            Opcode.IOCTL: partial(ioctl, requests, drop_attributes),
        }

    def handle(self, request: memoryview) -> Callable[[], Awaitable[None]] | None:
        """Answer a request.

        Args:
            request: all of it, header included; valid until it is answered.

        Returns:
            None: it has been answered. Or, if it has to wait for something and nothing has happened yet, a function
            that does and answers it, to be started in a nursery.
        """
        requests = self._requests
        requests.last_request = time.monotonic()
        length, opcode, unique, nodeid, uid, gid, pid = IN_HEADER.unpack_from(request)
        if length != len(request):
            request = request[:length]
        if opcode == Opcode.FORGET:
            # The kernel does not know the inode any more. There is no reply.
            requests.left(ext2_ino(nodeid))
            return None
        answer = self._answers.get(opcode, _unknown)
        caller = requests.caller(uid, gid, pid)
        if opcode in _READING:
            return partial(self._handle_later, opcode, unique, answer, nodeid, caller, request)
        try:
            payload = self._now(answer(nodeid, caller, request))
        except NotNow:
            return partial(self._handle_later, opcode, unique, answer, nodeid, caller, request)
        except Exception as error:
            self._reply(unique, errno_of(error, _name_of(opcode)), b"")
        else:
            self._reply(unique, 0, payload)
        return None

    async def _handle_later(
        self, opcode: int, unique: int, answer: _Answer, nodeid: int, caller: Caller, request: memoryview
    ) -> None:
        try:
            payload = await answer(nodeid, caller, request)
        except Exception as error:
            self._reply(unique, errno_of(error, _name_of(opcode)), b"")
        else:
            self._reply(unique, 0, payload)
        await self._requests.release_unused()

    async def _setattr(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        (
            valid,
            _fh,
            size,
            _lock_owner,
            atime,
            mtime,
            _ctime,
            atimensec,
            mtimensec,
            _ctimensec,
            mode,
            uid,
            gid,
        ) = SETATTR_IN.unpack_from(request, _BODY)
        now = time.time_ns() if valid & (FATTR_ATIME_NOW | FATTR_MTIME_NOW) else 0
        changes = AttributeChanges(
            mode=mode if valid & FATTR_MODE else None,
            uid=self._shown.stored_uid(uid) if valid & FATTR_UID else None,
            gid=self._shown.stored_gid(gid) if valid & FATTR_GID else None,
            size=size if valid & FATTR_SIZE else None,
            atime_ns=_time(valid & FATTR_ATIME, atime, atimensec, valid & FATTR_ATIME_NOW, now),
            mtime_ns=_time(valid & FATTR_MTIME, mtime, mtimensec, valid & FATTR_MTIME_NOW, now),
        )
        if valid & _TOUCH == _TOUCH and not valid & _CHANGES & ~_TOUCH:
            changes = changes._replace(is_touch=True)
        loses = _loses(valid & FATTR_KILL_SUIDGID)
        if not valid & _CHANGES:
            loses = self._requests.loses_by_nothing(nodeid, caller)
        inode = await self._requests.set_attributes(nodeid, changes, caller, loses)
        return self._shown.packed(inode)

    async def _create(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        # Not OPEN_KILL_SUIDGID: a new file keeps its mode.
        flags, mode, umask, _open_flags = CREATE_IN.unpack_from(request, _BODY)
        name = _name(request, _BODY + CREATE_IN.size)
        handle, inode = await self._requests.create(nodeid, name, mode, flags, caller, umask, names_writers=True)
        return self._shown.packed_entry(inode) + OPEN_OUT.pack(handle, FOPEN_KEEP_CACHE)

    async def _tmpfile(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        flags, mode, umask, _open_flags = CREATE_IN.unpack_from(request, _BODY)
        handle, inode = await self._requests.create_nameless(nodeid, mode, umask, flags, caller)
        return self._shown.packed_entry(inode) + OPEN_OUT.pack(handle, FOPEN_KEEP_CACHE)

    async def _statx(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        control = self._requests.control
        if control is not None and control.owns(nodeid):
            return packed_plain_statx(control.attributes(nodeid))
        volume, ino = self._requests.volume, ext2_ino(nodeid)
        birth_time = await volume.birth_time(ino)
        return self._shown.packed_statx(await volume.inode(ino), birth_time)

    async def _setxattr(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        size, flags = SETXATTR_IN.unpack_from(request, _BODY)
        name, _, value = bytes(request[_BODY + SETXATTR_IN.size :]).partition(b"\0")
        await self._requests.set_xattr(nodeid, name, value[:size], flags, caller)
        return b""

    async def _mknod(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        mode, rdev, umask = MKNOD_IN.unpack_from(request, _BODY)
        name = _name(request, _BODY + MKNOD_IN.size)
        inode = await self._requests.make(nodeid, name, mode, caller, rdev, umask=umask)
        return self._shown.packed_entry(inode)

    async def _mkdir(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        mode, umask = MKDIR_IN.unpack_from(request, _BODY)
        name = _name(request, _BODY + MKDIR_IN.size)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._shown.packed_entry(await self._requests.make(nodeid, name, mode, caller, umask=umask))

    async def _symlink(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        name, target = _names(request, _BODY)
        mode = stat.S_IFLNK | 0o777
        inode = await self._requests.make(nodeid, name, mode, caller, target=target)
        return self._shown.packed_entry(inode)

    async def _link(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        (ino,) = LINK_IN.unpack_from(request, _BODY)
        name = _name(request, _BODY + LINK_IN.size)
        return self._shown.packed_entry(await self._requests.link(ino, nodeid, name, caller))

    async def _remove(self, is_rmdir: bool, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        await self._requests.remove(nodeid, _name(request, _BODY), is_rmdir)
        return b""

    async def _rename(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        (new_parent,) = RENAME_IN.unpack_from(request, _BODY)
        name, new_name = _names(request, _BODY + RENAME_IN.size)
        await self._requests.rename(nodeid, name, new_parent, new_name, 0, caller)
        return b""

    async def _rename2(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        new_parent, flags = RENAME2_IN.unpack_from(request, _BODY)
        name, new_name = _names(request, _BODY + RENAME2_IN.size)
        await self._requests.rename(nodeid, name, new_parent, new_name, flags, caller)
        return b""

    async def _open(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        flags, open_flags = OPEN_IN.unpack_from(request, _BODY)
        handle = await self._requests.open(
            nodeid,
            flags,
            caller,
            _loses(open_flags & OPEN_KILL_SUIDGID),
            names_writers=True,
        )
        is_control = self._requests.is_control(nodeid)
        return OPEN_OUT.pack(handle, FOPEN_KEEP_CACHE | (FOPEN_DIRECT_IO if is_control else 0))

    async def _read(self, nodeid: int, caller: Caller, request: memoryview) -> bytes | memoryview:
        handle, offset, size, _read_flags, _lock_owner, flags = READ_IN.unpack_from(request, _BODY)
        if handle in self._requests.files:
            return await self._requests.read(handle, offset, size)
        return await self._requests.read_inode(nodeid, offset, size, bool(flags & os.O_DIRECT))

    async def _write(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        handle, offset, size, write_flags, _lock_owner, _flags = WRITE_IN.unpack_from(request, _BODY)
        data = request[_BODY + WRITE_IN.size :]
        if len(data) != size:
            raise OSError(errno.EINVAL, f"a write of {size} bytes with {len(data)}")
        if write_flags & WRITE_CACHE:
            # Pages of a mapping, in nobody's name.
            count = await self._requests.write(handle, offset, data, None, Loses.NOTHING)
        else:
            loses = _loses(write_flags & WRITE_KILL_SUIDGID)
            count = await self._requests.write(handle, offset, data, caller, loses)
        return WRITE_OUT.pack(count)

    async def _release(self, nodeid: int, caller: Caller, request: memoryview) -> bytes:
        self._requests.close(RELEASE_IN.unpack_from(request, _BODY)[0])
        return b""


def _loses(kills_suidgid: int) -> Loses:
    return Loses.ALL if kills_suidgid else Loses.CAPABILITIES


def _time(is_set: int, seconds: int, nanoseconds: int, is_now: int, now: int) -> int | None:
    if is_set:
        return seconds * _SECOND + nanoseconds
    return now if is_now else None


async def _unknown(nodeid: int, caller: Caller, request: memoryview) -> bytes:
    raise OSError(errno.ENOSYS, "not a request of ours")


def _name(request: memoryview, start: int) -> bytes:
    """The name that the request ends with, from byte ``start`` on; a zero byte follows it."""
    return bytes(request[start:-1])


def _names(request: memoryview, start: int) -> list[bytes]:
    """The two names that the request ends with."""
    return _name(request, start).split(b"\0")


def _name_of(opcode: int) -> str:
    """A request's name for the log."""
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"request {opcode}"

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

import trio

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.privileges import Loses
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.errnos import errno_of
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
    WRITE_CACHE,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    InHeader,
    Opcode,
)
from mystfuse.fuse.requests import Requests, ext2_ino
from mystfuse.volume.runner import NotNow

Reply = Callable[[int, int, bytes | memoryview], object]
"""Sends a reply: the request's number, an errno or 0, and what follows the header."""
_Answer = Callable[[InHeader, memoryview], Coroutine[Any, Any, bytes | memoryview]]
"""Does what a request asks, given the bytes behind its header, and returns those behind the reply's."""
_CHANGES = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME
_SECOND = 1_000_000_000


class DirectRequests:
    """Answers requests of the kinds in ``Opcode``. For trio's thread.

    Args:
        requests: shared with ``Operations``.
        reply: sends a reply; it must not raise.
    """

    def __init__(self, requests: Requests, reply: Reply) -> None:
        self._requests = requests
        self._volume = requests.volume
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
        }

    def handle(self, request: memoryview) -> Callable[[], Awaitable[None]] | None:
        """Answer a request.

        Args:
            request: all of it, header included; valid until it is answered.

        Returns:
            None: it has been answered. Or, if it has to wait for something and nothing has happened yet, a function
            that does and answers it, to be started in a nursery.
        """
        self._requests.last_request = trio.current_time()
        header = InHeader._make(IN_HEADER.unpack_from(request))
        body = request[IN_HEADER.size : header.len]
        if header.opcode == Opcode.FORGET:
            # The kernel does not know the inode any more; there is no reply.
            self._requests.left(ext2_ino(header.nodeid))
            return None
        if header.opcode == Opcode.READ:
            return partial(self._handle_later, header, body)
        try:
            payload = self._volume.now(self._answer(header, body))
        except NotNow:
            return partial(self._handle_later, header, body)
        except Exception as error:
            self._reply(header.unique, errno_of(error, _name(header.opcode)), b"")
        else:
            self._reply(header.unique, 0, payload)
        return None

    async def _handle_later(self, header: InHeader, body: memoryview) -> None:
        try:
            payload = await self._answer(header, body)
        except Exception as error:
            self._reply(header.unique, errno_of(error, _name(header.opcode)), b"")
        else:
            self._reply(header.unique, 0, payload)
        await self._requests.release_unused()

    def after_replies(self) -> Callable[[], Awaitable[None]] | None:
        """To be called after a batch of ``handle``: None, or a function that frees what the requests have left unused,
        to be started in a nursery."""
        return self._requests.release_unused if self._requests.has_unused else None

    def _answer(self, header: InHeader, body: memoryview) -> Coroutine[Any, Any, bytes | memoryview]:
        answer = self._answers.get(header.opcode)
        if answer is None:
            raise OSError(errno.ENOSYS, f"request {header.opcode}")
        return answer(header, body)

    def _caller(self, header: InHeader) -> Caller:
        return self._requests.caller(header.uid, header.gid, header.pid)

    async def _setattr(self, header: InHeader, body: memoryview) -> bytes:
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
        ) = SETATTR_IN.unpack_from(body)
        now = time.time_ns() if valid & (FATTR_ATIME_NOW | FATTR_MTIME_NOW) else 0
        changes = AttributeChanges(
            mode=mode if valid & FATTR_MODE else None,
            uid=self._shown.stored_uid(uid) if valid & FATTR_UID else None,
            gid=self._shown.stored_gid(gid) if valid & FATTR_GID else None,
            size=size if valid & FATTR_SIZE else None,
            atime_ns=_time(valid & FATTR_ATIME, atime, atimensec, valid & FATTR_ATIME_NOW, now),
            mtime_ns=_time(valid & FATTR_MTIME, mtime, mtimensec, valid & FATTR_MTIME_NOW, now),
        )
        caller = self._caller(header)
        # For chown(2) with neither owner, and before a write by a caller without CAP_FSETID, the kernel sends a request
        # without any change (fs/fuse/dir.c, fuse_setattr). For root it may be about capabilities alone.
        kills = valid & FATTR_KILL_SUIDGID or not (valid & _CHANGES or caller.is_root)
        inode = await self._requests.set_attributes(header.nodeid, changes, caller, _loses(kills))
        return self._shown.packed(inode)

    async def _create(self, header: InHeader, body: memoryview) -> bytes:
        # Not OPEN_KILL_SUIDGID: a new file keeps its mode.
        flags, mode, _umask, _open_flags = CREATE_IN.unpack_from(body)
        name = _names(body, CREATE_IN.size)[0]
        caller = self._caller(header)
        handle, inode = await self._requests.create(header.nodeid, name, mode, flags, caller, names_writers=True)
        return self._shown.packed_entry(inode) + OPEN_OUT.pack(handle, FOPEN_KEEP_CACHE)

    async def _mknod(self, header: InHeader, body: memoryview) -> bytes:
        mode, rdev, _umask = MKNOD_IN.unpack_from(body)
        name = _names(body, MKNOD_IN.size)[0]
        inode = await self._requests.make(header.nodeid, name, mode, self._caller(header), rdev)
        return self._shown.packed_entry(inode)

    async def _mkdir(self, header: InHeader, body: memoryview) -> bytes:
        mode, _umask = MKDIR_IN.unpack_from(body)
        name = _names(body, MKDIR_IN.size)[0]
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._shown.packed_entry(await self._requests.make(header.nodeid, name, mode, self._caller(header)))

    async def _symlink(self, header: InHeader, body: memoryview) -> bytes:
        name, target = _names(body, 0)
        mode = stat.S_IFLNK | 0o777
        inode = await self._requests.make(header.nodeid, name, mode, self._caller(header), target=target)
        return self._shown.packed_entry(inode)

    async def _link(self, header: InHeader, body: memoryview) -> bytes:
        (ino,) = LINK_IN.unpack_from(body)
        name = _names(body, LINK_IN.size)[0]
        return self._shown.packed_entry(await self._requests.link(ino, header.nodeid, name, self._caller(header)))

    async def _remove(self, is_rmdir: bool, header: InHeader, body: memoryview) -> bytes:
        await self._requests.remove(header.nodeid, _names(body, 0)[0], is_rmdir)
        return b""

    async def _rename(self, header: InHeader, body: memoryview) -> bytes:
        (new_parent,) = RENAME_IN.unpack_from(body)
        name, new_name = _names(body, RENAME_IN.size)
        await self._requests.rename(header.nodeid, name, new_parent, new_name, 0, self._caller(header))
        return b""

    async def _rename2(self, header: InHeader, body: memoryview) -> bytes:
        new_parent, flags = RENAME2_IN.unpack_from(body)
        name, new_name = _names(body, RENAME2_IN.size)
        await self._requests.rename(header.nodeid, name, new_parent, new_name, flags, self._caller(header))
        return b""

    async def _open(self, header: InHeader, body: memoryview) -> bytes:
        flags, open_flags = OPEN_IN.unpack_from(body)
        handle = await self._requests.open(
            header.nodeid,
            flags,
            self._caller(header),
            header.uid,
            _loses(open_flags & OPEN_KILL_SUIDGID),
            names_writers=True,
        )
        is_control = self._requests.is_control(header.nodeid)
        return OPEN_OUT.pack(handle, FOPEN_KEEP_CACHE | (FOPEN_DIRECT_IO if is_control else 0))

    async def _read(self, header: InHeader, body: memoryview) -> bytes | memoryview:
        handle, offset, size, _read_flags, _lock_owner, flags = READ_IN.unpack_from(body)
        if handle in self._requests.files:
            return await self._requests.read(handle, offset, size)
        return await self._requests.read_inode(header.nodeid, offset, size, bool(flags & os.O_DIRECT))

    async def _write(self, header: InHeader, body: memoryview) -> bytes:
        handle, offset, size, write_flags, _lock_owner, _flags = WRITE_IN.unpack_from(body)
        data = body[WRITE_IN.size : WRITE_IN.size + size]
        if len(data) != size:
            raise OSError(errno.EINVAL, f"a write of {size} bytes with {len(data)}")
        if write_flags & WRITE_CACHE:
            # Pages of a mapping, in nobody's name.
            count = await self._requests.write(handle, offset, data, None, Loses.NOTHING)
        else:
            loses = _loses(write_flags & WRITE_KILL_SUIDGID)
            count = await self._requests.write(handle, offset, data, self._caller(header), loses)
        return WRITE_OUT.pack(count)

    async def _release(self, header: InHeader, body: memoryview) -> bytes:
        self._requests.close(RELEASE_IN.unpack_from(body)[0])
        return b""


def _loses(kills_suidgid: int) -> Loses:
    return Loses.ALL if kills_suidgid else Loses.CAPABILITIES


def _time(is_set: int, seconds: int, nanoseconds: int, is_now: int, now: int) -> int | None:
    if is_set:
        return seconds * _SECOND + nanoseconds
    return now if is_now else None


def _names(body: memoryview, start: int) -> list[bytes]:
    """The names from byte ``start`` on, each of which ends in a zero byte."""
    *names, _rest = bytes(body[start:]).split(b"\0")
    return names


def _name(opcode: int) -> str:
    """A request's name for the log."""
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"request {opcode}"

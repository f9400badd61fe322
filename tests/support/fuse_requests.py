"""Requests as the kernel sends them on /dev/fuse, and their answers by ``DirectRequests``."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

from mystfuse.devices.device import Extent, PendingRead
from mystfuse.fuse import protocol
from mystfuse.fuse.direct_requests import DirectRequests
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.protocol import Opcode
from mystfuse.fuse.requests import Requests
from mystfuse.volume.volume import Volume
from tests.support.gated_volumes import GatedDevice

ROOT_ID = 1
UNIQUE = 7

Ask = Callable[[bytes], Awaitable[tuple[int, bytes]]]
"""Sends a request; returns the reply's errno, or 0, and what follows its header."""


def request(opcode: int, nodeid: int, body: bytes, uid: int = 0, gid: int = 0) -> bytes:
    header = protocol.IN_HEADER.pack(protocol.IN_HEADER.size + len(body), opcode, UNIQUE, nodeid, uid, gid, os.getpid())
    return header + body


def create(name: bytes, mode: int = 0o100644, flags: int = os.O_WRONLY, parent: int = ROOT_ID, uid: int = 0) -> bytes:
    body = protocol.CREATE_IN.pack(flags | os.O_CREAT, mode, 0o22, 0) + name + b"\0"
    return request(Opcode.CREATE, parent, body, uid, uid)


def open_file(ino: int, flags: int = os.O_WRONLY, open_flags: int = 0, uid: int = 0) -> bytes:
    return request(Opcode.OPEN, ino, protocol.OPEN_IN.pack(flags, open_flags), uid, uid)


def write(ino: int, handle: int, offset: int, data: bytes, write_flags: int = 0, uid: int = 0) -> bytes:
    body = protocol.WRITE_IN.pack(handle, offset, len(data), write_flags, 0, os.O_WRONLY) + data
    return request(Opcode.WRITE, ino, body, uid, uid)


def setattr_of(
    ino: int,
    valid: int,
    size: int = 0,
    atime: tuple[int, int] = (0, 0),
    mtime: tuple[int, int] = (0, 0),
    mode: int = 0,
    owner: tuple[int, int] = (0, 0),
    uid: int = 0,
) -> bytes:
    times = (atime[0], mtime[0], 0, atime[1], mtime[1], 0)
    return request(Opcode.SETATTR, ino, protocol.SETATTR_IN.pack(valid, 0, size, 0, *times, mode, *owner), uid, uid)


def release(ino: int, handle: int) -> bytes:
    return request(Opcode.RELEASE, ino, protocol.RELEASE_IN.pack(handle, os.O_WRONLY, 0, 0))


def unlink(name: bytes, parent: int = ROOT_ID) -> bytes:
    return request(Opcode.UNLINK, parent, name + b"\0")


def rmdir(name: bytes, parent: int = ROOT_ID) -> bytes:
    return request(Opcode.RMDIR, parent, name + b"\0")


def mkdir(name: bytes, parent: int = ROOT_ID, mode: int = 0o755) -> bytes:
    return request(Opcode.MKDIR, parent, protocol.MKDIR_IN.pack(mode, 0o22) + name + b"\0")


def mknod(name: bytes, mode: int, rdev: int = 0) -> bytes:
    return request(Opcode.MKNOD, ROOT_ID, protocol.MKNOD_IN.pack(mode, rdev, 0o22) + name + b"\0")


def symlink(name: bytes, target: bytes) -> bytes:
    return request(Opcode.SYMLINK, ROOT_ID, name + b"\0" + target + b"\0")


def link(ino: int, name: bytes, parent: int = ROOT_ID) -> bytes:
    return request(Opcode.LINK, parent, protocol.LINK_IN.pack(ino) + name + b"\0")


def rename(parent: int, name: bytes, new_parent: int, new_name: bytes) -> bytes:
    return request(Opcode.RENAME, parent, protocol.RENAME_IN.pack(new_parent) + name + b"\0" + new_name + b"\0")


def rename2(parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bytes:
    body = protocol.RENAME2_IN.pack(new_parent, flags) + name + b"\0" + new_name + b"\0"
    return request(Opcode.RENAME2, parent, body)


def entry_ino(payload: bytes) -> int:
    """The inode number in a fuse_entry_out."""
    return int(protocol.ENTRY_OUT.unpack_from(payload)[0])


def created(payload: bytes) -> tuple[int, int]:
    """The inode number and the handle in the reply to CREATE."""
    return entry_ino(payload), opened(payload[protocol.ENTRY_OUT.size + protocol.ATTR.size :])


def opened(payload: bytes) -> int:
    """The handle in a fuse_open_out."""
    return int(protocol.OPEN_OUT.unpack(payload)[0])


class CachedDevice(GatedDevice):
    """A device whose bytes are in the page cache."""

    cached_reads: int | None = None
    """How many more reads find them there; None for all."""

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        if self.cached_reads is not None:
            if not self.cached_reads:
                return None
            self.cached_reads -= 1
        return lambda: [memoryview(self._data)[offset : offset + length] for offset, length in extents]


class Direct:
    """``DirectRequests`` over a volume, with the replies it has sent."""

    def __init__(self, volume: Volume, groups: frozenset[int] = frozenset(), **options: object) -> None:
        mount_options = MountOptions("/mnt", "image", owner=(1000, 1000), **options)  # type: ignore[arg-type]
        self.asked: list[int] = []
        """Processes whose groups were looked up."""

        def groups_of(pid: int) -> frozenset[int]:
            self.asked.append(pid)
            return groups

        self.requests = Requests(volume, mount_options, dict, groups_of)
        self.replies: list[tuple[int, int, bytes]] = []
        self.changes = 0
        """Of the volume, when the last reply was sent."""
        self._direct = DirectRequests(self.requests, self._reply, lambda nodeid: None)
        self.later = lambda request: self._direct.handle(memoryview(bytearray(request)))

    def _reply(self, unique: int, error: int, payload: bytes) -> None:
        self.replies.append((unique, error, payload))
        self.changes = self.requests.volume.changes

    def now(self, request: bytes) -> tuple[int, bytes] | None:
        """The reply, if it comes at once."""
        if self.later(request) is not None:
            return None
        [(unique, error, payload)] = self.replies
        assert unique == UNIQUE
        self.replies.clear()
        return error, payload

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The reply, whenever it comes, and what is done after it."""
        rest = self.later(request)
        if rest is not None:
            await rest()
        [(unique, error, payload)] = self.replies
        assert unique == UNIQUE
        self.replies.clear()
        await self.requests.release_unused()
        return error, payload

"""The kernel's requests as bytes, and Python's answers to them as bytes: what the fast path's are compared with.

Source: the kernel's include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from enum import IntEnum

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.fuse.attributes import CACHE_SECONDS, ShownAttributes
from mystfuse.fuse.control_directory_names import CONTROL_NAME
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.protocol import ATTR, ENTRY_OUT, FOPEN_KEEP_CACHE, IN_HEADER, OPEN_OUT, OUT_HEADER
from mystfuse.volume.volume import Volume

UNIQUE = 0x1234_5678_9ABC
HANDLE = 1 << 63
"""Of files that C threads open."""
MAX_LISTING = 128 << 10
"""Bytes of a reply to READDIRPLUS."""
READ_BODY = struct.Struct("=QQIIQI4x")
"""fh, offset, size, read_flags, lock_owner, flags"""
DIRENT = struct.Struct("=QQII")
"""ino, off, namelen, type"""
ENTRY_SIZE = ENTRY_OUT.size + ATTR.size
"""Bytes of fuse_entry_out."""
_AT_ONCE = 512
_PLACE = (1 << 32) - 1
"""Of a position: the byte in the directory. The rest tells states apart, and is C's own."""


class Kind(IntEnum):
    """The kinds of requests that C answers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    OPENDIR = 27
    BATCH_FORGET = 42
    READDIRPLUS = 44


def request(kind: int, ino: int, body: bytes = b"") -> bytes:
    """A request about an inode of the file system, as the kernel sends it."""
    nodeid = 1 if ino == EXT2_ROOT_INO else ino
    return IN_HEADER.pack(IN_HEADER.size + len(body), kind, UNIQUE, nodeid, 0, 0, 0) + body


def lookup(ino: int, name: bytes) -> bytes:
    return request(Kind.LOOKUP, ino, name + b"\0")


def getattr_of(ino: int) -> bytes:
    return request(Kind.GETATTR, ino, bytes(16))


def readlink(ino: int) -> bytes:
    return request(Kind.READLINK, ino)


def open_file(ino: int, flags: int = os.O_RDONLY) -> bytes:
    return request(Kind.OPEN, ino, struct.pack("=II", flags, 0))


def read(ino: int, offset: int, size: int) -> bytes:
    return request(Kind.READ, ino, READ_BODY.pack(HANDLE, offset, size, 0, 0, 0))


def release(ino: int) -> bytes:
    return request(Kind.RELEASE, ino, struct.pack("=QIIQ", HANDLE, 0, 0, 0))


def readdirplus(ino: int, position: int, size: int = 4096) -> bytes:
    return request(Kind.READDIRPLUS, ino, READ_BODY.pack(0, position, size, 0, 0, 0))


def listxattr(ino: int, size: int) -> bytes:
    return request(Kind.LISTXATTR, ino, struct.pack("=II", size, 0))


def getxattr(ino: int, name: bytes, size: int = 0) -> bytes:
    return request(Kind.GETXATTR, ino, struct.pack("=II", size, 0) + name + b"\0")


def reply(payload: bytes | memoryview = b"", error: int = 0) -> bytes:
    """A whole reply."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), -error, UNIQUE) + payload


class Reference:
    """Answers as ``fuse.operations`` does. Every method raises what the volume raises."""

    def __init__(self, volume: Volume, options: MountOptions) -> None:
        self._volume = volume
        self._options = options
        self._shown = ShownAttributes(options, volume.superblock.block_size)

    async def answer(self, asked: bytes) -> bytes | None:
        """The reply to a request of a kind that C answers; None if C must not answer it, though Python has no error."""
        size, kind, _, nodeid, *_ = IN_HEADER.unpack_from(asked)
        ino, body = EXT2_ROOT_INO if nodeid == 1 else nodeid, asked[IN_HEADER.size : size]
        volume = self._volume
        match kind:
            case Kind.LOOKUP:
                return await self._lookup(ino, body[:-1])
            case Kind.GETATTR:
                return reply(self._shown.packed(await volume.inode(ino)))
            case Kind.READLINK:
                return reply(await volume.target(ino))
            case Kind.OPEN:
                (flags, _) = struct.unpack("=II", body)
                if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
                    return None
                is_regular = (await volume.inode(ino)).is_regular
                return reply(OPEN_OUT.pack(HANDLE, FOPEN_KEEP_CACHE)) if is_regular else None
            case Kind.READ:
                _, offset, length, *_ = READ_BODY.unpack(body)
                return reply(await volume.read(ino, offset, length))
            case Kind.RELEASE | Kind.FORGET | Kind.BATCH_FORGET:
                return reply()
            case Kind.OPENDIR:
                return reply(error=errno.ENOSYS)
            case Kind.GETXATTR:
                return await self._getxattr(ino, body[8:-1])
            case Kind.LISTXATTR:
                (room, _) = struct.unpack("=II", body)
                has_any = not self._options.xattr or await volume.xattrs(ino)
                return None if has_any else reply(b"" if room else bytes(8))
            case Kind.READDIRPLUS:
                _, position, room, *_ = READ_BODY.unpack(body)
                return reply(b"".join(await self.listing(ino, position & _PLACE, min(room, MAX_LISTING))))
        raise AssertionError(f"a request of kind {kind}")

    async def _lookup(self, parent: int, name: bytes) -> bytes | None:
        is_control = self._options.control and parent == EXT2_ROOT_INO and name == CONTROL_NAME
        if is_control or name in (b".", b".."):
            return None
        inode = await self._volume.lookup(parent, name)
        if inode is None:
            return reply(ENTRY_OUT.pack(0, 0, CACHE_SECONDS, 0, 0, 0) + bytes(ATTR.size))
        return reply(self._shown.packed_entry(inode))

    async def _getxattr(self, ino: int, name: bytes) -> bytes | None:
        if not self._options.xattr or name in await self._volume.xattrs(ino):
            return None
        return reply(error=errno.ENODATA)

    async def listing(self, ino: int, position: int, room: int) -> list[bytes]:
        """The entries from a position on that fit, each as fuse_direntplus; up to one that C leaves to Python, or that
        is in front of an error.

        Raises:
            MystfuseError, OSError: it comes first.
        """
        found: list[bytes] = []

        def add(entry: bytes) -> bool:
            fits = sum(map(len, found)) + len(entry) <= room
            if fits:
                found.append(entry)
            return fits

        size = (await self._volume.inode(ino)).size
        parent = (await self._volume.dots(ino))[0] if position < 2 else 0
        for after, name, number in ((1, b".", ino), (2, b"..", parent)):
            if position < after and not add(pack_entry(name, number, stat.S_IFDIR, after, bytes(ENTRY_SIZE))):
                return found
        offset = 0 if position <= 2 else position
        if offset >= size:
            # As Python does, which tells here what is no directory.
            await self._volume.entries(ino, offset, _AT_ONCE)
        while offset < size:
            try:
                entries, offset = await self._volume.entries(ino, offset, _AT_ONCE)
            except (MystfuseError, OSError):
                if found:
                    return found
                raise
            for entry, inode in entries:
                if inode is None or self._is_hidden(ino, entry.name):
                    return found
                packed = self._shown.packed_entry(inode)
                if not add(pack_entry(entry.name, inode.ino, inode.i_mode, entry.next_offset, packed)):
                    return found
        return found

    def _is_hidden(self, ino: int, name: bytes) -> bool:
        return self._options.control and ino == EXT2_ROOT_INO and name == CONTROL_NAME


def pack_entry(name: bytes, ino: int, mode: int, following: int, entry: bytes) -> bytes:
    """fuse_direntplus: an entry of a listing; ``entry`` is its fuse_entry_out."""
    packed = entry + DIRENT.pack(ino, following, len(name), stat.S_IFMT(mode) >> 12) + name
    return packed + bytes(-len(packed) % 8)


def entries_of(listing: bytes | memoryview) -> list[tuple[bytes, int, int]]:
    """The (name, inode number, position behind it) of the entries in a reply's listing."""
    found: list[tuple[bytes, int, int]] = []
    at = 0
    while at < len(listing):
        ino, following, size, _ = DIRENT.unpack_from(listing, at + ENTRY_SIZE)
        start = at + ENTRY_SIZE + DIRENT.size
        found.append((bytes(listing[start : start + size]), ino, following))
        at = -(-(start + size) // 8) * 8
    return found


def without_versions(answer: bytes) -> bytes:
    """The reply to READDIRPLUS with places alone as positions."""
    plain = bytearray(answer)
    at = OUT_HEADER.size
    while at < len(plain):
        ino, following, size, kind = DIRENT.unpack_from(plain, at + ENTRY_SIZE)
        DIRENT.pack_into(plain, at + ENTRY_SIZE, ino, following & _PLACE, size, kind)
        at += -(-(ENTRY_SIZE + DIRENT.size + size) // 8) * 8
    return bytes(plain)


def questions_about(inode: Inode, names: Sequence[bytes], block_size: int) -> list[bytes]:
    """Requests about an inode: all kinds, and what lies at the boundaries of its block map."""
    ino, size = inode.ino, inode.size
    asked = [getattr_of(ino), readlink(ino), open_file(ino), open_file(ino, os.O_WRONLY), listxattr(ino, 0)]
    asked += [listxattr(ino, 100), getxattr(ino, b"security.capability"), getxattr(ino, b"system.posix_acl_access", 90)]
    asked += [lookup(ino, name) for name in (*names, b"no such name", b"x" * 255)]
    if inode.is_directory:
        asked += [
            readdirplus(ino, position, room) for position in (0, 1, 2, 12, size - 1, size) for room in (600, 4096)
        ]
        asked += [readdirplus(ino, 0, MAX_LISTING), readdirplus(ino, size + 1), readdirplus(ino, 0, 100)]
        return asked
    per_block = block_size // 4
    edges = (0, 12, 12 + per_block, 12 + per_block + per_block**2, size // block_size)
    for edge in edges:
        middle = edge * block_size
        for offset, length in ((middle, 4096), (middle - 1, 2), (middle - 7000, 131072), (middle + 1, 1), (middle, 0)):
            asked.append(read(ino, max(offset, 0), length))
    asked += [
        read(ino, max(size - 5, 0), 1 << 20),
        read(ino, size, 4096),
        read(ino, size + 1, 1),
        read(ino, 1, 1 << 20),
    ]
    return asked

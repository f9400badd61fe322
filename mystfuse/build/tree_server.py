"""Answers the kernel's requests for a tree in memory that does not change: straight from /dev/fuse, one at a time.

The kernel keeps all names and attributes. It is told not to ask at all about opening, nor, where no file has any, about
extended attributes and holes: most files cost one request then.

Source: the kernel's include/uapi/linux/fuse.h, and fs/fuse for what an ENOSYS ends for good.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from mystfuse.archives.file_tree import Contents, Entry, OpenContents
from mystfuse.errors import MountError
from mystfuse.fuse.protocol import ATTR, ATTR_OUT, ENTRY_OUT, IN_HEADER, LSEEK_IN, LSEEK_OUT, OUT_HEADER, READ_IN


class _Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    READ = 15
    STATFS = 17
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    READDIR = 28
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46


_NO_REPLY = {_Opcode.FORGET, _Opcode.BATCH_FORGET, _Opcode.INTERRUPT, _Opcode.DESTROY}
_INIT_IN = struct.Struct("=IIII")
"""major, minor, max_readahead, flags"""
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2"""
_GETXATTR_IN = struct.Struct("=I4x")
"""size: bytes of room; 0: the size is asked for"""
_GETXATTR_OUT = struct.Struct("=I4x")
"""size"""
_DIRENT = struct.Struct("=QQII")
"""ino, off (of the next one), namelen, type; the name follows, filled up to 8 bytes"""
_STATFS_OUT = struct.Struct("=QQQQQIII4x24x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize"""
_MAJOR, _MINOR = 7, 31
# fuse_init_out.flags
_ASYNC_READ, _DO_READDIRPLUS, _MAX_PAGES, _NO_OPENDIR_SUPPORT = 1 << 0, 1 << 13, 1 << 22, 1 << 24
_MAX_READ_PAGES = 256
_BUFFER_SIZE = 64 << 10
"""Bytes; a request has 8192 at most, since nothing is written (FUSE_MIN_READ_BUFFER)."""
_FOREVER = 1 << 31
"""Seconds."""
_OPEN_FILES = 8
_LARGE_HOLES = 1 << 20
"""Bytes of holes in a file that are worth a request for where they are; others are read as zeros."""
_SECOND = 1_000_000_000


class TreeServer:
    """Shows one tree."""

    def __init__(self, root: Entry, contents: Contents) -> None:
        self._contents = contents
        self._nodes: list[Entry] = []
        self._numbers: dict[int, int] = {}
        self._listed: tuple[int, list[tuple[bytes, Entry]]] = (0, [])
        self._open: OrderedDict[int, OpenContents] = OrderedDict()
        has_attributes = has_holes = False
        for entry in root.walk():
            self._nodes.append(entry)
            self._numbers[id(entry)] = len(self._nodes)
            has_attributes = has_attributes or bool(entry.attributes)
            has_holes = has_holes or entry.hole_bytes >= _LARGE_HOLES
        self._answers: dict[int, Callable[[int, memoryview], bytes]] = {
            _Opcode.LOOKUP: self._lookup,
            _Opcode.GETATTR: self._getattr,
            _Opcode.READLINK: self._readlink,
            _Opcode.READ: self._read,
            _Opcode.STATFS: lambda node, body: _STATFS_OUT.pack(0, 0, 0, len(self._nodes), 0, 4096, 255, 4096),
            _Opcode.INIT: _init,
            _Opcode.READDIR: lambda node, body: self._readdir(node, body, False),
            _Opcode.READDIRPLUS: lambda node, body: self._readdir(node, body, True),
        }
        if has_attributes:
            self._answers |= {_Opcode.GETXATTR: self._getxattr, _Opcode.LISTXATTR: self._listxattr}
        if has_holes:
            self._answers[_Opcode.LSEEK] = self._lseek

    def serve(self, device: int) -> None:
        """Answer requests until the mount has ended.

        Args:
            device: descriptor of /dev/fuse.

        Raises:
            MountError: requests cannot be read.
        """
        buffer = bytearray(_BUFFER_SIZE)
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(device, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    # A request that was taken back.
                    continue
                raise MountError(f"/dev/fuse: {error.strerror}") from error
            reply = self.answer(view[:length])
            if reply is not None:
                # ENOENT: nobody waits for it any more.
                with suppress(OSError):
                    os.writev(device, reply)

    def answer(self, request: memoryview) -> list[bytes] | None:
        """The reply to a request: its header, and the rest; None for a request that gets none."""
        _length, opcode, unique, node, *_caller = IN_HEADER.unpack_from(request)
        if opcode in _NO_REPLY:
            return None
        code, payload = errno.ENOSYS, b""
        answer = self._answers.get(opcode)
        if answer is not None:
            try:
                code, payload = 0, answer(node, request[IN_HEADER.size :])
            except OSError as error:
                code = error.errno or errno.EIO
        return [OUT_HEADER.pack(OUT_HEADER.size + len(payload), -code, unique), payload]

    def _entry(self, node: int) -> Entry:
        if not 0 < node <= len(self._nodes):
            raise OSError(errno.ESTALE, "no such node")
        return self._nodes[node - 1]

    def _number(self, entry: Entry) -> int:
        return self._numbers[id(entry)]

    def _lookup(self, node: int, body: memoryview) -> bytes:
        child = self._entry(node).children.get(bytes(body[:-1]))
        if child is None:
            raise OSError(errno.ENOENT, "no such name")
        return self._packed_entry(child)

    def _getattr(self, node: int, body: memoryview) -> bytes:
        return ATTR_OUT.pack(_FOREVER, 0) + self._packed_attributes(self._entry(node))

    def _readlink(self, node: int, body: memoryview) -> bytes:
        return self._entry(node).target

    def _readdir(self, node: int, body: memoryview, with_attributes: bool) -> bytes:
        _handle, position, size, *_flags = READ_IN.unpack_from(body)
        if self._listed[0] != node:
            self._listed = node, list(self._entry(node).children.items())
        parts: list[bytes] = []
        names = self._listed[1]
        while position < len(names):
            name, child = names[position]
            position += 1
            number = self._number(child)
            head = _DIRENT.pack(number, position, len(name), stat.S_IFMT(child.mode) >> 12)
            part = head + name + bytes(-len(name) % 8)
            if with_attributes:
                part = self._packed_entry(child) + part
            size -= len(part)
            if size < 0:
                break
            parts.append(part)
        return b"".join(parts)

    def _read(self, node: int, body: memoryview) -> bytes:
        _handle, offset, size, *_flags = READ_IN.unpack_from(body)
        return self._opened(node).read(offset, size)

    def _lseek(self, node: int, body: memoryview) -> bytes:
        _handle, offset, whence = LSEEK_IN.unpack_from(body)
        return LSEEK_OUT.pack(self._opened(node).seek(offset, whence))

    def _opened(self, node: int) -> OpenContents:
        """The file's contents; the kernel does not say when it closes a file."""
        opened = self._open.get(node)
        if opened is not None:
            self._open.move_to_end(node)
            return opened
        opened = self._open[node] = self._contents.open(self._entry(node))
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return opened

    def _listxattr(self, node: int, body: memoryview) -> bytes:
        names = b"".join(name + b"\0" for name, _ in self._entry(node).attributes)
        return _attribute(names, body)

    def _getxattr(self, node: int, body: memoryview) -> bytes:
        wanted = bytes(body[_GETXATTR_IN.size : -1])
        for name, value in self._entry(node).attributes:
            if name == wanted:
                return _attribute(value, body)
        raise OSError(errno.ENODATA, "no such attribute")

    def _packed_entry(self, entry: Entry) -> bytes:
        head = ENTRY_OUT.pack(self._number(entry), 0, _FOREVER, _FOREVER, 0, 0)
        return head + self._packed_attributes(entry)

    def _packed_attributes(self, entry: Entry) -> bytes:
        size = len(entry.target) or entry.size
        return ATTR.pack(
            self._number(entry),
            size,
            (size - entry.hole_bytes) // 512,
            # As signed numbers: also before 1970.
            *(time // _SECOND for time in (entry.atime_ns, entry.mtime_ns, entry.ctime_ns)),
            *(time % _SECOND for time in (entry.atime_ns, entry.mtime_ns, entry.ctime_ns)),
            entry.mode,
            2 if entry.is_directory else entry.names,
            entry.uid,
            entry.gid,
            entry.rdev & 0xFFFFFFFF,
            4096,
            0,
        )


def _init(node: int, body: memoryview) -> bytes:
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(body)
    if major != _MAJOR or minor < _MINOR:
        raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}")
    accepted = flags & (_ASYNC_READ | _DO_READDIRPLUS | _MAX_PAGES | _NO_OPENDIR_SUPPORT)
    return _INIT_OUT.pack(_MAJOR, _MINOR, max_readahead, accepted, 0, 0, 4096, 1, _MAX_READ_PAGES, 0, 0)


def _attribute(data: bytes, body: memoryview) -> bytes:
    """The reply to a request for so many bytes at most, or for their number."""
    (room,) = _GETXATTR_IN.unpack_from(body)
    if not room:
        return _GETXATTR_OUT.pack(len(data))
    if len(data) > room:
        raise OSError(errno.ERANGE, "too long")
    return data

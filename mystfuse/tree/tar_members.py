"""The members of a tar archive: pax (POSIX.1-2001), the same bytes for the same values.

Extended attributes are ``SCHILY.xattr.NAME`` records, as GNU tar, bsdtar and container tools read them; ACLs also
``SCHILY.acl.*``, since GNU tar takes them from nowhere else.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from mystfuse.ext2.acl import acl_to_text
from mystfuse.ext2.xattr import POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.tree.image_file import CHUNK

BLOCK = 512
RECORD = 20 * BLOCK
"""Bytes that the length of an archive is a multiple of."""
OF_OVERLAYFS = b"trusted.overlay."
"""Attributes by which overlayfs remembers what it does: in a layer they would tell another overlayfs lies."""
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
"""name mode uid gid size mtime chksum typeflag linkname magic version uname gname devmajor devminor prefix"""
_CHECKSUM = slice(148, 156)
_MAX_NAME = 100
_ACLS = {POSIX_ACL_ACCESS: b"SCHILY.acl.access", POSIX_ACL_DEFAULT: b"SCHILY.acl.default"}
_LINK, _PAX = b"1", b"x"
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}

Write = Callable[[bytearray], Awaitable[None]]
"""Takes the archive, piece by piece."""


@dataclass(frozen=True, slots=True)
class Member:
    """One name of an archive, and the inode behind it."""

    name: bytes
    """Of a directory, with a slash at its end."""
    mode: int
    """Type and permissions."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Bytes of data that follow."""
    rdev: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    """Of a symbolic link; or, with ``is_hard_link``, the name of the member whose inode this is."""
    is_hard_link: bool = False
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """Full names and values; ACLs as getxattr(2) gives them."""

    def pack(self) -> bytes:
        """The headers; a pax header in front has the values that do not fit the plain one."""
        kind = _LINK if self.is_hard_link else _TYPES[stat.S_IFMT(self.mode)]
        seconds, nanoseconds = divmod(self.mtime_ns, 10**9)
        records: dict[bytes, bytes] = {}
        for keyword, text in ((b"path", self.name), (b"linkpath", self.target)):
            if len(text) > _MAX_NAME or not text.isascii():
                records[keyword] = text
        for keyword, number, digits in ((b"uid", self.uid, 7), (b"gid", self.gid, 7), (b"size", self.size, 11)):
            if number >= 8**digits:
                records[keyword] = b"%d" % number
        if nanoseconds or not 0 <= seconds < 8**11:
            records[b"mtime"] = _decimal(self.mtime_ns)
        for attribute, value in sorted(self.xattrs.items()):
            # As GNU tar writes what would end the keyword.
            records[b"SCHILY.xattr." + attribute.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
            if attribute in _ACLS:
                records[_ACLS[attribute]] = acl_to_text(value).encode("ascii")
        header = self._header(kind, max(seconds, 0))
        if not records:
            return header
        body = b"".join(_record(keyword, value) for keyword, value in records.items())
        extended = b"./PaxHeaders/" + self.name.rstrip(b"/").rpartition(b"/")[2]
        pax = Member(extended, 0o644, size=len(body))._header(_PAX, 0)
        return pax + body + bytes(-len(body) % BLOCK) + header

    def _header(self, kind: bytes, mtime: int) -> bytes:
        """A plain header (ustar). Long values are cut, large ones are 0: then pax records have them."""
        header = bytearray(
            _HEADER.pack(
                self.name[:_MAX_NAME],
                _octal(stat.S_IMODE(self.mode), 7),
                _octal(self.uid, 7),
                _octal(self.gid, 7),
                _octal(self.size, 11),
                _octal(mtime, 11),
                b" " * 8,
                kind,
                self.target[:_MAX_NAME],
                b"ustar\0",
                b"00",
                b"",
                b"",
                _octal(os.major(self.rdev), 7),
                _octal(os.minor(self.rdev), 7),
                b"",
            )
        )
        header[_CHECKSUM] = b"%06o\0 " % sum(header)
        return bytes(header)


def has_member(mode: int) -> bool:
    """Whether archives have a kind of member for this kind of file: for sockets they have none."""
    return stat.S_IFMT(mode) in _TYPES


class TarWriter:
    """An archive, written piece by piece."""

    def __init__(self, write: Write) -> None:
        self._write_out = write
        self._written = 0
        self._waiting = bytearray()
        """Output to be written together with more: headers and small files are many."""

    async def add(self, member: Member) -> None:
        """Begin a member; its data follow."""
        await self.write(member.pack())

    async def write(self, data: bytes | memoryview) -> None:
        """Add data of the member."""
        self._waiting += data
        if len(self._waiting) >= CHUNK:
            await self._flush()

    async def end_data(self) -> None:
        """End the data of a member."""
        await self.write(bytes(-self._position % BLOCK))

    async def finish(self) -> None:
        """End the archive."""
        await self.write(bytes(2 * BLOCK))
        await self.write(bytes(-self._position % RECORD))
        await self._flush()

    @property
    def _position(self) -> int:
        return self._written + len(self._waiting)

    async def _flush(self) -> None:
        self._written += len(self._waiting)
        waiting, self._waiting = self._waiting, bytearray()
        await self._write_out(waiting)


def _octal(number: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits, number if number < 8**digits else 0)


def _decimal(time_ns: int) -> bytes:
    """Seconds with a fraction."""
    seconds, nanoseconds = divmod(abs(time_ns), 10**9)
    fraction = b".%09d" % nanoseconds if nanoseconds else b""
    return (b"-" if time_ns < 0 else b"") + b"%d" % seconds + fraction.rstrip(b"0")


def _record(keyword: bytes, value: bytes) -> bytes:
    """A pax record: its own length, the keyword, the value."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length += 1
    return b"%d" % length + rest

"""The members of a tar archive, read with Python's ``tarfile`` under bounds: what an archive says of itself is not
believed.

``tarfile`` reads headers as long as they claim to be, and takes a broken header for the end: so it gets the archive
through a reader that counts, and its members are asked for one by one.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

from mystfuse.archives.file_tree import Attributes
from mystfuse.archives.spool import FilePart
from mystfuse.archives.tar_attributes import attributes_of, raw
from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.ext2.acl import Acl

MAX_HEADER = 4 << 20
"""Bytes of one member's headers: pax records with all its attributes, its sparse map."""
MAX_GLOBAL = 64 << 10
"""Characters of records that count for all further members, each of which gets a copy."""
MAX_GLOBAL_RECORDS = 256
MAX_MEMBERS = 1 << 21
MAX_PATH = 4095
"""Bytes: what a system call takes (PATH_MAX)."""
_MAX_ID = 2**32 - 2
_BLOCK = 512
_GNU_MAGIC = b"ustar  \0"
_GNU_VOLUME, _GNU_DIRECTORY = b"V", b"D"
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG, tarfile.AREGTYPE: stat.S_IFREG, tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG, tarfile.LNKTYPE: 0, tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.DIRTYPE: stat.S_IFDIR,
    _GNU_DIRECTORY: stat.S_IFDIR, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip
_MAX_SECONDS = 10**18
_SECONDS = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]*))?")

Pieces = tuple[tuple[int, int], ...]
"""Offset in the file, and length, of each range of data in ascending order: so they are stored one behind the other."""


@dataclass(slots=True)
class Member:
    """One member, its claims checked against the archive."""

    path: tuple[bytes, ...]
    """Names from the root on; empty for the root."""
    mode: int
    """With the type; type 0 for a hard link."""
    uid: int
    gid: int
    mtime_ns: int
    rdev: int = 0
    target: bytes = b""
    """Of a symbolic link."""
    link: tuple[bytes, ...] = ()
    """Of a hard link: the path of the file that it is."""
    attributes: Attributes = ()
    offset: int = 0
    """Where the data begin in the archive."""
    size: int = 0
    """Bytes, holes included."""
    pieces: Pieces | None = None
    """None: all of it is data."""

    @property
    def shown(self) -> str:
        """The path for messages."""
        return os.fsdecode(b"/".join(self.path)) or "."


def read_members(part: FilePart) -> Iterator[Member]:
    """The members, in order.

    Raises:
        FormatError: not a tar archive, one that is damaged or cut short, or one that no sane program has made; the
            message names the member where it has a name.
    """
    headers = _Headers(part)
    try:
        archive = tarfile.TarFile(
            fileobj=cast(Any, headers), tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
        )
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"not a tar archive: {_reason(error)}") from error
    # It has read the first header already.
    headers_of_all = cast(dict[str, str], archive.pax_headers)
    headers_of_all.clear()
    position = count = 0
    while True:
        header = _next(archive, headers, position)
        if header is None:
            return
        if header.sparse is not None:
            # ``tarfile`` goes by another size where the records give one, as they do from 8 GiB on.
            stored = sum(length for _, length in cast(Any, header.sparse))
            archive.offset = -(-(header.offset_data + stored) // _BLOCK) * _BLOCK
        if archive.offset <= position or archive.offset > -(-part.size // _BLOCK) * _BLOCK:
            raise FormatError(f"{_shown(header)}: cut short: its data end behind the archive's end, {part.size} bytes")
        position = archive.offset
        if headers_of_all:
            if sum(len(key) + len(value) for key, value in headers_of_all.items()) > MAX_GLOBAL:
                raise FormatError(f"byte {position}: global headers of more than {MAX_GLOBAL} characters")
            if len(headers_of_all) > MAX_GLOBAL_RECORDS:
                raise FormatError(f"byte {position}: more than {MAX_GLOBAL_RECORDS} records in global headers")
        count += 1
        if count > MAX_MEMBERS:
            raise FormatError(f"more than {MAX_MEMBERS} members")
        if header.type == _GNU_VOLUME:
            continue
        try:
            yield _member(header, part)
        except FormatError as error:
            raise error.at(_shown(header)) from None


def _next(archive: tarfile.TarFile, headers: _Headers, position: int) -> _Header | None:
    """The header at ``position``; None at the archive's end. The archive's ``offset`` is then that of the next one."""
    headers.begin(position)
    try:
        return _Header.fromtarfile(archive)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"byte {position}: no member of a tar archive: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """``tarfile`` does not expect what some of them are about."""
    if isinstance(error, RecursionError):
        return "headers about headers about headers"
    return str(error) if isinstance(error, tarfile.TarError) else "a number that is none"


class _Header(tarfile.TarInfo):
    """A header, read as GNU tar and others write it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf[257:265] == _GNU_MAGIC:
            # GNU's form has times where POSIX has the beginning of the name. Without them, but with the same sum.
            sparse = buf[156:157] == tarfile.GNUTYPE_SPARSE
            header = super().frombuf(buf, encoding, errors)
            if not sparse and any(buf[345:500]):
                blank = bytearray(buf)
                blank[345:500] = bytes(155)
                blank[148:156] = b"%06o\0 " % ((sum(blank) - sum(blank[148:156]) + 8 * 32) & 0o777777)
                header = super().frombuf(bytes(blank), encoding, errors)
            return header
        return super().frombuf(buf, encoding, errors)


class _Headers:
    """What ``tarfile`` reads the archive through: headers alone, and of one member not more than ``MAX_HEADER``."""

    mode = "rb"
    name = ""

    def __init__(self, part: FilePart) -> None:
        self._part = part
        self._position = 0
        self._left = MAX_HEADER

    def begin(self, position: int) -> None:
        """Go to the next member."""
        self._position, self._left = position, MAX_HEADER

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= self._left:
            raise FormatError(f"byte {self._position}: a header of {length} bytes, more than {MAX_HEADER}")
        self._left -= length
        data = self._part.read(self._position, length)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def _member(header: _Header, part: FilePart) -> Member:
    """The member of a header, checked but for where its data are not in the archive."""
    kind = _KINDS.get(header.type)
    if kind is None:
        raise UnsupportedFeature(f"a member of unknown type {header.type.decode('latin-1')!r}")
    uid, gid = header.uid, header.gid
    for number in (uid, gid):
        if not 0 <= number <= _MAX_ID:
            raise FormatError(f"{number} is no user or group")
    pax = header.pax_headers
    # Where both are there, the path is one for readers that know no sparse files.
    path = parse_path(raw(pax.get("GNU.sparse.name", header.name)))
    mtime = _nanoseconds(pax["mtime"]) if "mtime" in pax else _whole_seconds(int(header.mtime))
    member = Member(path, kind | (int(header.mode) & 0o7777), uid, gid, mtime)
    if pax and kind:
        member.attributes = attributes_of(pax)
        access = dict(member.attributes).get(b"system.posix_acl_access")
        if access is not None:
            # bsdtar's mode has the permissions of the group, the kernel's those of the mask.
            member.mode = member.mode & ~0o777 | Acl.parse(access).mode
    if kind == stat.S_IFREG:
        member.offset, member.size = header.offset_data, header.size
        if header.sparse is not None:
            member.pieces = _checked_pieces(header.sparse, header.size)
        stored = header.size if member.pieces is None else sum(length for _, length in member.pieces)
        if header.size < 0 or member.offset + stored > part.size:
            raise FormatError(f"cut short: {stored} bytes of data from byte {member.offset} on, of {part.size}")
    elif kind == stat.S_IFLNK:
        member.target = raw(header.linkname)
        if not member.target or b"\0" in member.target or len(member.target) > MAX_PATH:
            raise FormatError(f"a symbolic link to a path of {len(member.target)} bytes, or with a zero byte")
    elif not kind:
        try:
            member.link = parse_path(raw(header.linkname))
        except FormatError as error:
            raise error.at("a hard link to") from None
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = header.devmajor, header.devminor
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise FormatError(f"device {major}:{minor} is none of Linux")
        member.rdev = os.makedev(major, minor)
    return member


def parse_path(path: bytes) -> tuple[bytes, ...]:
    """The names of a path.

    Raises:
        FormatError: it is absolute, leads through ``..``, or is none.
    """
    if not path:
        raise FormatError("an empty name")
    if len(path) > MAX_PATH:
        raise FormatError(f"a path of {len(path)} bytes, more than {MAX_PATH}")
    if path.startswith(b"/"):
        raise FormatError("an absolute path")
    if b"\0" in path:
        raise FormatError("a zero byte in its path")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names:
        raise FormatError("a path through ..")
    return names


def _checked_pieces(sparse: Any, size: int) -> Pieces:
    pieces = tuple((start, length) for start, length in sparse if length)
    end = 0
    for start, length in pieces:
        if start < end or length < 0:
            raise FormatError("a sparse file whose pieces are not in order")
        end = start + length
    if end > size:
        raise FormatError(f"a sparse file of {size} bytes with data up to byte {end}")
    return pieces


def _nanoseconds(text: str) -> int:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise FormatError(f"{text[:40]!r} is no time")
    time = int(match[2]) * 1_000_000_000 + int((match[3] or "")[:9].ljust(9, "0"))
    return -time if match[1] else time


def _whole_seconds(seconds: int) -> int:
    if abs(seconds) >= _MAX_SECONDS:
        raise FormatError(f"{seconds} is no time")
    return seconds * 1_000_000_000


def _shown(header: _Header) -> str:
    return header.name[:MAX_PATH] or "a member without a name"

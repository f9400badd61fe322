"""A tree of an image as a tar archive: pax (POSIX.1-2001), written as it is read, the same bytes for the same image.

Extended attributes are ``SCHILY.xattr.NAME`` records, as GNU tar, bsdtar and container tools read them; ACLs also
``SCHILY.acl.*``, since GNU tar takes them from nowhere else.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.acl import acl_to_text
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.tree.image_file import CHUNK
from mystfuse.tree.image_tree import Child, ImageTree, check_first_visit

BLOCK = 512
RECORD = 20 * BLOCK
"""Bytes that the length of an archive is a multiple of."""
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


async def write_tar(
    tree: ImageTree,
    path: str | bytes,
    write: Callable[[bytearray], Awaitable[None]],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Write an archive of a file, or of a directory and all below it; names in it are relative to ``path``.

    Args:
        path: a symbolic link is put into the archive itself.
        write: takes the archive, piece by piece.
        advance: called with the number of bytes of file data written since the last call.

    Returns:
        The kinds of files that an archive lacks, and how many: ``socket``.

    Raises:
        OSError: as ``ImageTree.stat``.
        CorruptFilesystem: also when a directory has a name twice or two names itself, or files have more blocks than
            the file system.
        IntegrityError, ImageReadError
    """
    archive = _Archive(tree, write, advance)
    inode = await tree.resolve(path, follow_symlinks=False)
    await archive.add_tree(inode, os.path.basename(os.fsencode(path).rstrip(b"/")))
    await archive.finish()
    return dict(archive.omitted)


class _Archive:
    def __init__(
        self, tree: ImageTree, write: Callable[[bytearray], Awaitable[None]], advance: Callable[[int], None]
    ) -> None:
        self.omitted: Counter[str] = Counter()
        self._tree = tree
        self._write_out = write
        self._advance = advance
        self._written = 0
        self._waiting = bytearray()
        """Output to be written together with more: headers and small files are many."""
        self._names: dict[int, bytes] = {}
        """The first name of each inode that has several."""
        self._blocks_left = tree.volume.superblock.s_blocks_count

    async def add_tree(self, inode: Inode, name: bytes) -> None:
        """Add an inode, and all below it if it is a directory, which is ``./`` then."""
        if not inode.is_directory:
            await self._add(name, inode)
            return
        seen: set[int] = set()
        await self._add(b"./", inode)
        pending = [(b"./", await self._children(inode.ino, seen))]
        while pending:
            directory, children = pending[-1]
            child = next(children, None)
            if child is None:
                pending.pop()
                continue
            path = directory + child.name
            try:
                inode = child.inode
                if inode.is_directory:
                    path += b"/"
                    pending.append((path, await self._children(inode.ino, seen)))
                await self._add(path, inode)
            except MystfuseError as error:
                raise error.at(os.fsdecode(path)) from error

    async def finish(self) -> None:
        """End the archive."""
        await self._write(bytes(2 * BLOCK))
        await self._write(bytes(-(self._written + len(self._waiting)) % RECORD))
        await self._flush()

    async def _children(self, ino: int, seen: set[int]) -> Iterator[Child]:
        """The names in a directory, sorted."""
        check_first_visit(ino, seen)
        children = sorted([child async for child in self._tree.children(ino)], key=lambda child: child.name)
        for one, other in pairwise(children):
            if one.name == other.name:
                raise CorruptFilesystem(f"directory inode {ino} has {one.name!r} twice")
        return iter(children)

    async def _add(self, name: bytes, inode: Inode) -> None:
        """Add one inode."""
        await trio.lowlevel.checkpoint()
        kind = _TYPES.get(stat.S_IFMT(inode.i_mode))
        if kind is None:
            self.omitted["socket"] += 1
            return
        first_name = self._names.get(inode.ino)
        if first_name is not None:
            await self._write(_member(name, inode, _LINK, first_name, {}))
            return
        if inode.i_links_count > 1 and not inode.is_directory:
            self._names[inode.ino] = name
        if inode.is_regular:
            await self._count_blocks(inode)
        target = await self._tree.volume.target(inode.ino) if inode.is_symlink else b""
        await self._write(_member(name, inode, kind, target, await self._tree.volume.xattrs(inode.ino)))
        if inode.is_regular:
            for offset in range(0, inode.size, CHUNK):
                data = await self._tree.volume.read(inode.ino, offset, CHUNK)
                await trio.lowlevel.checkpoint()
                await self._write(data)
                self._advance(len(data))
            await self._write(bytes(-inode.size % BLOCK))

    async def _count_blocks(self, inode: Inode) -> None:
        """Check that the files do not claim more data than the image has: a few blocks in a circle could claim to be
        terabytes. Holes may have any length."""
        block_size = self._tree.volume.superblock.block_size
        async for _, length in self._tree.open_inode(inode, b"").data_ranges():
            self._blocks_left -= -(-length // block_size)
            if self._blocks_left < 0:
                raise CorruptFilesystem(f"inode {inode.ino}: the files have more blocks than the file system")

    async def _write(self, data: bytes | memoryview) -> None:
        self._waiting += data
        if len(self._waiting) >= CHUNK:
            await self._flush()

    async def _flush(self) -> None:
        self._written += len(self._waiting)
        waiting, self._waiting = self._waiting, bytearray()
        await self._write_out(waiting)


def _member(name: bytes, inode: Inode, kind: bytes, target: bytes, xattrs: dict[bytes, bytes]) -> bytes:
    """The headers of one member; a pax header in front has the values that do not fit the plain one."""
    size = inode.size if kind == _TYPES[stat.S_IFREG] else 0
    seconds, nanoseconds = divmod(inode.mtime_ns, 10**9)
    records: dict[bytes, bytes] = {}
    for keyword, text in ((b"path", name), (b"linkpath", target)):
        if len(text) > _MAX_NAME or not text.isascii():
            records[keyword] = text
    for keyword, number, digits in ((b"uid", inode.uid, 7), (b"gid", inode.gid, 7), (b"size", size, 11)):
        if number >= 8**digits:
            records[keyword] = b"%d" % number
    if nanoseconds or not 0 <= seconds < 8**11:
        records[b"mtime"] = _decimal(inode.mtime_ns)
    for attribute, value in sorted(xattrs.items()):
        # As GNU tar writes what would end the keyword.
        records[b"SCHILY.xattr." + attribute.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
        if attribute in _ACLS:
            records[_ACLS[attribute]] = acl_to_text(value).encode("ascii")
    header = _header(
        name, stat.S_IMODE(inode.i_mode), inode.uid, inode.gid, size, max(seconds, 0), kind, target, inode.rdev
    )
    if not records:
        return header
    body = b"".join(_record(keyword, value) for keyword, value in records.items())
    extended = b"./PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2]
    return _header(extended, 0o644, 0, 0, len(body), 0, _PAX) + body + bytes(-len(body) % BLOCK) + header


def _header(
    name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, target: bytes = b"", rdev: int = 0
) -> bytes:
    """A plain header (ustar). Long values are cut, large ones are 0: then pax records have them."""
    header = bytearray(
        _HEADER.pack(
            name[:_MAX_NAME],
            _octal(mode, 7),
            _octal(uid, 7),
            _octal(gid, 7),
            _octal(size, 11),
            _octal(mtime, 11),
            b" " * 8,
            kind,
            target[:_MAX_NAME],
            b"ustar\0",
            b"00",
            b"",
            b"",
            _octal(os.major(rdev), 7),
            _octal(os.minor(rdev), 7),
            b"",
        )
    )
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


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

"""Operations on a file system, and what they run on: a mount, another mount, and a model made of dictionaries.

An operation is a small frozen dataclass whose ``apply`` does the same on anything that is a ``FileSystem``: on
``Mounted`` (a directory, by system calls) and on ``Model`` (in memory). What comes back is a plain value, so that
results compare with ``agree``. Sizes and offsets are symbolic (``At``), so that the same sequence meets the
indirection boundaries of every block size.

What is wanted to differ between mystfuse and the kernel's ext2 (docs/differences.md) is kept out, all of it, by not
being generated: RENAME_WHITEOUT, more than 32000 links, fallocate, SEEK_HOLE, O_TMPFILE, offsets near the largest
file size, and a umask (default ACLs would show it). What is not compared is at ``status`` and ``Mounted.tree``.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

COMPARE_BLOCKS = True
"""Whether ``st_blocks`` of files, links and nodes must be the same on both sides."""

NAME_MAX, MAX_LINKS_FOLLOWED = 255, 40
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
NODE = stat.S_IFMT
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"
CAPABILITY_VALUE = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
"""cap_net_bind_service, permitted: the kernel takes it away from a file that is written to or given away."""

libc = ctypes.CDLL(None, use_errno=True)


def spell(text: str) -> str:
    """A name with ``~N`` written out: N times the letter n. So long names print short."""
    return re.sub(r"~(\d+)", lambda match: "n" * int(match[1]), text)


def shorten(text: str) -> str:
    """What ``spell`` undoes."""
    return re.sub(r"n{15,}", lambda match: f"~{len(match[0])}", text)


# Results


@dataclass(frozen=True)
class Failed:
    """What an operation came to when it failed."""

    error: str


class Unknown:
    """The model's "I cannot tell", which agrees with everything."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()
OK: Final = "ok"

Status = tuple[object, ...]
Tree = dict[str, dict[str, object]]


def failure(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def agree(expected: object, found: object) -> bool:
    """Whether two results are the same, as far as the first one can tell."""
    if expected is UNKNOWN:
        return True
    if isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found):
        return all(agree(one, other) for one, other in zip(expected, found, strict=True))
    return expected == found


def differences(expected: Tree, found: Tree, since: float | None = None) -> list[str]:
    """How two trees differ. Times of change are the same, or both no older than ``since``: nobody set them."""
    lines = [f"{path!r}: missing" for path in expected.keys() - found.keys()]
    lines += [f"{path!r}: unexpected" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        for name, value in expected[path].items():
            other = found[path].get(name)
            if name == "mtime" and since is not None:
                assert isinstance(value, int) and isinstance(other, int)
                # The kernel's clock for files lags by up to a tick, and small inodes keep whole seconds only.
                if min(value, other) >= (since - 1.1) * 1e9:
                    continue
            if not agree(value, other):
                lines.append(f"{path!r}: {name} is {other!r} instead of {value!r}")
    return sorted(lines)


# Offsets and contents


@dataclass(frozen=True)
class At:
    """An offset or size: a number of blocks and bytes from one of the places where the block map changes its shape."""

    level: int = 0
    blocks: int = 0
    extra: int = 0

    def resolve(self, block_size: int) -> int:
        return max(0, boundaries(block_size)[self.level] + self.blocks * block_size + self.extra)


def boundaries(block_size: int) -> tuple[int, ...]:
    """The start; where the single, double (and its second leaf), and triple indirect blocks (and its second branch)
    begin; far out in the triple indirect block; and where sizes need ``large_file``."""
    per_block = block_size // 4
    single, double, triple = 12, 12 + per_block, 12 + per_block + per_block**2
    blocks = (0, single, double, double + per_block, triple, triple + per_block**2, triple + 4 * per_block**2 + 5)
    return (*(block * block_size for block in blocks), 1 << 31)


BEFORE, AFTER, SMALL = 4, 20, 1 << 18
"""Blocks around each boundary in which ``At`` and a write from it stay; the size up to which a file is read whole."""


def windows(size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file of ``size`` bytes in which operations can have left data: offset and length, in order."""
    if size <= SMALL:
        yield 0, size
        return
    starts = sorted((*boundaries(block_size), size))
    end = 0
    for start in starts:
        first, last = max(end, start - BEFORE * block_size), min(size, start + AFTER * block_size)
        if first < last:
            yield first, last - first
            end = last


def pattern(fill: int, length: int) -> bytes:
    """Data in which every position is recognisable."""
    return hashlib.shake_128(bytes([fill])).digest(length)


CHUNK = 4096


@dataclass
class Content:
    """The bytes of a file, mostly holes."""

    size: int = 0
    chunks: defaultdict[int, bytearray] = field(default_factory=lambda: defaultdict(lambda: bytearray(CHUNK)))

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts = []
        while offset < end:
            number, start = divmod(offset, CHUNK)
            count = min(CHUNK - start, end - offset)
            parts.append(self.chunks[number][start : start + count] if number in self.chunks else bytes(count))
            offset += count
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        self.size = max(self.size, offset + len(data) if data else 0)
        while data:
            number, start = divmod(offset, CHUNK)
            piece, data = data[: CHUNK - start], data[CHUNK - start :]
            self.chunks[number][start : start + len(piece)] = piece
            offset += len(piece)

    def truncate(self, size: int) -> None:
        for number in [number for number in self.chunks if number * CHUNK + CHUNK > size]:
            kept = max(0, size - number * CHUNK)
            if kept:
                self.chunks[number][kept:] = bytes(CHUNK - kept)
            else:
                del self.chunks[number]
        self.size = size


# What operations run on


class FileSystem(Protocol):
    """The system calls that operations are made of, on paths below one directory."""

    block_size: int
    slots: dict[int, int]
    """Open files that operations know by number."""

    def open(self, path: str, flags: int, mode: int = 0) -> int: ...
    def close(self, handle: int) -> None: ...
    def pread(self, handle: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, handle: int, data: bytes, offset: int) -> int: ...
    def ftruncate(self, handle: int, size: int) -> None: ...
    def fstat(self, handle: int) -> Status: ...
    def fchmod(self, handle: int, mode: int) -> None: ...
    def fsync(self, handle: int) -> None: ...
    def lstat(self, path: str) -> Status: ...
    def listdir(self, path: str) -> list[str]: ...
    def readlink(self, path: str) -> str: ...
    def mkdir(self, path: str, mode: int) -> None: ...
    def mknod(self, path: str, mode: int, device: int) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def link(self, source: str, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def rename(self, source: str, target: str, flags: int) -> None: ...
    def truncate(self, path: str, size: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None: ...
    def utime(self, path: str, nanoseconds: int, follow: bool) -> None: ...
    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None: ...
    def getxattr(self, path: str, name: str, follow: bool) -> object: ...
    def removexattr(self, path: str, name: str, follow: bool) -> None: ...
    def listxattr(self, path: str, follow: bool) -> object: ...


class NotAFile(Exception):
    """Something that is neither a file nor a directory was opened; what can be done with it is the kernel's affair."""


class CannotTell(Exception):
    """The model does not know what would happen, but knows that it changes nothing."""


def status(found: os.stat_result) -> Status:
    """What of a status is compared: type and mode, owner, group, links, size, blocks, device. Not the inode number, nor
    any time (see ``differences``), nor size and blocks of a directory, which depend on how it is indexed."""
    directory = stat.S_ISDIR(found.st_mode)
    device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    return (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        0 if directory else found.st_size,
        found.st_blocks if COMPARE_BLOCKS and not directory else UNKNOWN,
        found.st_rdev if device else 0,
    )


@dataclass
class Mounted:
    """A directory in a mounted file system. Files are opened without waiting, as FIFOs would make us."""

    root: str
    block_size: int
    slots: dict[int, int] = field(default_factory=dict)

    def _at(self, path: str) -> str:
        return os.path.join(self.root, spell(path))

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        handle = os.open(self._at(path), flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        if NODE(os.fstat(handle).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            os.close(handle)
            raise NotAFile
        return handle

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        return os.pread(handle, length, offset)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fstat(self, handle: int) -> Status:
        return status(os.fstat(handle))

    def fchmod(self, handle: int, mode: int) -> None:
        os.fchmod(handle, mode)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def lstat(self, path: str) -> Status:
        return status(os.lstat(self._at(path)))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(self._at(path), mode, device)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def link(self, source: str, path: str) -> None:
        os.link(self._at(source), self._at(path), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def rename(self, source: str, target: str, flags: int) -> None:
        here, names = -100, (os.fsencode(self._at(source)), os.fsencode(self._at(target)))
        if libc.renameat2(here, names[0], here, names[1], flags):
            raise failure(ctypes.get_errno())

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=follow)

    def utime(self, path: str, nanoseconds: int, follow: bool) -> None:
        os.utime(self._at(path), ns=(nanoseconds, nanoseconds), follow_symlinks=follow)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self._at(path), spell(name), value, flags, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> object:
        return os.getxattr(self._at(path), spell(name), follow_symlinks=follow)

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        os.removexattr(self._at(path), spell(name), follow_symlinks=follow)

    def listxattr(self, path: str, follow: bool) -> object:
        return sorted(os.listxattr(self._at(path), follow_symlinks=follow))

    def tree(self) -> Tree:
        """Everything below the root, and the root: path -> field -> value."""
        found: Tree = {}
        by_inode: dict[int, str] = {}
        pending = [""]
        while pending:
            path = pending.pop()
            entry = self._describe(path, by_inode)
            found[path] = entry
            status_of = entry["status"]
            assert isinstance(status_of, tuple)
            if stat.S_ISDIR(status_of[0]):
                with os.scandir(self._at(path)) as listing:
                    entries = sorted(listing, key=lambda one: one.name)
                entry["names"] = [(one.name, self._listed_type(one)) for one in entries]
                pending += reversed([os.path.join(path, one.name) for one in entries])
        return found

    @staticmethod
    def _listed_type(entry: os.DirEntry[str]) -> tuple[bool, bool, bool]:
        """The type that the listing itself names, as far as Python says."""
        return (
            entry.is_dir(follow_symlinks=False),
            entry.is_file(follow_symlinks=False),
            entry.is_symlink(),
        )

    def _describe(self, path: str, by_inode: dict[int, str]) -> dict[str, object]:
        full = self._at(path)
        found = os.lstat(full)
        entry: dict[str, object] = {
            "status": status(found),
            "mtime": found.st_mtime_ns,
            # Not the inode number, but who shares it.
            "same as": by_inode.setdefault(found.st_ino, path),
            "xattrs": {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in sorted(os.listxattr(full, follow_symlinks=False))
            },
        }
        if stat.S_ISLNK(found.st_mode):
            entry["target"] = os.readlink(full)
        elif stat.S_ISREG(found.st_mode):
            digest = hashlib.sha256()
            with open(full, "rb", buffering=0) as file:
                for offset, length in windows(found.st_size, self.block_size):
                    data = os.pread(file.fileno(), length, offset)
                    assert len(data) == length, f"{path!r}: {len(data)} bytes at {offset} instead of {length}"
                    digest.update(data)
            entry["sha256"] = digest.hexdigest()
        return entry


# The model


@dataclass(eq=False)
class Node:
    """An inode. What the model has lost sight of (a mode changed by an ACL) is UNKNOWN."""

    kind: int
    permissions: int | Unknown
    uid: int = 0
    gid: int | Unknown = 0
    links: int = 1
    content: Content = field(default_factory=Content)
    target: str = ""
    device: int = 0
    entries: dict[str, Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    default_acl: bool = False

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG

    def children(self) -> Iterator[Node]:
        """Every node below this directory."""
        for child in self.entries.values():
            yield child
            yield from child.children()


@dataclass
class OpenNode:
    """An open file of the model."""

    node: Node
    flags: int

    @property
    def access(self) -> int:
        return self.flags & os.O_ACCMODE


class Model:
    """A file system made of dictionaries: names, types, modes, owners, links, sizes, contents, and extended attributes
    but for ACLs and capabilities, all as root with no umask sees them.

    What depends on the layout on disk (does an attribute fit?), on ACLs, or on settings of the kernel
    (fs.protected_*: EACCES, even for root), is taken from ``observed``, what the kernel's ext2 answered.
    """

    def __init__(self, block_size: int, root: Node) -> None:
        self.block_size = block_size
        self.root = root
        self.slots: dict[int, int] = {}
        self.observed: object = OK
        self._handles: dict[int, OpenNode] = {}
        self._next_handle = 0

    @classmethod
    def load(cls, side: Mounted) -> Model:
        """The model of what a directory holds."""
        shared: dict[int, Node] = {}

        def read(path: Path) -> Node:
            found = path.lstat()
            node = shared.get(found.st_ino)
            if node is not None:
                return node
            node = Node(NODE(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_nlink)
            shared[found.st_ino] = node
            for name in os.listxattr(path, follow_symlinks=False):
                if name == DEFAULT_ACL:
                    node.default_acl = True
                elif _is_modelled(name):
                    node.xattrs[name] = os.getxattr(path, name, follow_symlinks=False)
            if node.is_directory:
                node.entries = {child.name: read(child) for child in path.iterdir()}
            elif node.is_file:
                data = path.read_bytes()
                for offset in range(0, len(data), CHUNK):
                    if piece := data[offset : offset + CHUNK].rstrip(b"\0"):
                        node.content.write(offset, piece)
                node.content.size = len(data)
            elif node.kind == stat.S_IFLNK:
                node.target = os.readlink(path)
            else:
                node.device = found.st_rdev
            return node

        return cls(side.block_size, read(Path(side.root)))

    # Paths

    def _walk(self, path: str, follow: bool) -> tuple[Node, str, Node | None]:
        """The directory that a path ends in, the last name, and what it names."""
        pending = [part for part in spell(path).split("/") if part not in ("", ".")]
        node, followed = self.root, 0
        if not pending:
            return node, "", node
        while True:
            name = pending.pop(0)
            if not node.is_directory:
                raise failure(errno.ENOTDIR)
            if len(os.fsencode(name)) > NAME_MAX:
                raise failure(errno.ENAMETOOLONG)
            child = node.entries.get(name)
            if child is not None and child.kind == stat.S_IFLNK and (pending or follow):
                followed += 1
                if followed > MAX_LINKS_FOLLOWED:
                    raise failure(errno.ELOOP)
                pending = child.target.split("/") + pending
                continue
            if not pending:
                return node, name, child
            if child is None:
                raise failure(errno.ENOENT)
            node = child

    def _find(self, path: str, follow: bool = True) -> Node:
        node = self._walk(path, follow)[2]
        if node is None:
            raise failure(errno.ENOENT)
        return node

    def _new(self, path: str, kind: int, mode: int) -> Node:
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        return self._add(parent, name, kind, mode)

    def _add(self, parent: Node, name: str, kind: int, mode: int) -> Node:
        """A new node in a directory, with the owner and mode that its ways of inheritance give."""
        if parent.default_acl and self.observed == Failed("ENOSPC"):
            # The ACLs to be inherited do not fit the place for attributes.
            self._adopt()
        node = Node(kind, mode)
        if isinstance(parent.permissions, Unknown):
            node.gid = UNKNOWN
        elif parent.permissions & stat.S_ISGID:
            node.gid = parent.gid
        if kind == stat.S_IFDIR:
            node.links = 2
            parent.links += 1
            if isinstance(parent.permissions, Unknown):
                node.permissions = UNKNOWN
            else:
                node.permissions = mode | parent.permissions & stat.S_ISGID
        if parent.default_acl and kind != stat.S_IFLNK:
            node.permissions = UNKNOWN
            node.default_acl = kind == stat.S_IFDIR
        parent.entries[name] = node
        return node

    def _adopt(self) -> None:
        """Fail as the kernel did."""
        if isinstance(self.observed, Failed):
            raise failure(getattr(errno, self.observed.error))

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path and its node, directories first, in order of their names."""
        pending = [("", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            pending += [(os.path.join(path, name), node.entries[name]) for name in sorted(node.entries, reverse=True)]

    # Open files

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        parent, name, node = self._walk(path, follow=not (exclusive or flags & os.O_NOFOLLOW))
        if node is None:
            if not flags & os.O_CREAT:
                raise failure(errno.ENOENT)
            node = self._add(parent, name, stat.S_IFREG, mode)
        elif exclusive:
            raise failure(errno.EEXIST)
        elif node.kind == stat.S_IFLNK:
            raise failure(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        elif node.is_directory:
            if flags & (os.O_CREAT | os.O_TRUNC | os.O_ACCMODE):
                raise failure(errno.EISDIR)
        elif flags & os.O_DIRECTORY:
            raise failure(errno.ENOTDIR)
        elif not node.is_file:
            raise CannotTell
        if flags & os.O_TRUNC:
            node.content.truncate(0)
        self._next_handle += 1
        self._handles[self._next_handle] = OpenNode(node, flags)
        return self._next_handle

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        file = self._handles[handle]
        if file.access == os.O_WRONLY:
            raise failure(errno.EBADF)
        if file.node.is_directory:
            raise failure(errno.EISDIR)
        return file.node.content.read(offset, length)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        file = self._handles[handle]
        if file.access == os.O_RDONLY:
            raise failure(errno.EBADF)
        content = file.node.content
        content.write(content.size if file.flags & os.O_APPEND else offset, data)
        return len(data)

    def ftruncate(self, handle: int, size: int) -> None:
        file = self._handles[handle]
        if file.access == os.O_RDONLY:
            raise failure(errno.EINVAL)
        file.node.content.truncate(size)

    def fstat(self, handle: int) -> Status:
        return self._status(self._handles[handle].node)

    def fchmod(self, handle: int, mode: int) -> None:
        self._handles[handle].node.permissions = mode

    def fsync(self, handle: int) -> None:
        pass

    def has_unlinked_open_files(self) -> bool:
        return any(file.node.links == 0 for file in self._handles.values())

    # Names

    def lstat(self, path: str) -> Status:
        return self._status(self._find(path, follow=False))

    @staticmethod
    def _status(node: Node) -> Status:
        mode = UNKNOWN if isinstance(node.permissions, Unknown) else node.kind | node.permissions
        size = len(os.fsencode(node.target)) if node.kind == stat.S_IFLNK else node.content.size
        return mode, node.uid, node.gid, node.links, size, UNKNOWN, node.device

    def listdir(self, path: str) -> list[str]:
        node = self._find(path)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        return sorted(node.entries)

    def readlink(self, path: str) -> str:
        node = self._find(path, follow=False)
        if node.kind != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        return node.target

    def mkdir(self, path: str, mode: int) -> None:
        self._new(path, stat.S_IFDIR, mode & 0o1777)

    def mknod(self, path: str, mode: int, device: int) -> None:
        node = self._new(path, NODE(mode), stat.S_IMODE(mode))
        if node.kind in (stat.S_IFCHR, stat.S_IFBLK):
            node.device = device

    def symlink(self, target: str, path: str) -> None:
        length = len(os.fsencode(target))
        if length >= 4096:
            raise failure(errno.ENAMETOOLONG)
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        if length >= self.block_size:
            raise failure(errno.ENAMETOOLONG)
        self._add(parent, name, stat.S_IFLNK, 0o777).target = target

    def link(self, source: str, path: str) -> None:
        node = self._find(source, follow=False)
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        if node.is_directory:
            raise failure(errno.EPERM)
        node.links += 1
        parent.entries[name] = node

    def unlink(self, path: str) -> None:
        parent, name, node = self._walk(path, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        if node.is_directory:
            raise failure(errno.EISDIR)
        self._remove(parent, name)

    def rmdir(self, path: str) -> None:
        parent, name, node = self._walk(path, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        if node.entries:
            raise failure(errno.ENOTEMPTY)
        self._remove(parent, name)

    @staticmethod
    def _remove(parent: Node, name: str) -> None:
        node = parent.entries.pop(name)
        if node.is_directory:
            node.links = 0
            parent.links -= 1
        else:
            node.links -= 1

    def rename(self, source: str, target: str, flags: int) -> None:
        if flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise failure(errno.EINVAL)
        # Both directories are found before either last name is looked at.
        for path in (source, target):
            if "/" in path and not self._find(os.path.dirname(path)).is_directory:
                raise failure(errno.ENOTDIR)
        old_parent, old_name, node = self._walk(source, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        new_parent, new_name, existing = self._walk(target, follow=False)
        if existing is None and flags & RENAME_EXCHANGE:
            raise failure(errno.ENOENT)
        if existing is not None and flags & RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if new_parent is node or new_parent in node.children():
            raise failure(errno.EINVAL)
        if existing is not None and (old_parent is existing or old_parent in existing.children()):
            raise failure(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        if existing is node:
            return
        if existing is not None and flags & RENAME_EXCHANGE:
            old_parent.entries[old_name], new_parent.entries[new_name] = existing, node
            old_parent.links += existing.is_directory - node.is_directory
            new_parent.links += node.is_directory - existing.is_directory
            return
        if existing is not None:
            if node.is_directory and not existing.is_directory:
                raise failure(errno.ENOTDIR)
            if existing.is_directory and not node.is_directory:
                raise failure(errno.EISDIR)
            if existing.entries:
                raise failure(errno.ENOTEMPTY)
            self._remove(new_parent, new_name)
        del old_parent.entries[old_name]
        new_parent.entries[new_name] = node
        old_parent.links -= node.is_directory
        new_parent.links += node.is_directory

    # Attributes

    def truncate(self, path: str, size: int) -> None:
        node = self._find(path)
        if node.is_directory:
            raise failure(errno.EISDIR)
        if not node.is_file:
            raise failure(errno.EINVAL)
        node.content.truncate(size)

    def chmod(self, path: str, mode: int) -> None:
        self._find(path).permissions = mode

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        node = self._find(path, follow)
        if uid != -1:
            node.uid = uid
        if gid != -1:
            node.gid = gid
        if not node.is_directory and not isinstance(node.permissions, Unknown):
            node.permissions &= ~stat.S_ISUID
            if node.permissions & stat.S_IXGRP:
                node.permissions &= ~stat.S_ISGID

    def utime(self, path: str, nanoseconds: int, follow: bool) -> None:
        self._find(path, follow)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            self._adopt()
            if name == ACCESS_ACL:
                node.permissions = UNKNOWN
            elif name == DEFAULT_ACL:
                node.default_acl = True
            return
        if not _may_have(node, name):
            raise failure(errno.EPERM)
        if flags == os.XATTR_CREATE and name in node.xattrs:
            raise failure(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            raise failure(errno.ENODATA)
        if self.observed == Failed("ENOSPC"):
            raise failure(errno.ENOSPC)
        node.xattrs[name] = value

    def getxattr(self, path: str, name: str, follow: bool) -> object:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            raise CannotTell
        if not _may_have(node, name) or name not in node.xattrs:
            raise failure(errno.ENODATA)
        return node.xattrs[name]

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            self._adopt()
            return
        if not _may_have(node, name):
            raise failure(errno.EPERM)
        if name not in node.xattrs:
            raise failure(errno.ENODATA)
        del node.xattrs[name]

    def listxattr(self, path: str, follow: bool) -> object:
        self._find(path, follow)
        return UNKNOWN

    def tree(self) -> Tree:
        """Everything that ``Mounted.tree`` shows and the model knows."""
        found: Tree = {}
        first: dict[int, str] = {}
        for path, node in self.walk():
            entry = found[path] = {"status": self._status(node), "same as": first.setdefault(id(node), path)}
            if node.is_directory:
                entry["names"] = [(name, _listed_type(node.entries[name])) for name in sorted(node.entries)]
            elif node.is_file:
                digest = hashlib.sha256()
                for offset, length in windows(node.content.size, self.block_size):
                    digest.update(node.content.read(offset, length))
                entry["sha256"] = digest.hexdigest()
            elif node.kind == stat.S_IFLNK:
                entry["target"] = node.target
            entry["xattrs"] = Modelled(node.xattrs)
        return found


class Modelled(dict[str, bytes]):
    """The attributes that the model knows; equal to any that are the same but for those it does not."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and dict(self) == {name: other[name] for name in other if _is_modelled(name)}

    __hash__ = None


def _listed_type(node: Node) -> tuple[bool, bool, bool]:
    return node.is_directory, node.is_file, node.kind == stat.S_IFLNK


def _attribute_name(name: str) -> str:
    """The name of an attribute, checked as the kernel does before it looks for the file."""
    name = spell(name)
    if len(name) > NAME_MAX:
        raise failure(errno.ERANGE)
    return name


def _is_modelled(name: str) -> bool:
    return not name.startswith("system.") and name != CAPABILITY


def _may_have(node: Node, name: str) -> bool:
    """Users' attributes are for files and directories."""
    return node.is_file or node.is_directory or not name.startswith("user.")


# Operations


@dataclass(frozen=True)
class Operation:
    """Something to do. ``run`` does it with any file system and may raise OSError; ``apply`` never raises."""

    def apply(self, system: FileSystem) -> object:
        """Do it, and say what came of it: a value, or the name of the error."""
        try:
            return self.run(system)
        except OSError as error:
            assert error.errno is not None
            return Failed(errno.errorcode[error.errno])
        except NotAFile:
            return "not a file"
        except CannotTell:
            return UNKNOWN

    def run(self, system: FileSystem) -> object:
        raise NotImplementedError

    def paths(self) -> list[str]:
        """What it touches, and the directories around."""
        fields: dict[str, Any] = vars(self)
        named = [fields[name] for name in ("path", "source", "target", "directory") if name in fields]
        return list(dict.fromkeys([*named, *(os.path.dirname(path) for path in named)]))


@dataclass(frozen=True)
class Create(Operation):
    path: str
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        system.close(system.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, self.mode))
        return OK


@dataclass(frozen=True)
class Open(Operation):
    """Open with whatever flags, and close."""

    path: str
    flags: int
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        handle = system.open(self.path, self.flags, self.mode)
        try:
            return system.fstat(handle)
        finally:
            system.close(handle)


@dataclass(frozen=True)
class Mkdir(Operation):
    path: str
    mode: int = 0o755

    def run(self, system: FileSystem) -> object:
        system.mkdir(self.path, self.mode)
        return OK


@dataclass(frozen=True)
class Mknod(Operation):
    path: str
    mode: int
    major: int = 0
    minor: int = 0

    def run(self, system: FileSystem) -> object:
        system.mknod(self.path, self.mode, os.makedev(self.major, self.minor))
        return OK


@dataclass(frozen=True)
class Symlink(Operation):
    """A symbolic link to ``text``, ``times`` over."""

    path: str
    text: str
    times: int = 1

    def run(self, system: FileSystem) -> object:
        system.symlink(self.text * self.times, self.path)
        return system.readlink(self.path)


@dataclass(frozen=True)
class Readlink(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        return system.readlink(self.path)


@dataclass(frozen=True)
class Link(Operation):
    source: str
    path: str

    def run(self, system: FileSystem) -> object:
        system.link(self.source, self.path)
        return OK


@dataclass(frozen=True)
class Unlink(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        system.unlink(self.path)
        return OK


@dataclass(frozen=True)
class Rmdir(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        system.rmdir(self.path)
        return OK


@dataclass(frozen=True)
class Rename(Operation):
    source: str
    target: str
    flags: int = 0

    def run(self, system: FileSystem) -> object:
        system.rename(self.source, self.target, self.flags)
        return OK


@dataclass(frozen=True)
class List(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        return system.listdir(self.path)


@dataclass(frozen=True)
class Write(Operation):
    path: str
    at: At
    length: At
    fill: int = 0
    flags: int = 0
    """O_CREAT, O_TRUNC and O_APPEND, besides O_WRONLY."""

    def run(self, system: FileSystem) -> object:
        handle = system.open(self.path, os.O_WRONLY | self.flags, 0o644)
        try:
            data = pattern(self.fill, self.length.resolve(system.block_size))
            return system.pwrite(handle, data, self.at.resolve(system.block_size))
        finally:
            system.close(handle)


@dataclass(frozen=True)
class Read(Operation):
    path: str
    at: At
    length: At

    def run(self, system: FileSystem) -> object:
        handle = system.open(self.path, os.O_RDONLY)
        try:
            return system.pread(handle, self.length.resolve(system.block_size), self.at.resolve(system.block_size))
        finally:
            system.close(handle)


@dataclass(frozen=True)
class Truncate(Operation):
    path: str
    size: At

    def run(self, system: FileSystem) -> object:
        system.truncate(self.path, self.size.resolve(system.block_size))
        return OK


@dataclass(frozen=True)
class Chmod(Operation):
    path: str
    mode: int

    def run(self, system: FileSystem) -> object:
        system.chmod(self.path, self.mode)
        return OK


@dataclass(frozen=True)
class Chown(Operation):
    path: str
    uid: int
    gid: int
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.chown(self.path, self.uid, self.gid, self.follow)
        return OK


@dataclass(frozen=True)
class Utime(Operation):
    path: str
    nanoseconds: int
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.utime(self.path, self.nanoseconds, self.follow)
        return OK


@dataclass(frozen=True)
class SetXattr(Operation):
    path: str
    name: str
    size: int = 0
    fill: int = 0
    flags: int = 0
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        value = CAPABILITY_VALUE if self.name == CAPABILITY else pattern(self.fill, self.size)
        system.setxattr(self.path, self.name, value, self.flags, self.follow)
        return OK


@dataclass(frozen=True)
class GetXattr(Operation):
    path: str
    name: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        return system.getxattr(self.path, self.name, self.follow)


@dataclass(frozen=True)
class RemoveXattr(Operation):
    path: str
    name: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.removexattr(self.path, self.name, self.follow)
        return OK


@dataclass(frozen=True)
class ListXattr(Operation):
    path: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        return system.listxattr(self.path, self.follow)


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """An ACL as its extended attribute: tag, permissions and id of every entry."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER, NO_ID = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF
ACLS: Final = {
    "mode": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID)),
    "user": acl((OWNER, 7, NO_ID), (USER, 5, 1234), (GROUP, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)),
    "both": acl(
        (OWNER, 7, NO_ID), (USER, 7, 0), (USER, 0, 70_000), (GROUP, 2, NO_ID), (NAMED_GROUP, 1, 5), (MASK, 6, NO_ID),
        (OTHER, 4, NO_ID),
    ),
    "many": acl(
        (OWNER, 7, NO_ID), *((USER, 4, number) for number in range(60)), (GROUP, 5, NO_ID), (MASK, 7, NO_ID),
        (OTHER, 5, NO_ID),
    ),
    "too many": acl(
        (OWNER, 7, NO_ID), *((USER, 4, number) for number in range(500)), (GROUP, 5, NO_ID), (MASK, 7, NO_ID),
        (OTHER, 5, NO_ID),
    ),
    "none": acl(),
    "no mask": acl((OWNER, 7, NO_ID), (USER, 5, 1234), (GROUP, 5, NO_ID), (OTHER, 0, NO_ID)),
    "unsorted": acl((OTHER, 0, NO_ID), (OWNER, 7, NO_ID), (GROUP, 5, NO_ID)),
    "cut off": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID))[:-1],
    "version 3": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID), version=3),
}  # fmt: skip


@dataclass(frozen=True)
class SetAcl(Operation):
    path: str
    name: str
    acl: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.setxattr(self.path, self.name, ACLS[self.acl], 0, self.follow)
        return OK


def numbered_name(number: int, length: int) -> str:
    """One of the names with which directories are filled."""
    return f"{number:04}~{length - 4}"


def is_numbered(path: str) -> bool:
    """Whether a path ends in such a name."""
    return os.path.basename(path)[:4].isdigit()


@dataclass(frozen=True)
class Fill(Operation):
    """Make many names in a directory: it grows, and its index splits."""

    directory: str
    count: int
    length: int

    def run(self, system: FileSystem) -> object:
        results = []
        for number in range(self.count):
            path = os.path.join(self.directory, numbered_name(number, self.length))
            results.append(Mknod(path, stat.S_IFREG | 0o600).apply(system))
        return results


@dataclass(frozen=True)
class Drain(Operation):
    """Take names away from a directory that was filled: every ``step``-th."""

    directory: str
    count: int
    length: int
    step: int

    def run(self, system: FileSystem) -> object:
        results = []
        for number in range(0, self.count, self.step):
            results.append(Unlink(os.path.join(self.directory, numbered_name(number, self.length))).apply(system))
        return results


@dataclass(frozen=True)
class HandleOperation(Operation):
    """Something done with an open file; EBADF when there is none."""

    slot: int

    def run(self, system: FileSystem) -> object:
        if self.slot not in system.slots:
            raise failure(errno.EBADF)
        return self.use(system, system.slots[self.slot])

    def use(self, system: FileSystem, handle: int) -> object:
        raise NotImplementedError


@dataclass(frozen=True)
class OpenHandle(Operation):
    """Open a file and keep it; what was in the slot is closed."""

    slot: int
    path: str
    flags: int
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        if self.slot in system.slots:
            system.close(system.slots.pop(self.slot))
        system.slots[self.slot] = system.open(self.path, self.flags, self.mode)
        return OK


@dataclass(frozen=True)
class CloseHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        del system.slots[self.slot]
        system.close(handle)
        return OK


@dataclass(frozen=True)
class ReadHandle(HandleOperation):
    at: At
    length: At

    def use(self, system: FileSystem, handle: int) -> object:
        return system.pread(handle, self.length.resolve(system.block_size), self.at.resolve(system.block_size))


@dataclass(frozen=True)
class WriteHandle(HandleOperation):
    at: At
    length: At
    fill: int = 0

    def use(self, system: FileSystem, handle: int) -> object:
        data = pattern(self.fill, self.length.resolve(system.block_size))
        return system.pwrite(handle, data, self.at.resolve(system.block_size)), system.fstat(handle)


@dataclass(frozen=True)
class TruncateHandle(HandleOperation):
    size: At

    def use(self, system: FileSystem, handle: int) -> object:
        system.ftruncate(handle, self.size.resolve(system.block_size))
        return system.fstat(handle)


@dataclass(frozen=True)
class ChmodHandle(HandleOperation):
    mode: int

    def use(self, system: FileSystem, handle: int) -> object:
        system.fchmod(handle, self.mode)
        return system.fstat(handle)


@dataclass(frozen=True)
class StatHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        return system.fstat(handle)


@dataclass(frozen=True)
class SyncHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        system.fsync(handle)
        return OK


@dataclass(frozen=True)
class LookAt(Operation):
    """The status of a path, as every operation is followed by for the paths it names."""

    path: str

    def run(self, system: FileSystem) -> object:
        return system.lstat(self.path)

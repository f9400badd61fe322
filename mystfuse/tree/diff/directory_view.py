"""A directory on disk, or a mount's tree, as a view.

Files are reached from the directory's own descriptor, through no symbolic link (openat2(2)). Only directories and
regular files are ever opened: no FIFO waits for its other end. All of it happens in threads, as a mount may hang.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from mystfuse.devices.patient_threads import call_patiently
from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_NAME_LEN, PATH_MAX
from mystfuse.system.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from mystfuse.tree.diff.view import Node

T = TypeVar("T")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without waiting, if a FIFO has taken the place of a file.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_LISTED = 4 << 20
"""Bytes of attributes and link targets that a listing keeps; the others are read when they are asked for."""
_NO_ATTRIBUTES = frozenset({errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class FileNode(Node):
    """An inode on disk."""

    path: bytes = field(default=b"", compare=False)
    """From the view's directory on; empty for that itself."""
    listed_xattrs: Mapping[bytes, bytes] | None = field(default=None, compare=False, repr=False)
    listed_target: bytes | None = field(default=None, compare=False, repr=False)


class DirectoryView:
    """See ``View``. To be closed.

    Args:
        directory: may be a symbolic link itself.
        io_timeout: seconds that each answer of the file system may take.

    Raises:
        MystfuseError: the directory cannot be opened.
    """

    def __init__(self, directory: str | os.PathLike[str], io_timeout: float = math.inf) -> None:
        self.name = os.fspath(directory)
        self.io_timeout = io_timeout
        self.lineage: Hashable = None
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MystfuseError(f"{self.name}: {error.strerror}") from error
        self._open_path: bytes | None = None
        self._open_file = -1

    def close(self) -> None:
        """Close its descriptors."""
        self._forget_file()
        os.close(self._directory)

    async def root(self) -> FileNode:
        """Raises OSError."""
        return await self._in_thread(b"", self._root)

    async def children(self, node: Node) -> Mapping[bytes, FileNode]:
        """Raises OSError: it, or something in it, cannot be read; ESTALE: it has become another directory."""
        here = _of_disk(node)
        return await self._in_thread(here.path, partial(self._children, here))

    async def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """Raises OSError."""
        here = _of_disk(node)
        if here.listed_xattrs is not None:
            return here.listed_xattrs
        return await self._in_thread(here.path, partial(self._xattrs, here.path))

    async def target(self, node: Node) -> bytes:
        """Raises OSError."""
        here = _of_disk(node)
        if here.listed_target is not None:
            return here.listed_target
        return await self._in_thread(here.path, partial(self._target, here.path))

    async def read(self, node: Node, offset: int, length: int) -> bytes:
        """Raises OSError; ESTALE: another file has taken its place."""
        here = _of_disk(node)
        return await self._in_thread(here.path, partial(self.read_now, here, offset, length))

    async def data_ranges(self, node: Node) -> AsyncIterator[tuple[int, int]]:
        """Raises OSError as ``read``."""
        here = _of_disk(node)
        end = 0
        while end < here.size:
            found = await self._in_thread(here.path, partial(self._next_data, here, end))
            if found is None:
                return
            start, end = found
            yield start, end - start

    def read_now(self, node: Node, offset: int, length: int) -> bytes:
        """``read`` in the present thread; raises OSError."""
        here = _of_disk(node)
        parts: list[bytes] = []
        try:
            while length > 0 and (part := os.pread(self._file(here), length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        except OSError as error:
            raise self._naming(error, here.path) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _in_thread(self, path: bytes, work: Callable[[], T]) -> T:
        try:
            return await call_patiently(work, self.name, self.io_timeout)
        except OSError as error:
            raise self._naming(error, path) from error

    def _naming(self, error: OSError, path: bytes) -> OSError:
        """The same error, with the file's whole name; ``path`` if it names none."""
        if isinstance(error.filename, str):
            return error
        below = error.filename if error.filename is not None else path
        return OSError(error.errno, error.strerror, os.path.join(self.name, os.fsdecode(below)))

    def _root(self) -> FileNode:
        return _node(
            b"", os.fstat(self._directory), _read_xattrs(f"/proc/self/fd/{self._directory}", follows=True), None
        )

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        """A descriptor of a directory below."""
        descriptor = self._open(path or b".", _DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, path: bytes, flags: int) -> int:
        try:
            if len(path) >= PATH_MAX:
                return self._open_long(path, flags)
            return openat2(os.fsdecode(path), flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS, self._directory)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error

    def _open_long(self, path: bytes, flags: int) -> int:
        """Open a path that is too long for one system call, in parts."""
        names = path.split(b"/")
        descriptor = os.dup(self._directory)
        while names:
            count = min(len(names), PATH_MAX // (EXT2_NAME_LEN + 2))
            part, names = names[:count], names[count:]
            above = descriptor
            try:
                descriptor = openat2(
                    os.fsdecode(b"/".join(part)),
                    _DIRECTORY if names else flags,
                    RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS,
                    above,
                )
            finally:
                os.close(above)
        return descriptor

    def _children(self, node: FileNode) -> dict[bytes, FileNode]:
        with self._opened(node.path) as directory:
            status = os.fstat(directory)
            if (status.st_dev, status.st_ino) != node.key:
                raise OSError(errno.ESTALE, "it has become another directory", node.path)
            prefix = node.path + b"/" if node.path else b""
            children: dict[bytes, FileNode] = {}
            left = _MAX_LISTED
            for name in sorted(map(os.fsencode, os.listdir(directory))):
                try:
                    child = self._child(directory, name, prefix + name, left)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, prefix + name) from error
                if child.listed_xattrs:
                    left -= sum(len(key) + len(value) for key, value in child.listed_xattrs.items())
                left -= len(child.listed_target or b"")
                children[name] = child
            return children

    def _child(self, directory: int, name: bytes, path: bytes, room: int) -> FileNode:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if room <= 0:
            return _node(path, status, None, None)
        place = b"/proc/self/fd/%d/%s" % (directory, name)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None
        return _node(path, status, _read_xattrs(place, follows=False), target)

    def _xattrs(self, path: bytes) -> dict[bytes, bytes]:
        above, _, name = path.rpartition(b"/")
        with self._opened(above) as directory:
            return _read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name), follows=False)

    def _target(self, path: bytes) -> bytes:
        above, _, name = path.rpartition(b"/")
        with self._opened(above) as directory:
            return os.readlink(name, dir_fd=directory)

    def _next_data(self, node: FileNode, offset: int) -> tuple[int, int] | None:
        """The next data: where they begin and end; None for none."""
        descriptor = self._file(node)
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            # A file system that does not say.
            return (offset, node.size) if error.errno == errno.EINVAL else _raise(error)
        return start, os.lseek(descriptor, start, os.SEEK_HOLE)

    def _file(self, node: FileNode) -> int:
        """A descriptor of a regular file: that of the last one is kept."""
        if node.path != self._open_path:
            self._forget_file()
            descriptor = self._open(node.path, _FILE)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != node.key:
                os.close(descriptor)
                raise OSError(errno.ESTALE, "another file has taken its place", node.path)
            self._open_file, self._open_path = descriptor, node.path
        return self._open_file

    def _forget_file(self) -> None:
        if self._open_path is not None:
            self._open_path = None
            with suppress(OSError):
                os.close(self._open_file)


def _of_disk(node: Node) -> FileNode:
    assert isinstance(node, FileNode)
    return node


def _raise(error: OSError) -> tuple[int, int]:
    raise error


def _node(path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes] | None, target: bytes | None) -> FileNode:
    mode = status.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return FileNode(
        (status.st_dev, status.st_ino),
        mode,
        status.st_uid,
        status.st_gid,
        status.st_size if stat.S_ISREG(mode) else 0,
        status.st_rdev if is_device else 0,
        status.st_mtime_ns,
        status.st_nlink,
        path=path,
        listed_xattrs=xattrs,
        listed_target=target,
    )


def _read_xattrs(place: str | bytes, follows: bool) -> dict[bytes, bytes]:
    """The extended attributes of a file."""
    try:
        names = os.listxattr(place, follow_symlinks=follows)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise
    found: dict[bytes, bytes] = {}
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follows)
        except OSError as error:
            # Removed meanwhile.
            if error.errno != errno.ENODATA:
                raise
    return found

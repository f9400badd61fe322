"""The source of an image's bytes. Untrusted: it may lie, stall, shrink, or go away at any time."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from mystfuse.errors import FormatError, ImageReadError


class SourcePart(NamedTuple):
    """A part of an image that is a part of a file."""

    descriptor: int
    is_in_memory: bool
    """On a file system that knows no RWF_NOWAIT, and needs none."""
    start: int
    """Bytes from ``start`` to ``end`` of the image,"""
    end: int
    offset: int
    """which begin at this byte of the file."""


class Source(Protocol):
    """An object that returns byte ranges."""

    name: str
    """Its name in messages."""
    size: int
    """Its size in bytes when it was opened."""

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with the bytes at ``offset``; False if any of them needs waiting for storage. Never blocks.
        In any thread."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the range; it may take any time.

        Raises:
            ImageReadError: an I/O error, or the source has become shorter than that.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The same into ``buffer``, all of it.

        Raises:
            ImageReadError: as for ``read``.
        """
        ...

    def close(self) -> None: ...


_TMPFS_MAGIC, _RAMFS_MAGIC = 0x01021994, 0x858458F6
"""<linux/magic.h>"""


class FileSource:
    """An image in a regular file or on a block device, opened read-only and never mapped into memory (a mapped file
    that is truncated kills the process with SIGBUS)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open ``path``.

        Raises:
            ImageReadError: opening it failed.
            FormatError: it is neither a regular file nor a block device.
        """
        self.name = os.fspath(path)
        try:
            # O_NONBLOCK: a FIFO without a writer would otherwise hang the open.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise ImageReadError(f"{self.name}: {os.strerror(error.errno or 0)}") from error
        try:
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                kind = "a directory" if stat.S_ISDIR(mode) else "neither a regular file nor a block device"
                raise FormatError(f"{self.name}: {kind}, not an image")
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            self._flags = 0 if is_in_memory(self._fd) else os.RWF_NOWAIT
        except BaseException:
            os.close(self._fd)
            raise
        self._has_nowait = True

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if not self._has_nowait:
            return False
        try:
            count = os.preadv(self._fd, [buffer], offset, self._flags)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some file systems do not support RWF_NOWAIT. read() meets any other error again, and reports it.
            self._has_nowait = error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            return False
        return count == len(buffer)

    def read(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        missing = length
        while missing:
            try:
                # Python retries EINTR itself (PEP 475).
                part = os.pread(self._fd, missing, offset + length - missing)
            except OSError as error:
                raise self._failed(error, offset, length) from error
            if not part:
                raise self._truncated(offset, length, missing)
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        length = missing = len(buffer)
        while missing:
            try:
                count = os.preadv(self._fd, [buffer[length - missing :]], offset + length - missing)
            except OSError as error:
                raise self._failed(error, offset, length) from error
            if not count:
                raise self._truncated(offset, length, missing)
            missing -= count

    def _failed(self, error: OSError, offset: int, length: int) -> ImageReadError:
        return ImageReadError(f"{self.name}: reading {length} bytes at {offset}: {os.strerror(error.errno or 0)}")

    def _truncated(self, offset: int, length: int, missing: int) -> ImageReadError:
        return ImageReadError(
            f"{self.name}: truncated: it ends at byte {offset + length - missing}, before byte {offset + length}"
        )

    @property
    def parts(self) -> list[SourcePart]:
        """What it is made of, for a reader of its descriptors."""
        return [SourcePart(self._fd, not self._flags, 0, self.size, 0)]

    @property
    def descriptors(self) -> frozenset[int]:
        """The descriptor, which a daemon keeps over its fork."""
        return frozenset({self._fd})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def resolved_name(self) -> str:
        """The absolute path, for the mount table."""
        return str(Path(self.name).resolve())


def is_in_memory(descriptor: int) -> bool:
    """Whether a file is on a file system that keeps its files in memory: tmpfs knows no RWF_NOWAIT, and needs none.

    A block device is not, wherever its node is.

    Source: statfs(2).
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    # struct statfs has 120 bytes; f_type is a long, and comes first.
    status = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).fstatfs(descriptor, status):
        return False
    return ctypes.c_long.from_buffer(status).value & 0xFFFFFFFF in (_TMPFS_MAGIC, _RAMFS_MAGIC)

"""The source of an image's bytes. Untrusted: it may lie, stall, shrink, or go away at any time."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable
from enum import Enum
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
    map_descriptor: int = -1
    """Of an image elsewhere: the map of what of the file is there (``remote/chunk_map``); -1: all of it is."""
    fetcher: int = -1
    """Of an image elsewhere: a socket by which the rest can be asked for, by hints (``remote/protocol``)."""


class Source(Protocol):
    """An object that returns byte ranges."""

    name: str
    """Its name in messages."""

    @property
    def size(self) -> int:
        """Its size in bytes when it was opened."""
        ...

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


class StoredSource(Source, Protocol):
    """A source whose bytes are in files that are open here."""

    @property
    def parts(self) -> list[SourcePart]:
        """What it is made of, for a reader of its descriptors; none if they must not be read without asking it."""
        ...

    @property
    def descriptors(self) -> frozenset[int]:
        """Those that a daemon keeps over its fork."""
        ...

    def resolved_name(self) -> str:
        """Its absolute path, or its address, for the mount table."""
        ...


def parts_of(source: Source) -> list[SourcePart]:
    """What a source is made of, if it is a ``StoredSource``; none if its files must not be read without asking it."""
    parts: list[SourcePart] = getattr(source, "parts", [])
    return parts


def read_again(source: Source, offset: int, length: int) -> bytes | None:
    """Bytes that were wrong last time, from elsewhere than then; None: there is no other place.

    Raises:
        ImageReadError: as ``Source.read``.
    """
    again: Callable[[int, int], bytes | None] | None = getattr(source, "read_again", None)
    return None if again is None else again(offset, length)


def attempts_of(source: Source) -> int:
    """How often ``read_again`` may be of use for the same bytes: if there are mirrors, who has sent the wrong ones is
    not always known."""
    attempts: int = getattr(source, "attempts", 1)
    return attempts


class Remoteness(Enum):
    """How an image's bytes reach us, which decides what can be done about wrong ones."""

    HERE = 0
    """From this machine's storage: there is no other place to ask."""
    ELSEWHERE = 1
    """From another machine, by a cache of this process alone."""
    SHARED_CACHE = 2
    """The same, by a cache that others write to."""


def remoteness(source: Source) -> Remoteness:
    """How a source's bytes reach us."""
    found: Remoteness = getattr(source, "remoteness", Remoteness.HERE)
    return found


def counters_of(source: Source) -> Callable[[], dict[str, int]] | None:
    """A function that asks the fetcher of an image elsewhere what it has counted, in a thread that waits for it; None
    of other sources. It raises ImageReadError."""
    counters: Callable[[], dict[str, int]] | None = getattr(source, "counters", None)
    return counters


def bypass_cache(source: Source) -> None:
    """Have all bytes come from where the image is, and none from a cache: nothing would notice that they are wrong."""
    bypass: Callable[[], None] | None = getattr(source, "bypass_cache", None)
    if bypass is not None:
        bypass()


_TMPFS_MAGIC, _RAMFS_MAGIC = 0x01021994, 0x858458F6
"""<linux/magic.h>"""


class FileSource:
    """An image in a regular file or on a block device, opened read-only and never mapped into memory (a mapped file
    that is truncated kills the process with SIGBUS)."""

    def __init__(self, path: str | os.PathLike[str], descriptor: int | None = None) -> None:
        """Open ``path``.

        Args:
            descriptor: the file, if it is open already; closed with the source.

        Raises:
            ImageReadError: opening it failed.
            FormatError: it is neither a regular file nor a block device.
        """
        self.name = os.fspath(path)
        try:
            if descriptor is None:
                # O_NONBLOCK: a FIFO without a writer would otherwise hang the open.
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            self._fd = descriptor
        except OSError as error:
            # open(2) of a socket.
            if error.errno == errno.ENXIO:
                check_kind(os.stat(path).st_mode, self.name)
            advice = ""
            # Hardly a path, but what somebody has mistyped: htps://, http:/host.
            if error.errno == errno.ENOENT and re.match(r"[a-z][a-z0-9+.-]*:/", self.name, re.IGNORECASE):
                advice = "; an address begins with http://, https://, s3:// or oci://"
            raise ImageReadError(f"{self.name}: {os.strerror(error.errno or 0)}{advice}") from error
        try:
            check_kind(os.fstat(self._fd).st_mode, self.name)
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


def check_kind(mode: int, name: str) -> None:
    """Raise FormatError for what can hold no image: anything but a regular file or a block device."""
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    # Only here: each command opens images, and hardly ever anything else.
    from mystfuse.formats.others.paths import kind_of_mode

    kind = kind_of_mode(mode)
    raise FormatError(kind.explain(name) if kind is not None else f"{name}: not an image")


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

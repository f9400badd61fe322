"""The bytes of an archive where any of them can be read at any time: in the file itself, or decompressed in a nameless
temporary file."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from mystfuse.archives.compression import FIRST_BYTES, STEP, compression_of, decompress
from mystfuse.errors import FormatError, MystfuseError, UsageError

MAX_RATIO = 200
"""A tree's files come nowhere near it; the formats reach 1000 and more for zeros, without end."""
FREE_BYTES = 256 << 20
"""Bytes that may come of however few."""
_ZEROS = bytes(STEP)

Advance = Callable[[int], None]
"""Called with the number of bytes that have been read since the last call."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A range of an open file."""

    descriptor: int
    offset: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, none beyond the part's end. Raises OSError."""
        return os.pread(self.descriptor, max(min(length, self.size - offset), 0), self.offset + offset)

    def pieces(self) -> Iterator[bytes]:
        """All of it. Raises OSError."""
        offset = 0
        while data := self.read(offset, STEP):
            yield data
            offset += len(data)


def temporary_directory() -> str:
    """Where what may be large goes: $TMPDIR, else /var/tmp, which is not in memory as /tmp often is."""
    given = os.environ.get("TMPDIR")
    if given:
        return given
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108


@contextmanager
def opened(path: str, name: str, advance: Advance) -> Iterator[FilePart]:
    """The decompressed bytes of the file at ``path``, until the block ends.

    Args:
        path: ``-`` is stdin.
        name: of the archive, for messages.

    Raises:
        UsageError: stdin is a terminal.
        MystfuseError: reading it, or storing what was in it, failed.
        FormatError: it is damaged, or a decompression bomb.
    """
    if path == "-" and os.isatty(0):
        raise UsageError("--tar -: stdin is a terminal: pipe an archive to it")
    try:
        descriptor = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MystfuseError(f"{name}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise MystfuseError(f"{name}: is a directory, not an archive")
        if stat.S_ISREG(status.st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
            with decompressed(FilePart(descriptor, 0, status.st_size), name, advance) as part:
                yield part
            return
        with _spooled(partial(_read, descriptor, name), name, advance) as part:
            yield part
    finally:
        os.close(descriptor)


@contextmanager
def decompressed(part: FilePart, name: str, advance: Advance) -> Iterator[FilePart]:
    """The part itself, or what comes of it where it is compressed; errors as for ``opened``."""
    if _compression_of(part.read(0, FIRST_BYTES), name) is None:
        yield part
        return
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        data = part.read(position, length)
        position += len(data)
        return data

    with _spooled(read, name, advance) as spooled:
        yield spooled


def _compression_of(start: bytes, name: str) -> str | None:
    try:
        return compression_of(start)
    except FormatError as error:
        raise error.at(name) from None


@contextmanager
def _spooled(read: Callable[[int], bytes], name: str, advance: Advance) -> Iterator[FilePart]:
    """What ``read`` gives, decompressed if it is compressed, in a file without a name."""
    start = b""
    while len(start) < FIRST_BYTES and (more := read(FIRST_BYTES - len(start))):
        start += more
    compression = _compression_of(start, name)
    taken = 0

    def counted(length: int) -> bytes:
        nonlocal start, taken
        data, start = (start, b"") if start else (read(length), b"")
        taken += len(data)
        advance(len(data))
        return data

    directory = temporary_directory()
    try:
        file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  # it is closed below
    except OSError as error:
        raise MystfuseError(f"{directory}: no room for {name}: {error.strerror} (set TMPDIR)") from error
    with file:
        size = 0
        parts: Iterable[bytes] = iter(partial(counted, STEP), b"")
        if compression is not None:
            parts = decompress(counted, compression)
        try:
            for data in parts:
                if compression is not None and size + len(data) > FREE_BYTES + MAX_RATIO * taken:
                    raise FormatError(
                        f"a decompression bomb? {taken} bytes have become {size}, {MAX_RATIO} times as many and more "
                        "(decompress it yourself, and give that)"
                    )
                _write(file.fileno(), data, size, directory)
                size += len(data)
        except FormatError as error:
            raise error.at(name) from None
        yield FilePart(file.fileno(), 0, size)


def _write(descriptor: int, data: bytes, position: int, directory: str) -> None:
    """Whole steps of zeros become holes."""
    try:
        os.ftruncate(descriptor, position + len(data))
        if data == _ZEROS:
            return
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, position)
            view, position = view[count:], position + count
    except OSError as error:
        raise MystfuseError(
            f"{directory}: the archive cannot be stored there: {error.strerror} (set TMPDIR)"
        ) from error


def _read(descriptor: int, name: str, length: int) -> bytes:
    try:
        return os.read(descriptor, length)
    except OSError as error:
        raise MystfuseError(f"{name}: {error.strerror}") from error

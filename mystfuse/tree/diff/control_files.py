"""The files ``base`` and ``written`` of a mount's control directory, open for reading."""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from mystfuse.devices.patient_threads import call_patiently
from mystfuse.errors import FormatError, ImageReadError, MountError
from mystfuse.fuse.control_directory_names import BASE_NAME, CONTROL_NAME, WRITTEN_NAME
from mystfuse.overlay.written_format import HEADER, NUMBER, WrittenHeader

T = TypeVar("T")

_FEW_BYTES = 2 << 20
"""So many of written blocks are read at once, and kept."""
_CHUNK = 32 << 10
"""Bytes of ``base`` that are read, and kept, together."""
_MAX_CHUNKS = 256


class Piece(NamedTuple):
    """A range of bytes of ``base`` or ``written``."""

    is_base: bool
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Loaded(NamedTuple):
    """Bytes of ``base`` or ``written``."""

    is_base: bool
    start: int
    data: bytes

    def bytes_of(self, piece: Piece) -> bytes:
        return self.data[piece.offset - self.start : piece.end - self.start]


class ControlFiles:
    """``base`` and ``written`` of one mount, open. Use ``open_control_files``, and ``close`` when done.

    Args:
        base, written: descriptors.
        numbers: of the written blocks, in the order of their bytes.
        blocks: these bytes, if they are few.
    """

    def __init__(
        self,
        name: str,
        base: int,
        written: int,
        header: WrittenHeader,
        numbers: Sequence[int],
        blocks: bytes | None,
    ) -> None:
        self.name = name
        """The mountpoint, for messages."""
        self.base = base
        self.written = written
        self.header = header
        self._blocks = blocks
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        """Parts of ``base``: both states have most of it in common, and neighbours are used together."""
        self.base_size = os.fstat(base).st_size
        # Each in one number, which takes less memory than a pair.
        self._places = array("Q", sorted([number << 32 | place for place, number in enumerate(numbers)]))
        self.numbers = array("I", [place >> 32 for place in self._places])
        """The numbers of the written blocks, ascending."""
        last = self.numbers[-1] if self.numbers else -1
        if len(set(self.numbers)) < len(self.numbers) or (last + 1) * header.block_size > self.base_size:
            raise FormatError(f"{name}: a written block is there twice, or outside the file system")

    def place(self, number: int) -> int:
        """Where in ``written`` a block is, in bytes; -1 if it is not there."""
        index = bisect_left(self.numbers, number)
        if index == len(self.numbers) or self.numbers[index] != number:
            return -1
        return self.header.data_offset + (self._places[index] & 0xFFFFFFFF) * self.header.block_size

    def find(self, piece: Piece) -> bytes | None:
        """The bytes, if they are in memory."""
        if not piece.is_base:
            start = piece.offset - self.header.data_offset
            return None if self._blocks is None else self._blocks[start : start + piece.length]
        first, last = piece.offset // _CHUNK, (piece.end - 1) // _CHUNK
        chunks = [self._chunks.get(number) for number in range(first, last + 1)] if piece.length <= _CHUNK else [None]
        if None in chunks:
            return None
        start = piece.offset - first * _CHUNK
        return b"".join([chunk for chunk in chunks if chunk is not None])[start : start + piece.length]

    def load(self, piece: Piece) -> Loaded:
        """Read the bytes, and of ``base`` those around them. In any thread.

        Raises:
            ImageReadError
        """
        if piece.is_base and piece.length <= _CHUNK:
            start = piece.offset // _CHUNK * _CHUNK
            end = min(-(-piece.end // _CHUNK) * _CHUNK, self.base_size)
            # They may be damaged where these are not.
            with suppress(OSError):
                return Loaded(True, start, _read(self.base, start, end - start, self.name))
        try:
            descriptor = self.base if piece.is_base else self.written
            return Loaded(piece.is_base, piece.offset, _read(descriptor, piece.offset, piece.length, self.name))
        except OSError as error:
            what = "its image" if piece.is_base else "what was written"
            raise ImageReadError(
                f"{self.name}: reading {what} at byte {piece.offset}: {os.strerror(error.errno or 0)} "
                "(damaged? the mount's log names the block)"
            ) from error

    def keep(self, loaded: Loaded) -> None:
        """Keep bytes of ``base`` in memory, and drop the oldest."""
        if loaded.is_base and loaded.start % _CHUNK == 0 and len(loaded.data) <= 2 * _CHUNK:
            for start in range(0, len(loaded.data), _CHUNK):
                chunk = loaded.data[start : start + _CHUNK]
                if len(chunk) == _CHUNK or loaded.start + start + len(chunk) == self.base_size:
                    self._chunks[(loaded.start + start) // _CHUNK] = chunk
        while len(self._chunks) > _MAX_CHUNKS:
            self._chunks.popitem(last=False)

    def close(self) -> None:
        """Close both; the mount gives back what it has kept for them."""
        # Without a request that could wait: the mount has no ``flush``.
        os.close(self.base)
        os.close(self.written)


async def open_control_files(mountpoint: str, io_timeout: float) -> ControlFiles:
    """Open the files of a mount of ours, and read which blocks have been written.

    Args:
        io_timeout: seconds that the mount gets for its answer.

    Raises:
        MountError: it has no such files: it is none of ours, an older one, or mounted with ``-o nocontrol``.
        MystfuseError: too many are open, or there is no room in its overlay; reading failed.
        StorageTimeout
    """
    opened: list[ControlFiles] = []
    is_abandoned = False

    def work() -> None:
        opened.append(_open(mountpoint))
        if is_abandoned:
            abandon()

    def abandon() -> None:
        # Each of the two threads pops it: only one gets it.
        with suppress(IndexError):
            opened.pop().close()

    try:
        await call_patiently(work, mountpoint, io_timeout)
        return opened.pop()
    except BaseException:
        is_abandoned = True
        abandon()
        raise


def _open(mountpoint: str) -> ControlFiles:
    flags = os.O_RDONLY | os.O_CLOEXEC
    descriptors: list[int] = []
    try:
        # Both of the same mount, whatever is mounted there meanwhile.
        directory = os.open(os.path.join(os.fsencode(mountpoint), CONTROL_NAME), flags | os.O_DIRECTORY)
        try:
            descriptors.append(os.open(BASE_NAME, flags, dir_fd=directory))
            descriptors.append(os.open(WRITTEN_NAME, flags, dir_fd=directory))
        finally:
            os.close(directory)
        base, written = descriptors
        header = WrittenHeader.parse(_read(written, 0, HEADER.size, mountpoint))
        if header.count * header.block_size > os.fstat(base).st_size:
            raise FormatError(f"{mountpoint}: {header.count} written blocks are more than the file system has")
        numbers = _read(written, HEADER.size, header.count * NUMBER.size, mountpoint)
        length = header.count * header.block_size
        blocks = _read(written, header.data_offset, length, mountpoint) if length <= _FEW_BYTES else None
        found = [number for (number,) in NUMBER.iter_unpack(numbers)]
        return ControlFiles(mountpoint, base, written, header, found, blocks)
    except OSError as error:
        _close(descriptors)
        raise _explained(mountpoint, error) from error
    except BaseException:
        _close(descriptors)
        raise


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _explained(mountpoint: str, error: OSError) -> Exception:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return MountError(
                f"{mountpoint}: there is no .mystfuse/written: not a mount of mystfuse, of an older version, or with "
                "-o nocontrol"
            )
        case errno.EBUSY:
            why = "too many of its states are being read: try again later"
        case errno.ENOSPC:
            why = "no room left in the overlay to keep its state: delete something, or mount with a larger limit"
        case _:
            why = os.strerror(error.errno or 0)
    return ImageReadError(f"{mountpoint}: {why}")


def _read(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """Exactly these bytes; raises OSError, and ImageReadError if there are fewer."""
    parts: list[bytes] = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise ImageReadError(f"{name}: the mount's state ends at byte {offset}")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)

"""The chunks of one image that have been fetched, in a data file and a map (``chunk_map``), which nobody trusts.

Files may be changed, cut or removed at any moment, by other fetchers and by anybody who may write to the directory:
sizes are looked at before each use, nothing is mapped, and an error of storing is no error of fetching.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from mystfuse.remote.chunk_locks import ChunkLocks
from mystfuse.remote.chunk_map import CHUNK, ENTRY

_LATEST = (1 << 32) - 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)
_PAUSE = 5.0
"""Seconds without storing after an error."""
_SILENCE = 600.0
"""Seconds between warnings."""


def minutes_now() -> int:
    """What the map has for a chunk that is fetched now."""
    return min(max(1, int(time.time() // 60)), _LATEST)


class ChunkStore:
    """One image's chunks.

    Args:
        size: bytes of the image.
        data, map: descriptors of the files, open for reading and writing; closed by this object.
        for_reader: descriptors of the same files for whoever reads the chunks; closed by this object.
        locks: with other processes' fetchers; None for a store that is this process's alone.
        name: for messages.
        warn: called with one line when there is no space; seldom.
    """

    def __init__(
        self,
        size: int,
        data: int,
        map: int,
        for_reader: tuple[int, int],
        locks: ChunkLocks | None,
        name: str,
        warn: Callable[[str], None],
    ) -> None:
        self.size = size
        self.data, self.map, self.for_reader = data, map, for_reader
        self.locks = locks
        self.name = name
        self.make_room: Callable[[int], bool] = lambda wanted: False
        """Called when storage is full, with the bytes that are wanted; returns whether there is some room now."""
        self.written = 0
        """Bytes stored so far."""
        self.noticed_at = float("inf")
        """When that many bytes have been stored, ``notice`` is called, which sets another number."""
        self.notice: Callable[[], None] = lambda: None
        self.is_broken = False
        """Whether storing has failed for another reason than want of space."""
        self._warn = warn
        self._warned_at = -_SILENCE
        self._paused_until = 0.0

    @property
    def chunks(self) -> range:
        """The numbers of all chunks."""
        return range(-(-self.size // CHUNK))

    @property
    def is_storing(self) -> bool:
        """Whether storing may work now."""
        return time.monotonic() >= self._paused_until

    def prepare(self) -> None:
        """Give the files their sizes; whatever a file of another size holds is forgotten. Raises OSError."""
        if os.fstat(self.data).st_size == self.size and os.fstat(self.map).st_size == len(self.chunks) * ENTRY:
            return
        os.ftruncate(self.map, 0)
        os.ftruncate(self.data, self.size)
        os.ftruncate(self.map, len(self.chunks) * ENTRY)

    def missing(self, chunks: range) -> list[range]:
        """The runs of chunks that the map does not have."""
        try:
            if os.fstat(self.data).st_size != self.size:
                self.prepare()
            entries = os.pread(self.map, len(chunks) * ENTRY, chunks.start * ENTRY)
        except OSError as error:
            self._fail(error)
            return [chunks]
        if len(entries) != len(chunks) * ENTRY:
            with suppress(OSError):
                os.ftruncate(self.map, len(self.chunks) * ENTRY)
            entries = entries[: len(entries) // ENTRY * ENTRY].ljust(len(chunks) * ENTRY, b"\0")
        values = struct.unpack(f"<{len(chunks)}I", entries)
        if 0 not in values:
            return []
        return runs(number for number, value in zip(chunks, values, strict=True) if not value)

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> bool:
        """Store bytes, which the map does not have yet (see ``mark``); returns whether that worked."""
        if not self.is_storing:
            return False
        for _ in range(2):
            try:
                position, rest = offset, memoryview(data)
                while rest:
                    count = os.pwrite(self.data, rest, position)
                    position, rest = position + count, rest[count:]
            except OSError as error:
                if error.errno in _FULL and self.make_room(len(data)):
                    continue
                self._fail(error)
                return False
            self.written += len(data)
            if self.written >= self.noticed_at:
                self.notice()
            return True
        self._fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return False

    def take(self, chunk: int) -> bytes:
        """Take a chunk, which the map does not have, out of the data file; nothing if that fails."""
        length = min(CHUNK, self.size - chunk * CHUNK)
        try:
            data = os.pread(self.data, length, chunk * CHUNK)
            os.pwrite(self.data, bytes(length), chunk * CHUNK)
        except OSError:
            return b""
        return data if len(data) == length else b""

    def mark(self, chunks: range) -> bool:
        """Say in the map that chunks have been fetched now; returns whether that worked."""
        if not chunks:
            return True
        try:
            os.pwrite(self.map, struct.pack("<I", minutes_now()) * len(chunks), chunks.start * ENTRY)
        except OSError as error:
            self._fail(error)
            return False
        return True

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self.data, self.map, *self.for_reader):
            with suppress(OSError):
                os.close(descriptor)
        if self.locks is not None:
            self.locks.close()

    def _fail(self, error: OSError) -> None:
        """Store nothing for a while."""
        self._paused_until = time.monotonic() + _PAUSE
        self.is_broken = error.errno not in _FULL
        if not self.is_broken and time.monotonic() - self._warned_at > _SILENCE:
            self._warned_at = time.monotonic()
            self._warn(f"{self.name}: {error.strerror}; what is read is not stored")


def runs(numbers: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges."""
    found: list[range] = []
    start = stop = -1
    for number in numbers:
        if number == stop:
            stop += 1
            continue
        if stop > start:
            found.append(range(start, stop))
        start, stop = number, number + 1
    if stop > start:
        found.append(range(start, stop))
    return found


def store_in_memory(size: int, data: int, map: int, warn: Callable[[str], None]) -> ChunkStore:
    """A store in two memory files (memfd_create(2)), which it duplicates. Raises OSError."""
    store = ChunkStore(size, os.dup(data), os.dup(map), (os.dup(data), os.dup(map)), None, "the cache in memory", warn)
    store.prepare()
    return store

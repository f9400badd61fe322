"""Locks on the chunks of an image, by which processes that share a cache fetch each chunk once.

They are locks of open files on ranges of the map (F_OFD_SETLK), which the kernel drops when their holder ends in any
way. Nobody waits for one: a lock that another process does not give back must not stop anyone.

Source: fcntl(2), "Open file description locks (non-POSIX)".
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from mystfuse.remote.chunk_map import ENTRY

_FLOCK = struct.Struct("hh4xqqi4x")
"""struct flock on 64-bit machines: l_type, l_whence, l_start, l_len, l_pid (0)."""
_IN_USE = 1 << 61
"""The place of the lock that every user of the image holds, shared: behind all entries."""
_OTHERS = (errno.EAGAIN, errno.EACCES)
"""What a lock of somebody else gives; any other error means that the file system has no locks."""


class ChunkLocks:
    """The locks of one image for one user of it.

    Args:
        descriptor: of the map, open for reading and writing; opened for this object alone, since locks belong to it,
            and closed by it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def claim(self, chunks: range) -> list[range]:
        """Lock those chunks of a range that nobody else has locked; returns them. Where the file system has no locks,
        all are."""
        if not chunks:
            return []
        if self._lock(fcntl.F_WRLCK, chunks.start * ENTRY, len(chunks) * ENTRY):
            return [chunks]
        if len(chunks) == 1:
            return []
        middle = len(chunks) // 2
        first, second = self.claim(chunks[:middle]), self.claim(chunks[middle:])
        if first and second and first[-1].stop == second[0].start:
            return [*first[:-1], range(first[-1].start, second[0].stop), *second[1:]]
        return first + second

    def release(self, chunks: range) -> None:
        """Unlock chunks, locked or not."""
        self._lock(fcntl.F_UNLCK, chunks.start * ENTRY, len(chunks) * ENTRY)

    def share(self) -> bool:
        """Note that the image is in use, until ``close``; returns False where somebody is removing it."""
        return self._lock(fcntl.F_RDLCK, _IN_USE, 1)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """For the block, keep others from using the image; yields False where somebody does."""
        got = self._lock(fcntl.F_WRLCK, _IN_USE, 1)
        try:
            yield got
        finally:
            if got:
                self._lock(fcntl.F_UNLCK, _IN_USE, 1)

    def is_of(self, status: os.stat_result) -> bool:
        """Whether these are locks on the file of that status."""
        return os.path.samestat(status, os.fstat(self._descriptor))

    def close(self) -> None:
        os.close(self._descriptor)

    def _lock(self, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        except OSError as error:
            return error.errno not in _OTHERS
        return True

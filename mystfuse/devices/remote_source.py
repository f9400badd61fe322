"""An image elsewhere as a source: the bytes are in the fetcher's data file already, or the fetcher gets them."""

from __future__ import annotations

import errno
import os
import re
import struct
import time
from collections.abc import Iterable
from itertools import islice

from mystfuse.devices.patience import wait_for_storage
from mystfuse.devices.source import Remoteness, SourcePart, is_in_memory
from mystfuse.errors import ImageReadError
from mystfuse.remote.chunk_map import ENTRY, chunks_of
from mystfuse.remote.client import FetcherClient
from mystfuse.remote.protocol import MAX_READ

_COUNTER = re.compile("[a-z][a-z_]{0,39}")
_MAX_COUNTERS = 64
_PATIENCE = 2.0
"""Seconds that the fetcher has to say what it has counted."""


class RemoteSource:
    """A ``Source`` over a fetcher.

    Nothing that fetcher and cache say is believed. The data file may be truncated, or on storage that hangs; where it
    has holes, it reads as zeros. So it is never mapped, and before and after reading it we look at the map: that saves
    vain verifications, and is all that the map is good for.

    Args:
        io_timeout: seconds that opening and each read may take.
        has_shared_cache: whether the data file may be one that others write to.
        has_mirrors: whether the image has several addresses.
    """

    def __init__(
        self, client: FetcherClient, io_timeout: float, has_shared_cache: bool, has_mirrors: bool = False
    ) -> None:
        self.name = client.name
        self.remoteness = Remoteness.SHARED_CACHE if has_shared_cache else Remoteness.ELSEWHERE
        self.attempts = 2 if has_mirrors else 1
        self._client = client
        self._io_timeout = io_timeout
        self._flags = 0
        self._size = -1
        self._tail = b""
        """The last bytes as they came when it was opened, whatever others write into the data file since."""
        self._has_nowait = True
        self._believes_cache = True
        # Where nobody expects that reading the files waits, it never does.
        client.accepts = lambda files: self._flags != 0 or _are_in_memory(files)

    @property
    def size(self) -> int:
        """Its size in bytes; waits until the fetcher has opened it, the first time.

        Raises:
            ImageReadError: it cannot be opened; StorageTimeout: not in time.
        """
        if self._size < 0:
            wait_for_storage(self.open, self.name, self._io_timeout + _PATIENCE)
        return self._size

    def open(self) -> None:
        """Wait until the fetcher has opened it; in a thread that may be left behind. Raises as ``size``."""
        opened = self._client.wait_until_open(time.monotonic() + self._io_timeout)
        in_memory = _are_in_memory((self._client.data_file, self._client.map_file))
        self._flags = 0 if in_memory else os.RWF_NOWAIT
        self._tail = opened.tail
        self._size = opened.size

    def bypass_cache(self) -> None:
        """From now on all bytes come from where the image is: nothing would notice damage in the cache."""
        self._believes_cache = False
        # Two mirrors may have two names for the same version.
        self._client.is_one_version = self.attempts == 1

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if not self._has_nowait or not self._believes_cache or self._size < 0:
            return False
        try:
            if not self._read_file(offset, buffer, self._flags):
                return False
            self._put_tail(offset, buffer)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            # Some file systems do not support RWF_NOWAIT.
            self._has_nowait = error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            return False

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._read(offset, buffer, not self._believes_cache)
        self._put_tail(offset, buffer)

    def _put_tail(self, offset: int, buffer: memoryview) -> None:
        start = self._size - len(self._tail)
        if self._tail and offset + len(buffer) > start:
            first = max(offset, start)
            buffer[first - offset :] = self._tail[first - start : offset + len(buffer) - start]

    def read_again(self, offset: int, length: int) -> bytes:
        """The range, past every cache, and from another place if there are several: what came last time was wrong.

        Raises:
            ImageReadError: as ``read``.
        """
        data = bytearray(length)
        self._read(offset, memoryview(data), again=True)
        if self._tail and offset <= self._size - len(self._tail) and offset + length == self._size:
            self._tail = bytes(data[-len(self._tail) :])
        return bytes(data)

    def _read(self, offset: int, buffer: memoryview, again: bool) -> None:
        size = self.size
        if offset + len(buffer) > size:
            raise ImageReadError(f"{self.name}: truncated: it ends at byte {size}, before byte {offset + len(buffer)}")
        deadline = time.monotonic() + self._io_timeout
        for start in range(0, len(buffer), MAX_READ):
            self._read_piece(offset + start, buffer[start : start + MAX_READ], again, deadline)

    def _read_piece(self, offset: int, buffer: memoryview, again: bool, deadline: float) -> None:
        if not again and self._tries_file(offset, buffer):
            return
        data = self._client.read(offset, len(buffer), again, deadline)
        if data is None:
            if self._tries_file(offset, buffer):
                return
            # The file is not what the fetcher says, or has lost it already.
            data = self._client.read(offset, len(buffer), True, deadline)
        if data is None:
            raise ImageReadError(f"{self.name}: no bytes came for the {len(buffer)} at {offset}")
        buffer[:] = data

    def _tries_file(self, offset: int, buffer: memoryview) -> bool:
        try:
            return self._read_file(offset, buffer, 0)
        except OSError:
            return False

    def _read_file(self, offset: int, buffer: memoryview, flags: int) -> bool:
        """Read the range from the data file, if the map says that it is there; raises OSError."""
        chunks = chunks_of(offset, len(buffer))
        before = self._entries(chunks, flags)
        if before is None or os.preadv(self._client.data_file, [buffer], offset, flags) != len(buffer):
            return False
        # It may have been thrown away meanwhile.
        return self._entries(chunks, flags) == before

    def _entries(self, chunks: range, flags: int) -> bytearray | None:
        """What the map says of chunks; None if one of them is not there."""
        entries = bytearray(len(chunks) * ENTRY)
        if os.preadv(self._client.map_file, [entries], chunks.start * ENTRY, flags) != len(entries):
            return None
        return None if 0 in struct.unpack(f"<{len(chunks)}I", entries) else entries

    def counters(self) -> dict[str, int]:
        """What the fetcher has counted, as far as it can be shown; raises ImageReadError."""
        found = self._client.counters(time.monotonic() + min(self._io_timeout, _PATIENCE))
        shown = {name: value for name, value in found.items() if _COUNTER.fullmatch(name) and 0 <= value < 1 << 63}
        return dict(islice(shown.items(), _MAX_COUNTERS))

    @property
    def parts(self) -> list[SourcePart]:
        """The data file, for a reader of its descriptor that verifies all it reads."""
        if not self._believes_cache:
            return []
        client = self._client
        return [SourcePart(client.data_file, not self._flags, 0, self.size, 0, client.map_file, client.connection)]

    @property
    def descriptors(self) -> frozenset[int]:
        """Those that a daemon keeps over its fork."""
        return self._client.descriptors

    def close(self) -> None:
        """End the fetcher."""
        self._client.close()

    def resolved_name(self) -> str:
        """The address, for the mount table."""
        return self.name


def _are_in_memory(files: Iterable[int]) -> bool:
    return all(map(is_in_memory, files))

"""The untrusted-reader task: the only code that touches the image while it is mounted.

What the page cache has is read at once (``Reading``): handing it to a task would cost more than reading it. The rest
reaches the task through a bounded queue. It takes all that are waiting, merges neighbours into long reads, and gives
them to a few threads, so that a cold or hanging disk never stops the event loop. Nobody believes what either returns
before ``verity`` has looked at it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from mystfuse.devices.buffers import Buffers
from mystfuse.devices.device import Extent, coalesce
from mystfuse.devices.source import Source
from mystfuse.devices.threads import call_in_thread
from mystfuse.errors import ImageReadError, StorageTimeout

log = logging.getLogger(__name__)

QUEUE_DEPTH = 64
"""Requests that may wait; more make their senders wait."""
MAX_READ = 1 << 20
"""Bytes: neighbouring requests are merged up to here."""
COLD_READS = 8
"""Reads from storage under way at once, each on a thread."""
MAX_ABANDONED = 24
"""Threads that wait for storage after their read has timed out; with so many, further reads fail at once."""


@dataclass(eq=False, slots=True)
class _Request:
    extents: Sequence[Extent]
    parts: list[memoryview | None]
    missing: int
    done: trio.Event = field(default_factory=trio.Event)
    error: ImageReadError | None = None

    def deliver(self, index: int, part: memoryview) -> None:
        self.parts[index] = part
        self.missing -= 1
        if not self.missing:
            self.done.set()

    def fail(self, error: ImageReadError) -> None:
        self.error = error
        self.done.set()


class Reading:
    """A ``Batch`` of ranges that the page cache may have."""

    def __init__(self, reader: ImageReader, extents: Sequence[Extent]) -> None:
        self._reader = reader
        self._extents = extents
        # One buffer for all of them: there are not many long ones.
        buffer, end = reader.buffers.take(sum([extent.length for extent in extents])), 0
        self._buffers = [buffer[end : (end := end + extent.length)] for extent in extents]
        self._is_there = False

    def run(self) -> None:
        read = self._reader.source.read_cached_into
        self._is_there = all(
            read(extent.offset, buffer) for extent, buffer in zip(self._extents, self._buffers, strict=True)
        )

    def parts(self) -> list[memoryview] | None:
        return self._buffers if self._is_there else None

    def result(self) -> list[memoryview] | None:
        if not self._is_there:
            return None
        self._reader.bytes_read += sum(map(len, self._buffers))
        return self._buffers


class ImageReader:
    """Reads ranges of a ``Source`` on behalf of the layers above. Start ``run`` before calling ``read``.

    Args:
        io_timeout: seconds until a read that storage does not answer fails; ``math.inf`` to wait for ever.
    """

    def __init__(self, source: Source, io_timeout: float = math.inf) -> None:
        self.size = source.size
        self.bytes_read = 0
        self.failures = 0
        self.source = source
        self.buffers = Buffers()
        self._io_timeout = io_timeout
        self._send, self._receive = trio.open_memory_channel[_Request](QUEUE_DEPTH)
        self._under_way: set[_Request] = set()
        self._slots = trio.Semaphore(COLD_READS)
        self._threads = 0
        """How many are reading, abandoned ones included."""

    async def read(self, extents: Sequence[Extent]) -> list[memoryview]:
        """The *unverified* bytes of each extent, in the order asked for.

        Raises:
            ImageReadError: an I/O error, a range past the end of the file, a time-out, or the reader has ended.
        """
        if not extents:
            return []
        request = _Request(extents, [None] * len(extents), len(extents))
        self._under_way.add(request)
        try:
            await self._send.send(request)
            await request.done.wait()
        except trio.BrokenResourceError as error:
            raise ImageReadError(f"{self.source.name}: the reader has ended") from error
        finally:
            self._under_way.discard(request)
        if request.error is not None:
            raise request.error
        return [part for part in request.parts if part is not None]

    def begin(self, extents: Sequence[Extent]) -> Reading:
        """The *unverified* bytes of each extent, if they are in the page cache when the batch is run."""
        return Reading(self, extents)

    async def run(self) -> None:
        """Serve requests until cancelled; those under way fail then."""
        try:
            await self._serve()
        finally:
            for request in self._under_way:
                request.fail(ImageReadError(f"{self.source.name}: the reader has ended"))

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery, self._receive:
            async for request in self._receive:
                batch = [request]
                try:
                    while len(batch) < QUEUE_DEPTH:
                        batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    pass
                try:
                    for extent, receivers in _merge(batch):
                        unverified = self.source.read_cached(extent.offset, extent.length)
                        if unverified is not None and len(unverified) == extent.length:
                            self._deliver(extent, unverified, receivers)
                        else:
                            nursery.start_soon(self._read_cold, extent, receivers)
                except (MemoryError, OSError):
                    # No room for a buffer. Who asked is told so; the task goes on.
                    for request in batch:
                        request.fail(ImageReadError(f"{self.source.name}: no memory left to read into"))

    async def _read_cold(self, extent: Extent, receivers: list[tuple[_Request, int]]) -> None:
        error: ImageReadError
        try:
            # The clock runs from here on, not while others keep the slots: storage that is slow has not failed.
            async with self._slots:
                if self._threads >= COLD_READS + MAX_ABANDONED:
                    raise trio.TooSlowError
                with trio.fail_after(self._io_timeout):
                    unverified = await self._read_in_thread(extent)
        except trio.TooSlowError:
            may_retry = False
            error = StorageTimeout(
                f"{self.source.name}: no answer from storage within {self._io_timeout:g} s "
                f"({extent.length} bytes at {extent.offset})"
            )
        except ImageReadError as read_error:
            may_retry = len(receivers) > 1
            error = read_error
        except (MemoryError, RuntimeError) as failure:
            # RuntimeError: a thread cannot be started, for want of memory or because of a limit on processes.
            may_retry = False
            why = str(failure) or "no memory left"
            error = ImageReadError(f"{self.source.name}: reading {extent.length} bytes at {extent.offset}: {why}")
        else:
            if len(unverified) == extent.length:
                self._deliver(extent, unverified, receivers)
                return
            may_retry = False
            error = ImageReadError(
                f"{self.source.name}: {len(unverified)} bytes came for the {extent.length} at {extent.offset}"
            )
        self.failures += 1
        log.error("reader: %s", error)
        for request, index in receivers:
            if not may_retry:
                request.fail(error)
            elif not request.done.is_set():
                # Requests that were merged do not share each other's errors: each is tried again alone.
                await self._read_cold(request.extents[index], [(request, index)])

    async def _read_in_thread(self, extent: Extent) -> bytes:
        self._threads += 1
        return await call_in_thread(partial(self.source.read, extent.offset, extent.length), self._note_end)

    def _note_end(self) -> None:
        self._threads -= 1

    def _deliver(
        self, extent: Extent, unverified: bytes | bytearray | memoryview, receivers: list[tuple[_Request, int]]
    ) -> None:
        self.bytes_read += len(unverified)
        view = memoryview(unverified)
        for request, index in receivers:
            wanted = request.extents[index]
            start = wanted.offset - extent.offset
            request.deliver(index, view[start : start + wanted.length])


def _merge(batch: list[_Request]) -> list[tuple[Extent, list[tuple[_Request, int]]]]:
    """The reads that serve a batch of requests, each with the (request, index of extent) pairs it is for."""
    wanted = sorted(
        ((extent, request, index) for request in batch for index, extent in enumerate(request.extents)),
        key=lambda item: item[0],
    )
    reads = [(extent, list[tuple[_Request, int]]()) for extent in coalesce((item[0] for item in wanted), MAX_READ)]
    position = 0
    for extent, request, index in wanted:
        while extent.end > reads[position][0].end:
            position += 1
        reads[position][1].append((request, index))
    return reads

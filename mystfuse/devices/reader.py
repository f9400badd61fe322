"""The untrusted-reader task: the only code that touches the image while it is mounted.

What the page cache has is read at once (``begin``): handing it to a task would cost more than reading it. The rest
reaches the task through a bounded queue. It takes all waiting requests, merges neighbours into long reads, and gives
them to a few threads, so that a cold or hanging disk never stops the event loop. The bytes are unverified.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from threading import Lock
from typing import NamedTuple

import trio

from mystfuse.devices.buffers import Buffers
from mystfuse.devices.device import Extent, PendingRead, coalesce
from mystfuse.devices.patience import timed_out
from mystfuse.devices.source import Source, attempts_of, read_again
from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.system.threads import call_in_thread

log = logging.getLogger(__name__)

QUEUE_DEPTH = 64
"""Requests that may wait; further senders wait for a place."""
MAX_READ = 1 << 20
"""Bytes: neighbouring requests are merged up to here."""
COLD_READS = 8
"""Reads from storage under way at once, each on a thread."""
PATIENCE = 1.0
"""Seconds that a read gets at least when its turn comes late because others timed out."""
MAX_ABANDONED = 24
"""Threads that wait for storage after their read has timed out; with so many, further reads fail at once."""


@dataclass(eq=False, slots=True)
class _Request:
    extents: Sequence[Extent]
    parts: list[memoryview | None]
    missing: int
    done: trio.Event = field(default_factory=trio.Event)
    """Set when it has been answered, or its sender has stopped waiting."""
    error: ImageReadError | None = None

    def deliver(self, index: int, part: memoryview) -> None:
        self.parts[index] = part
        self.missing -= 1
        if not self.missing:
            self.done.set()

    def fail(self, error: ImageReadError) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class _Part(NamedTuple):
    """The purpose of a read: extent ``number`` of a request."""

    extent: Extent
    request: _Request
    number: int


class _Read(NamedTuple):
    """A read from storage, for one or several requests that are neighbours."""

    extent: Extent
    parts: list[_Part]
    since: float
    """When it began to wait for storage."""


class ImageReader:
    """Reads ranges of a ``Source`` on behalf of the layers above. Start ``run`` before calling ``read``.

    Args:
        io_timeout: seconds until a read that storage does not answer fails; ``math.inf`` to wait for ever. They run
            from when the read was asked for, or from storage's latest answer to any read if that came before the read
            was its turn: so slow storage does not fail, and storage that hangs costs every reader the same time,
            however many wait.
    """

    def __init__(self, source: Source, io_timeout: float = math.inf) -> None:
        self.size = source.size
        self.bytes_read = 0
        self.failures = 0
        self.source = source
        self.attempts = attempts_of(source)
        self._buffers = Buffers()
        self._counting = Lock()
        """Pending reads are counted in their threads."""
        self._io_timeout = io_timeout
        self._send, self._receive = trio.open_memory_channel[list[_Request]](QUEUE_DEPTH)
        self._under_way: set[_Request] = set()
        self._pending: deque[_Read] = deque()
        """Reads from storage that wait for their turn, in the order of the requests."""
        self._readers = 0
        """Tasks that take reads from there."""
        self._answered = -math.inf
        """When storage last answered."""
        self._again = trio.Semaphore(COLD_READS)
        """For reads of what was wrong, which are on threads as well."""
        self._threads = 0
        """The number of threads that read, abandoned ones included."""

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """The *unverified* bytes of each extent, in the order asked for.

        Args:
            quietly: makes no difference: nothing is verified here.

        Raises:
            ImageReadError: an I/O error, a range past the end of the file, a time-out, or the reader has ended.
        """
        if not extents:
            return []
        outcomes: list[list[memoryview] | ImageReadError] = []
        await self.read_several([extents], lambda number, outcome: outcomes.append(outcome))
        if isinstance(outcomes[0], ImageReadError):
            raise outcomes[0]
        return outcomes[0]

    async def read_several(
        self,
        requests: Sequence[Sequence[Extent]],
        deliver: Callable[[int, list[memoryview] | ImageReadError], None],
    ) -> None:
        """Several requests at once, none of them empty. ``deliver`` gets the number of each, and the result or error of
        its ``read``, in order and as soon as possible."""
        sent = [_Request(extents, [None] * len(extents), len(extents)) for extents in requests]
        self._under_way.update(sent)
        try:
            try:
                await self._send.send(sent)
            except trio.BrokenResourceError:
                for request in sent:
                    request.fail(ImageReadError(f"{self.source.name}: the reader has ended"))
            for number, request in enumerate(sent):
                await request.done.wait()
                deliver(number, request.error or [part for part in request.parts if part is not None])
        finally:
            self._under_way.difference_update(sent)
            for request in sent:
                # If the sender was cancelled, read nothing more for it.
                request.done.set()

    async def read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
        """The *unverified* bytes of each extent from elsewhere than last time, when they were wrong; None if there is
        no other place (``source.read_again``).

        Args:
            since: when the request began that needs them: its time-out is theirs, but for PATIENCE.

        Raises:
            ImageReadError: reading failed, or a time-out.
        """
        if not extents:
            return []
        parts: list[memoryview | None] = [None] * len(extents)
        errors: list[ImageReadError] = []

        async def read(number: int) -> None:
            try:
                async with self._again:
                    parts[number] = await self._read_once_more(extents[number])
            except ImageReadError as error:
                errors.append(error)
                scope.cancel()

        # The time is for all together, however many they are.
        soonest = trio.current_time() + min(self._io_timeout, PATIENCE)
        with trio.move_on_at(max(since + self._io_timeout, soonest)) as scope:
            await read(0)
            if parts[0] is not None:
                async with trio.open_nursery() as nursery:
                    for number in range(1, len(extents)):
                        nursery.start_soon(read, number)
        if errors:
            raise errors[0]
        if scope.cancelled_caught:
            raise timed_out(self.source.name, self._io_timeout)
        found = [part for part in parts if part is not None]
        return found if len(found) == len(parts) else None

    async def _read_once_more(self, extent: Extent) -> memoryview | None:
        if self._threads >= COLD_READS + MAX_ABANDONED:
            raise timed_out(self.source.name, self._io_timeout)
        self._threads += 1
        work = partial(read_again, self.source, extent.offset, extent.length)
        try:
            part = await call_in_thread(work, self._note_end)
        except (MemoryError, RuntimeError) as failure:
            why = str(failure) or "no memory left"
            raise ImageReadError(f"{self.source.name}: reading it again: {why}") from failure
        if part is None:
            return None
        self._count(len(part))
        return memoryview(part)

    def begin(self, extents: Sequence[Extent]) -> PendingRead:
        """The *unverified* bytes of each extent, if they are in the page cache when the pending read is called."""
        # One buffer for all of them: there are not many long ones.
        buffer, end = self._buffers.take(sum([extent.length for extent in extents])), 0
        parts = [buffer[end : (end := end + extent.length)] for extent in extents]
        return partial(self._read_cached, extents, parts)

    def _read_cached(self, extents: Sequence[Extent], buffers: list[memoryview]) -> list[memoryview] | None:
        read = self.source.read_cached
        if not all(read(extent.offset, buffer) for extent, buffer in zip(extents, buffers, strict=True)):
            return None
        self._count(sum(map(len, buffers)))
        return buffers

    def _count(self, length: int) -> None:
        with self._counting:
            self.bytes_read += length

    async def run(self) -> None:
        """Serve requests until cancelled; then pending ones fail."""
        try:
            await self._serve()
        finally:
            for request in self._under_way:
                request.fail(ImageReadError(f"{self.source.name}: the reader has ended"))

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery, self._receive:
            async for sent in self._receive:
                requests = [*sent]
                try:
                    while len(requests) < QUEUE_DEPTH:
                        requests += self._receive.receive_nowait()
                except trio.WouldBlock:
                    pass
                try:
                    self._answer_or_queue(requests)
                except (MemoryError, OSError):
                    # No room for a buffer: these requests fail, and the task goes on.
                    for request in requests:
                        request.fail(ImageReadError(f"{self.source.name}: no memory left to read into"))
                self._start_readers(nursery)

    def _start_readers(self, nursery: trio.Nursery) -> None:
        for _ in range(min(COLD_READS - self._readers, len(self._pending))):
            self._readers += 1
            nursery.start_soon(self._read_pending, nursery)

    def _answer_or_queue(self, requests: list[_Request]) -> None:
        """Answer what the page cache has by now, and let the rest wait for its turn."""
        now = trio.current_time()
        for extent, parts in _merge(_parts_of(requests)):
            buffer = self._buffers.take(extent.length)
            if self.source.read_cached(extent.offset, buffer):
                self._deliver(extent, buffer, parts)
            else:
                self._pending.append(_Read(extent, parts, now))

    async def _read_pending(self, nursery: trio.Nursery) -> None:
        """Read what waits, one read after the other, until nothing waits."""
        try:
            while self._pending:
                read = self._pending.popleft()
                # What was merged may have become many reads.
                self._start_readers(nursery)
                wanted = [part for part in read.parts if not part.request.done.is_set()]
                if len(wanted) == len(read.parts):
                    await self._read_cold(read)
                else:
                    # Read no more for requests that have failed, or were given up; read everything for their
                    # neighbours.
                    self._pending.extendleft(_Read(*rest, read.since) for rest in reversed(_merge(wanted)))
        finally:
            self._readers -= 1

    async def _read_cold(self, read: _Read) -> None:
        extent = read.extent
        may_retry = False
        error: ImageReadError
        try:
            now = trio.current_time()
            deadline = max(read.since, self._answered) + self._io_timeout
            if deadline <= now or self._threads >= COLD_READS + MAX_ABANDONED:
                raise trio.TooSlowError
            with trio.fail_at(max(deadline, now + min(self._io_timeout, PATIENCE))):
                unverified = await self._read_in_thread(extent)
            self._answered = trio.current_time()
        except trio.TooSlowError:
            error = StorageTimeout(
                f"{self.source.name}: no answer from storage within {self._io_timeout:g} s "
                f"({extent.length} bytes at {extent.offset})"
            )
        except ImageReadError as read_error:
            self._answered = trio.current_time()
            # One that was not answered in time would take as long again.
            may_retry = len(read.parts) > 1 and not isinstance(read_error, StorageTimeout)
            error = read_error
        except (MemoryError, RuntimeError) as failure:
            # RuntimeError: no thread starts, for want of memory or because of a limit on processes.
            why = str(failure) or "no memory left"
            error = ImageReadError(f"{self.source.name}: reading {extent.length} bytes at {extent.offset}: {why}")
        else:
            if len(unverified) == extent.length:
                self._deliver(extent, unverified, read.parts)
                return
            error = ImageReadError(
                f"{self.source.name}: {len(unverified)} bytes came for the {extent.length} at {extent.offset}"
            )
        self.failures += 1
        log.error("reader: %s", error)
        if may_retry:
            # Merged requests do not share each other's errors: try each again alone.
            now = trio.current_time()
            self._pending.extendleft(_Read(part.extent, [part], now) for part in reversed(read.parts))
            return
        for part in read.parts:
            part.request.fail(error)

    async def _read_in_thread(self, extent: Extent) -> bytes:
        self._threads += 1
        return await call_in_thread(partial(self.source.read, extent.offset, extent.length), self._note_end)

    def _note_end(self) -> None:
        self._threads -= 1

    def _deliver(self, extent: Extent, unverified: bytes | bytearray | memoryview, parts: list[_Part]) -> None:
        self._count(len(unverified))
        view = memoryview(unverified)
        for wanted, request, number in parts:
            start = wanted.offset - extent.offset
            request.deliver(number, view[start : start + wanted.length])


def _parts_of(requests: list[_Request]) -> list[_Part]:
    return [_Part(extent, request, number) for request in requests for number, extent in enumerate(request.extents)]


def _merge(parts: list[_Part]) -> list[tuple[Extent, list[_Part]]]:
    """The reads that serve parts of requests, each with those it is for."""
    wanted = sorted(parts, key=itemgetter(0))
    reads = [(extent, list[_Part]()) for extent in coalesce((part.extent for part in wanted), MAX_READ)]
    position = 0
    for part in wanted:
        while part.extent.end > reads[position][0].end:
            position += 1
        reads[position][1].append(part)
    return reads

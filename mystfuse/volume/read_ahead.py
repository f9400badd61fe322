"""Read-ahead: a file that is read from front to back is fetched, checked and decrypted in chunks longer than the
kernel's requests (128 KiB, unless we are root), since each has a cost besides its bytes. Where there are enough
processors, threads do that while the event loop answers from the chunks that are ready.

We do not push data into the page cache (``notify_store``): the kernel may be asking for the same page at that moment,
and would then wait for us with the page locked while we wait for the page.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

import trio

from mystfuse.devices.device import PendingRead
from mystfuse.system.workers import Workers
from mystfuse.volume.read_plan import Part, ReadPlan, join

CHUNK = 1 << 20
"""Bytes that are fetched together."""
DEPTH = 3
"""Chunks that threads fetch ahead."""
LONG = 128 << 10
"""Bytes: the kernel asks for so many at the beginning of a file only if a program reads much of it."""
MAX_STREAMS = 8
"""Readers with read-ahead at once: data ready for further ones is dropped."""


class _Chunk:
    """A range of a file from byte ``start`` on that is being read, and its state of the file system."""

    def __init__(self, start: int, plan: ReadPlan, pending: PendingRead, changes: int) -> None:
        self.start = start
        self.end = start + plan.length
        self.changes = changes
        self.is_ready = trio.Event()
        self.parts: list[Part] | None = None
        """Its bytes, when it is ready; None when it must be read in another way."""
        self._plan = plan
        self._pending = pending

    def run(self) -> None:
        """Fetch it. In any thread."""
        fetched = self._pending()
        if fetched is not None:
            self.parts = self._plan.parts(fetched, {})

    def take(self, start: int, end: int) -> list[Part]:
        """The bytes of its parts between two bytes of the file."""
        found: list[Part] = []
        position = self.start
        for part in self.parts or ():
            low, high = max(start - position, 0), min(end - position, len(part))
            if low < high:
                found.append(memoryview(part)[low:high])
            position += len(part)
        return found


class Stream:
    """How one reader, with a handle of its own, goes through a file."""

    def __init__(self) -> None:
        self.next = 0
        """Where it will go on, if it reads from front to back."""
        self.length = 0
        """Of the last request, in bytes."""
        self.chunks: deque[_Chunk] = deque()
        self.is_at_end = False
        self.failed = range(0)
        """Bytes of the last request that failed silently, because the reader may not need them."""

    def has_failed(self, offset: int, length: int) -> bool:
        """Whether some of these bytes were among them: then they are needed."""
        return offset < self.failed.stop and self.failed.start < offset + length


class ReadAhead:
    """Chunks in front of the readers of a volume.

    Args:
        begin: begins to read a range of a file; returns None if that needs waiting for storage.
        changes: returns a number that changes with each commit.
    """

    def __init__(
        self,
        begin: Callable[[int, int, int], tuple[ReadPlan, PendingRead] | None],
        changes: Callable[[], int],
        workers: Workers,
    ) -> None:
        self._begin = begin
        self._changes = changes
        self._workers = workers
        self._active: OrderedDict[Stream, None] = OrderedDict()

    async def read(self, stream: Stream, ino: int, offset: int, length: int) -> Part | None:
        """The requested bytes, if they are ready or about to be; None if they must be read without read-ahead."""
        if offset != stream.next:
            self.drop(stream)
            stream.next, stream.length, stream.is_at_end = offset + length, length, False
            return None
        stream.next += length
        # Requests about as long as a chunk gain only the threads' lead; in between, the kernel sends short ones.
        longest, stream.length = max(length, stream.length), length
        if (offset or length >= LONG) and (longest < CHUNK // 2 or self._workers.threads):
            self._go_ahead(stream, ino, offset)
        chunks = [chunk for chunk in stream.chunks if chunk.start < stream.next]
        if not chunks or chunks[0].start > offset or (chunks[-1].end < stream.next and not stream.is_at_end):
            return None
        while stream.chunks and stream.chunks[0].end <= offset + length:
            stream.chunks.popleft()
        for chunk in chunks:
            if not chunk.is_ready.is_set():
                await chunk.is_ready.wait()
        if any(chunk.parts is None or chunk.changes != self._changes() for chunk in chunks):
            self.drop(stream)
            return None
        return join([part for chunk in chunks for part in chunk.take(offset, offset + length)])

    def drop(self, stream: Stream) -> None:
        """Drop a reader's chunks: it goes elsewhere, or away."""
        stream.chunks.clear()
        self._active.pop(stream, None)

    def _go_ahead(self, stream: Stream, ino: int, offset: int) -> None:
        """Begin as many chunks as belong ahead of the reader; without threads, fetch the one that is needed now."""
        has_threads = self._workers.threads > 0
        far_enough = stream.next + (DEPTH * CHUNK if has_threads else 0)
        if stream.chunks and stream.chunks[-1].changes != self._changes():
            stream.chunks.clear()
        while not stream.is_at_end:
            front = stream.chunks[-1].end if stream.chunks else stream.next if has_threads else offset
            if front >= far_enough:
                break
            begun = self._begin(ino, front, CHUNK)
            if begun is None:
                break
            plan, pending = begun
            stream.is_at_end = plan.length < CHUNK
            if not plan.length:
                break
            chunk = _Chunk(front, plan, pending, self._changes())
            if has_threads:
                self._workers.submit(chunk.run, chunk.is_ready.set)
            else:
                chunk.run()
                chunk.is_ready.set()
            # Only now: a reader would wait for ever for a chunk that memory ran out for.
            stream.chunks.append(chunk)
            self._active[stream] = None
            self._active.move_to_end(stream)
            if len(self._active) > MAX_STREAMS:
                self.drop(next(iter(self._active)))

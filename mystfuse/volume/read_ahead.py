"""Reading ahead of whoever reads a file from front to back: what comes next is fetched, checked and decrypted in pieces
longer than the kernel asks for (128 KiB, unless we are root), since each costs something besides its bytes; where there
are processors enough, by threads, while the event loop hands over what is ready.

The kernel is not given anything that it has not asked for (``notify_store``): it may be asking for the same page at
that moment, and would then wait for us with the page locked while we wait for the page.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import trio

from mystfuse.system.workers import Workers

CHUNK = 1 << 20
"""Bytes that are fetched together."""
DEPTH = 3
"""Chunks that threads fetch ahead."""
LONG = 128 << 10
"""Bytes: the kernel asks for so many at the beginning of a file only if somebody reads much of it."""
MAX_STREAMS = 8
"""Readers that are read ahead of at once: what is ready for others is dropped."""


class Piece(Protocol):
    """A range of a file that is being fetched."""

    length: int
    """Bytes, perhaps fewer than were asked for: up to the end of the file."""

    def run(self) -> None:
        """Do the work. In any thread."""
        ...

    def read(self, start: int, end: int) -> bytes | memoryview | None:
        """A part of it, when ``run`` has come to its end; None if it cannot be had so, for whatever reason."""
        ...


class _Chunk:
    """A piece that begins at byte ``start`` of its file, and what the file system was like when it was begun."""

    def __init__(self, start: int, piece: Piece, changes: int) -> None:
        self.start = start
        self.end = start + piece.length
        self.piece = piece
        self.changes = changes
        self.is_ready = trio.Event()


class Stream:
    """How one reader, with a handle of its own, goes through a file."""

    def __init__(self) -> None:
        self.next = 0
        """Where it will go on, if it reads from front to back."""
        self.chunks: deque[_Chunk] = deque()
        self.is_at_end = False
        self.failed = range(0)
        """Bytes of the last request that failed without a word, because the reader may not need them."""

    def has_failed(self, offset: int, length: int) -> bool:
        """Whether some of these bytes were among them: then they are needed."""
        return offset < self.failed.stop and self.failed.start < offset + length


class ReadAhead:
    """Chunks in front of the readers of a volume.

    Args:
        begin: begins to fetch a range of a file; None if it cannot be had at once.
        changes: gives a number that is another one when something has been committed.
    """

    def __init__(
        self, begin: Callable[[int, int, int], Piece | None], changes: Callable[[], int], workers: Workers
    ) -> None:
        self._begin = begin
        self._changes = changes
        self._workers = workers
        self._active: OrderedDict[Stream, None] = OrderedDict()

    async def read(self, stream: Stream, ino: int, offset: int, length: int) -> bytes | memoryview | None:
        """What a reader asks for, if it is ready or about to be; None if it has to be read as if nobody had read
        ahead."""
        if offset != stream.next:
            self.drop(stream)
            stream.next, stream.is_at_end = offset + length, False
            return None
        stream.next += length
        if offset or length >= LONG:
            self._go_ahead(stream, ino, offset)
        chunks = [chunk for chunk in stream.chunks if chunk.start < stream.next]
        if not chunks or chunks[0].start > offset or (chunks[-1].end < stream.next and not stream.is_at_end):
            return None
        while stream.chunks and stream.chunks[0].end <= offset + length:
            stream.chunks.popleft()
        for chunk in chunks:
            if not chunk.is_ready.is_set():
                await chunk.is_ready.wait()
        parts: list[bytes | memoryview] = []
        for chunk in chunks:
            part = None
            if chunk.changes == self._changes():
                part = chunk.piece.read(max(offset - chunk.start, 0), min(offset + length, chunk.end) - chunk.start)
            if part is None:
                self.drop(stream)
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drop(self, stream: Stream) -> None:
        """Forget what is ready for a reader: it goes elsewhere, or away."""
        stream.chunks.clear()
        self._active.pop(stream, None)

    def _go_ahead(self, stream: Stream, ino: int, offset: int) -> None:
        """Begin as many chunks as are to be ahead of the reader; without threads, fetch the one that is needed now."""
        has_threads = self._workers.threads > 0
        far_enough = stream.next + (DEPTH * CHUNK if has_threads else 0)
        if stream.chunks and stream.chunks[-1].changes != self._changes():
            stream.chunks.clear()
        while not stream.is_at_end:
            front = stream.chunks[-1].end if stream.chunks else stream.next if has_threads else offset
            if front >= far_enough:
                break
            piece = self._begin(ino, front, CHUNK)
            if piece is None:
                break
            stream.is_at_end = piece.length < CHUNK
            if not piece.length:
                break
            chunk = _Chunk(front, piece, self._changes())
            stream.chunks.append(chunk)
            if has_threads:
                self._workers.submit(piece.run, chunk.is_ready.set)
            else:
                piece.run()
                chunk.is_ready.set()
            self._active[stream] = None
            self._active.move_to_end(stream)
            if len(self._active) > MAX_STREAMS:
                self.drop(next(iter(self._active)))

"""Reading ahead across the network: which bytes a reader that goes through the image will want next.

The fetcher sees misses alone: what the data file has, the daemon reads without it. So the first chunk of each window
is held back (``ChunkFetches``): its miss tells that the reader has come there, and the next window is fetched while
it reads this one. What is ahead of a reader is never more than what it has read in sequence until then: so at most
twice as much is fetched as is needed.

Whoever starts a program reads a little in many places, of which neighbours are wanted soon: so the first read of each
place brings along what follows it, about as much as the network sends in a round trip. CREDIT bounds that.
"""

from __future__ import annotations

from dataclasses import dataclass

_STREAMS = 32
"""Readers that are told apart."""
_FIRST = 128 << 10
"""Bytes that must have been read in sequence first."""
CREDIT = 16 << 20
"""Bytes that may be fetched along with first reads beyond as many as were read."""
_BEHIND, _BEYOND = 8 << 20, 64 << 10
"""How far, in bytes, a read may be before or behind the place where it is expected: requests overtake each other."""


@dataclass(slots=True)
class _Stream:
    position: int
    """The end of the furthest read."""
    read: int
    """Bytes read in sequence."""
    ahead: int
    """The end of what has been asked for."""


class ReadAhead:
    """The readers of one image.

    Args:
        size: bytes of the image.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams: list[_Stream] = []
        self._credit = CREDIT

    def after(self, offset: int, length: int, limit: int, near: int = 0) -> tuple[int, int]:
        """Note a read; returns offset and length of what to fetch besides it: nothing (length 0), or what follows it
        or what was fetched ahead before.

        Args:
            limit: bytes that a window may have.
            near: bytes to bring along with a first read.
        """
        end = offset + length
        self._credit = min(CREDIT, self._credit + length)
        stream = self._find(offset)
        if stream is None:
            self._streams.append(_Stream(end, length, end))
            if len(self._streams) > _STREAMS:
                del self._streams[0]
            if not near:
                return end, 0
            start, more = self._bring_along(self._streams[-1], near)
            before = min(near // 4, offset, self._credit)
            self._credit -= before
            return offset - before, start + more - offset + before
        self._streams.remove(stream)
        self._streams.append(stream)
        # What lies between was read without our hearing of it, as far as it was there.
        stream.read += max(0, end - stream.position) - max(0, offset - stream.ahead)
        stream.position = max(stream.position, end)
        stream.ahead = max(stream.ahead, end)
        if stream.read < _FIRST:
            return self._bring_along(stream, near)
        window = min(stream.read // 2, limit)
        if stream.ahead - stream.position > window:
            return end, 0
        start, stop = stream.ahead, min(stream.position + 2 * window, stream.ahead + limit, self._size)
        if stop <= start:
            return end, 0
        stream.ahead = stop
        return start, stop - start

    def _bring_along(self, stream: _Stream, near: int) -> tuple[int, int]:
        start, stop = stream.ahead, min(stream.position + min(near, self._credit), self._size)
        if stop <= start or stream.ahead - stream.position > near // 2:
            return stream.position, 0
        self._credit -= stop - start
        stream.ahead = stop
        return start, stop - start

    def _find(self, offset: int) -> _Stream | None:
        """The reader whose next read this is."""
        for stream in reversed(self._streams):
            behind = min(stream.read, _BEHIND)
            if stream.position - behind <= offset <= stream.ahead + _BEYOND:
                return stream
        return None

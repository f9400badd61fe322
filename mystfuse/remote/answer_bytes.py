"""The bytes of one answer, which come in parts: each once, in any order."""

from __future__ import annotations

from bisect import bisect_left

from mystfuse.remote.protocol import ProtocolError

_MAX_PIECES = 4096
"""Separate pieces at one time."""


class AnswerBytes:
    """The range of ``length`` bytes at ``offset`` of an image."""

    def __init__(self, offset: int, length: int) -> None:
        self.data = bytearray(length)
        self._offset = offset
        self._pieces: list[tuple[int, int]] = []
        """From where to where there are bytes, in order, none touching the next."""

    @property
    def is_whole(self) -> bool:
        return self._pieces == [(0, len(self.data))]

    def add(self, offset: int, part: bytes | memoryview) -> None:
        """Put the bytes at ``offset`` of the image into their place.

        Raises:
            ProtocolError: they lie outside the range, have come before, or leave too many gaps.
        """
        start = offset - self._offset
        end = start + len(part)
        if not 0 <= start < end <= len(self.data):
            raise ProtocolError("bytes from outside the range that was asked for")
        place = bisect_left(self._pieces, (start, start))
        first, last = place, place
        if place and self._pieces[place - 1][1] >= start:
            first = place - 1
        if place < len(self._pieces) and self._pieces[place][0] <= end:
            last = place + 1
        merged = self._pieces[first:last]
        if any(before < end and start < after for before, after in merged):
            raise ProtocolError("the same bytes twice")
        if len(self._pieces) >= _MAX_PIECES and not merged:
            raise ProtocolError("bytes in too many pieces")
        self._pieces[first:last] = [
            (min([start, *(piece[0] for piece in merged)]), max([end, *(piece[1] for piece in merged)]))
        ]
        self.data[start:end] = part

"""Reused long buffers: fresh memory would have to be cleared, and paged in, for every request.

They are whole pages: to 16 bytes behind a page boundary, where malloc puts large ones, AMD's Zen 3 copies at a fifth of
its speed.
"""

from __future__ import annotations

import mmap
from sys import getrefcount

LONG = 64 << 10
"""Bytes: shorter buffers are made anew, which costs less than looking for one."""
_SIZE = (1 << 20) + (64 << 10)
"""Bytes of a buffer that is kept: the longest request of the kernel, and the rest of the verity blocks at its ends and
between its pieces."""
_COUNT = 12


def _count_references(buffers: list[mmap.mmap], index: int) -> int:
    return getrefcount(buffers[index])


_REFERENCES_WHEN_FREE = _count_references([mmap.mmap(-1, mmap.PAGESIZE)], 0)
"""To a buffer that only the list refers to. Which of its own references Python counts depends on its version."""


class Buffers:
    """For a single thread."""

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []

    def take(self, length: int) -> memoryview:
        """A buffer of ``length`` bytes with any contents. It is free again when nothing refers to it, or to a part of
        it."""
        if not LONG <= length <= _SIZE:
            return memoryview(bytearray(length))
        for index in range(len(self._buffers)):
            if _count_references(self._buffers, index) == _REFERENCES_WHEN_FREE:
                return memoryview(self._buffers[index])[:length]
        buffer = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if len(self._buffers) < _COUNT:
            self._buffers.append(buffer)
        return memoryview(buffer)[:length]

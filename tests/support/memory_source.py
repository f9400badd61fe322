"""A source in memory that can fail and hang, and a reader over it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from mystfuse.devices.device import Extent
from mystfuse.devices.reader import ImageReader
from mystfuse.devices.source import Source
from mystfuse.errors import ImageReadError

CONTENT = random.Random(1).randbytes(1 << 20)


class MemorySource:
    """A source of ``CONTENT`` that records its reads, and misbehaves where told to.

    Args:
        cached: answer without waiting, as if everything were in the page cache.
        broken: byte ranges whose reads fail.
        hanging: byte ranges whose reads hang until ``release`` is set.
        delay: seconds that each cold read takes.
    """

    def __init__(
        self,
        *,
        cached: bool = False,
        broken: tuple[range, ...] = (),
        hanging: tuple[range, ...] = (),
        delay: float = 0,
        content: bytes = CONTENT,
    ) -> None:
        self.name = "memory"
        self.size = len(content)
        self.calls: list[Extent] = []
        self.most_at_once = 0
        self.release = threading.Event()
        self.content = content
        self._cached = cached
        self._broken = broken
        self._hanging = hanging
        self._delay = delay
        self._at_once = 0
        self._lock = threading.Lock()

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if not self._cached:
            return False
        self.calls.append(Extent(offset, len(buffer)))
        found = self.content[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found) == len(buffer)

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self.calls.append(Extent(offset, length))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if any(offset < place.stop and place.start < offset + length for place in self._hanging):
                self.release.wait(20)
            time.sleep(self._delay)
            if any(offset < place.stop and place.start < offset + length for place in self._broken):
                raise ImageReadError(f"{self.name}: reading {length} bytes at {offset}: Input/output error")
            if offset + length > len(self.content):
                raise ImageReadError(f"{self.name}: truncated")
            return self.content[offset : offset + length]
        finally:
            with self._lock:
                self._at_once -= 1

    def close(self) -> None:
        self.release.set()


@asynccontextmanager
async def running(source: Source, io_timeout: float = math.inf, patience: float = 15) -> AsyncIterator[ImageReader]:
    """A running reader. The block must end within ``patience`` seconds."""
    reader = ImageReader(source, io_timeout)
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            try:
                yield reader
            finally:
                source.close()
                nursery.cancel_scope.cancel()


async def read_all(reader: ImageReader, extents: list[Extent]) -> list[bytes | Exception]:
    """Each extent as a request of its own, all sent together; returns the bytes or the error of each."""
    results: list[bytes | Exception | None] = [None] * len(extents)

    async def read_one(index: int) -> None:
        try:
            (part,) = await reader.read([extents[index]])
            results[index] = bytes(part)
        except ImageReadError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(extents)):
            nursery.start_soon(read_one, index)
    return [result for result in results if result is not None]


def slice_of(extent: Extent, content: bytes = CONTENT) -> bytes:
    return content[extent.offset : extent.end]

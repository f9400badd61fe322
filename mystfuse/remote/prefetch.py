"""Fetching unasked, while and as far as nobody waits for anything else.

A trace has many small ranges, one after the other of which would leave the network idle: so as many bytes are under way
as the network holds, twice. While a daemon waits for what has not been prefetched, only once: then its answer comes at
most a round trip later.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

from mystfuse.remote.chunk_fetches import ChunkFetches
from mystfuse.remote.chunk_map import CHUNK, chunks_of
from mystfuse.remote.chunk_store import ChunkStore, runs
from mystfuse.remote.fetching import Fetches, in_flight, piece_size
from mystfuse.remote.request_slots import Purpose

_PASSES = 3
"""Times that all ranges are gone through, while something of them is missing."""
_MIN_BUDGET, _MAX_BUDGET = 512 << 10, 8 << 20
_MIN_BESIDE = 64 << 10
"""Bytes under way while somebody waits for something else."""
_AT_ONCE = 16
"""Requests."""
_PAUSE = 2.0
"""Seconds after a fetch that has failed."""
_BATCH = 2 << 20
"""Bytes that are collected, and fetched in the order in which they lie in the image."""
_GAP = 4
"""Chunks between two ranges that cost less than another request."""
_LOOK = 0.05
"""Seconds between looks at whether somebody waits."""
_LOOKED_AT = 1 << 16
"""Chunks."""
_PART_OF_CACHE = 3 / 4
"""More would push out what was prefetched first."""


class Prefetch:
    """Prefetches ranges of an image.

    Args:
        ranges: offsets and lengths, in this order; a length of -1 means to the end. Those behind the image's end are
            left out.
        limit: bytes of the cache.
    """

    def __init__(
        self,
        ranges: tuple[tuple[int, int], ...],
        limit: int,
        fetches: ChunkFetches,
        store: ChunkStore,
        transfers: Fetches,
    ) -> None:
        self._fetches, self._store, self._transfers = fetches, store, transfers
        self._ranges: list[range] = []
        left = int(limit * _PART_OF_CACHE) // CHUNK
        self.cut = 0
        """Bytes for which the cache has no room."""
        for offset, length in ranges:
            end = min(offset + length if length >= 0 else store.size, store.size)
            if 0 <= offset < end:
                chunks = chunks_of(offset, end - offset)
                self.cut += max(0, len(chunks) - left) * CHUNK
                self._ranges.append(chunks[:left])
                left -= len(self._ranges[-1])
        self.total = sum(map(len, self._ranges)) * CHUNK
        """Bytes for which it has room."""
        self._walked = 0
        self.is_over = False

    @property
    def done(self) -> int:
        """Bytes that are there, or could not be fetched so far."""
        if self.is_over:
            return self.total
        return max(0, self._walked - self._fetches.bytes_running[Purpose.PREFETCH])

    @property
    def missing(self) -> int:
        """Bytes that are not stored, when it is over."""
        parts = (
            chunks[start : start + _LOOKED_AT] for chunks in self._ranges for start in range(0, len(chunks), _LOOKED_AT)
        )
        return self.cut + sum(len(run) for part in parts for run in self._store.missing(part)) * CHUNK

    async def run(self) -> None:
        """Returns when all is stored, or does not come."""
        for _ in range(_PASSES):
            self._walked = 0
            failed = self._fetches.failed
            await self._walk()
            while self._fetches.running[Purpose.PREFETCH]:
                await self._wait()
            if failed == self._fetches.failed:
                break
            await trio.sleep(_PAUSE)
        self.is_over = True

    async def _walk(self) -> None:
        batch: set[int] = set()
        for piece in self._pieces():
            batch.update(piece)
            if len(batch) * CHUNK >= _BATCH:
                await self._fetch(batch)
        await self._fetch(batch)

    async def _fetch(self, batch: set[int]) -> None:
        """Fetch what has been collected as fast as the network takes it, neighbours in one request."""
        failed = self._fetches.failed
        most = max(1, piece_size(self._transfers) // CHUNK)
        stretches = _without_gaps(runs(sorted(batch)))
        for run in (part[first : first + most] for part in stretches for first in range(0, len(part), most)):
            while not self._room():
                await self._wait()
                if self._fetches.failed != failed:
                    failed = self._fetches.failed
                    await trio.sleep(_PAUSE)
            self._fetches.start(self._fetches.missing(run), Purpose.PREFETCH)
            self._walked += sum(chunk in batch for chunk in run) * CHUNK
            await trio.lowlevel.checkpoint()
        batch.clear()

    def _room(self) -> int:
        """Bytes that may be asked for now."""
        full = in_flight(self._transfers)
        running = self._fetches.running
        if running[Purpose.PREFETCH] >= _AT_ONCE or not self._store.is_storing:
            return 0
        alone = min(max(2 * full, _MIN_BUDGET), _MAX_BUDGET)
        budget = max(full, _MIN_BESIDE) if running[Purpose.WANTED] else alone
        return max(0, int(budget) - self._fetches.bytes_running[Purpose.PREFETCH])

    def _pieces(self) -> Iterator[range]:
        for chunks in self._ranges:
            most = max(1, piece_size(self._transfers) // CHUNK)
            for start in range(chunks.start, chunks.stop, most):
                yield range(start, min(start + most, chunks.stop))

    async def _wait(self) -> None:
        with trio.move_on_after(_LOOK):
            await self._fetches.changed.wait()


def _without_gaps(found: list[range]) -> list[range]:
    """Ascending runs of chunks, those with small gaps joined."""
    joined: list[range] = []
    for run in found:
        if joined and run.start - joined[-1].stop <= _GAP:
            joined[-1] = range(joined[-1].start, run.stop)
        else:
            joined.append(run)
    return joined

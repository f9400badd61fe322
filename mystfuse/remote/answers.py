"""Answering reads: from the store, which is filled as they need and as they will probably go on; or past it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

from mystfuse.remote import protocol
from mystfuse.remote.channel import Channel
from mystfuse.remote.chunk_fetches import ChunkFetches, fetch_bytes
from mystfuse.remote.chunk_map import chunks_of
from mystfuse.remote.chunk_store import ChunkStore, runs
from mystfuse.remote.fetching import Fetches, near_size, window_size
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.read_ahead import ReadAhead
from mystfuse.remote.request_slots import Purpose

_QUESTIONS = 256
"""Questions that are answered at a time; more wait in the socket."""
_PAST_STORE = 16
"""Answers at a time that are in memory, each of 1 MiB at most."""
_LONG = 512 << 10
"""Bytes from which on a window's first chunk is held back: shorter ones are not worth a question."""
_ATTEMPTS = 3
"""Times that chunks are fetched into the store, before they are fetched past it: another process may be evicting them,
or damaging the files."""


class Answers:
    """Answers to the reads of one image.

    Args:
        nursery: in which they are made.
        name: the image's, for messages.
        is_prefetching: whether ranges are being prefetched now.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        channel: Channel,
        transfers: Fetches,
        name: str,
        is_prefetching: Callable[[], bool],
    ) -> None:
        self._nursery, self._channel, self._transfers, self._name = nursery, channel, transfers, name
        self._is_prefetching = is_prefetching
        self._slots = trio.Semaphore(_QUESTIONS)
        self._past_store = trio.Semaphore(_PAST_STORE)
        self._store: ChunkStore
        self._fetches: ChunkFetches
        self._read_ahead: ReadAhead

    def use(self, store: ChunkStore, fetches: ChunkFetches) -> None:
        """From now on, this is the store, also for reads that are not answered yet."""
        self._store, self._fetches = store, fetches
        self._read_ahead = ReadAhead(store.size)

    async def start(self, reads: list[protocol.Read]) -> None:
        """Start to answer reads that came together; waits while there are too many."""
        self._begin(reads)
        for read in reads:
            if read.hint:
                continue
            await self._slots.acquire()
            self._nursery.start_soon(self._answer, read, deadline_in(read.timeout))

    def _begin(self, reads: list[protocol.Read]) -> None:
        """Start to fetch what a batch of questions needs and will probably need next: neighbours in one request."""
        if not self._store.is_storing:
            return
        size, limit, near = self._store.size, window_size(self._transfers), near_size(self._transfers)
        is_prefetching = self._is_prefetching()
        wanted: set[int] = set()
        ahead: set[int] = set()
        first: set[int] = set()
        for read in sorted(reads, key=lambda read: read.offset):
            if read.again or read.offset + read.length > size:
                continue
            chunks = chunks_of(read.offset, read.length)
            self._fetches.give_up(chunks)
            self._fetches.promote(chunks)
            for run in self._fetches.missing(chunks):
                wanted.update(run)
            start, length = self._read_ahead.after(read.offset, read.length, limit, near)
            if is_prefetching:
                # That knows better what will be wanted.
                continue
            if length:
                missing = self._fetches.missing(chunks_of(start, length))
                for run in missing:
                    ahead.update(run)
                if missing and length >= _LONG:
                    first.add(missing[0].start)
        for chunk in first - wanted:
            self._fetches.hold(chunk)
        self._fetches.start(runs(sorted(wanted | ahead)), Purpose.AHEAD, wanted)

    async def _answer(self, read: protocol.Read, deadline: float) -> None:
        try:
            with trio.move_on_at(deadline) as scope:
                await self._try_to_answer(read, deadline)
            if scope.cancelled_caught:
                text = f"{self._name}: no answer within {read.timeout:g} s"
                await self._channel.send(protocol.Failed(read.request, Failure.UNREACHABLE, text))
        finally:
            self._slots.release()

    async def _try_to_answer(self, read: protocol.Read, deadline: float) -> None:
        try:
            if read.offset + read.length > self._store.size:
                raise FetchError(Failure.UNUSABLE, f"{self._name}: a range behind its end")
            if not read.again and await self._is_stored(read):
                await self._channel.send(protocol.Stored(read.request))
                return
            async with self._past_store:
                data = await fetch_bytes(self._transfers, read.offset, read.length, deadline, read.again)
                if read.again:
                    # What the store has has not verified, or was lost.
                    self._store.write(read.offset, data)
                await self._send_parts(read, data)
        except FetchError as error:
            await self._channel.send(protocol.Failed(read.request, error.failure, str(error)))

    async def _is_stored(self, read: protocol.Read) -> bool:
        """Have a range fetched into the store; returns whether that worked. Raises FetchError."""
        chunks = chunks_of(read.offset, read.length)
        for _ in range(_ATTEMPTS):
            if not self._store.is_storing:
                return False
            is_shared = self._fetches.is_under_way(chunks)
            missing = self._fetches.missing(chunks)
            if not missing and not is_shared:
                return True
            self._fetches.start(missing, Purpose.WANTED)
            try:
                await self._fetches.wait(chunks)
            except FetchError as error:
                # One that somebody else began may have been at its end when this question came.
                if not is_shared or error.failure not in (Failure.UNREACHABLE, Failure.BUSY):
                    raise
        return not self._store.missing(chunks)

    async def _send_parts(self, read: protocol.Read, data: bytearray) -> None:
        view = memoryview(data)
        for start in range(0, len(data), protocol.MAX_PART):
            part = view[start : start + protocol.MAX_PART]
            await self._channel.send(protocol.Part(read.request, read.offset + start, part))
        await self._channel.send(protocol.Done(read.request))


def deadline_in(seconds: float | None) -> float:
    """The point in ``trio.current_time()``; None: never."""
    return inf if seconds is None else trio.current_time() + seconds

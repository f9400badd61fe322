"""Fetches under way: each chunk is fetched once, whoever wants it, and neighbours in one request.

Who wants chunks calls ``start``, then waits for them with ``wait``. Everything runs on one trio thread; between awaits
nothing changes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import inf
from typing import NamedTuple

import trio

from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.chunk_store import ChunkStore, runs
from mystfuse.remote.fetching import Fetches, piece_size
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.request_slots import Purpose, RequestSlots, Ticket

_POLL = (0.002, 0.1)
"""Seconds between looks at what another process fetches, at first and at most."""
_LOCK_PATIENCE = 3.0
"""Seconds without progress after which a chunk that another process has locked is fetched all the same; a quarter of
the time-out, if that is less."""
_LONGEST_LOCKED = 15.0
"""The same with progress, or half the time-out: others could let go of one chunk after the other."""
_DISTRUST = 60.0
"""Seconds in which locks do not count after that."""
_HELD = 64
"""Chunks held back at a time."""


class _Wait:
    """Somebody who waits for several chunks."""

    __slots__ = ("error", "left", "woken")

    def __init__(self, left: int) -> None:
        self.left = left
        self.woken = trio.Event()
        self.error: FetchError | None = None


class _UnderWay(NamedTuple):
    """A chunk that is being fetched."""

    ticket: Ticket
    waits: list[_Wait]


class ChunkFetches:
    """The fetches of one image.

    Args:
        nursery: in which they run.
        timeout: seconds that one may take; None: no limit.
    """

    def __init__(self, nursery: trio.Nursery, transfers: Fetches, store: ChunkStore, timeout: float | None) -> None:
        self._nursery, self._transfers, self._store = nursery, transfers, store
        self._timeout = timeout
        limit = inf if timeout is None else timeout
        self._lock_patience, self._longest_locked = min(_LOCK_PATIENCE, limit / 4), min(_LONGEST_LOCKED, limit / 2)
        self._under_way: dict[int, _UnderWay] = {}
        """By chunk."""
        self._to_hold: set[int] = set()
        self._held: dict[int, bytes] = {}
        """Chunks that have come and are held back; those that have been for the longest time come first."""
        self._slots = RequestSlots()
        self._distrust_until = -inf
        self.running = dict.fromkeys(Purpose, 0)
        """Requests for each purpose."""
        self.bytes_running = dict.fromkeys(Purpose, 0)
        """Bytes that these have asked for."""
        self.failed = 0
        """Fetches that have failed."""
        self.changed = trio.Event()
        """Replaced and set when a fetch has ended."""

    def missing(self, chunks: range) -> list[range]:
        """The runs of chunks that are neither stored nor being fetched."""
        return [run for stored in self._store.missing(chunks) for run in _without(stored, self._under_way)]

    def start(
        self, missing: Iterable[range], purpose: Purpose, wanted: set[int] | frozenset[int] = frozenset()
    ) -> None:
        """Start to fetch chunks, ascending runs of them, of which none is under way.

        Args:
            purpose: of those that are not in a request with ``wanted`` ones.
        """
        most = max(1, piece_size(self._transfers) // CHUNK)
        for run in _joined(missing):
            count = -(-len(run) // most)
            for index in range(count):
                piece = run[len(run) * index // count : len(run) * (index + 1) // count]
                why = Purpose.WANTED if any(chunk in wanted for chunk in piece) else purpose
                ticket = Ticket(why)
                self._under_way.update((chunk, _UnderWay(ticket, [])) for chunk in piece)
                # At once: the task itself may begin later than whoever looks whether all is done.
                self.running[why] += 1
                self.bytes_running[why] += len(piece) * CHUNK
                self._nursery.start_soon(self._run, piece, why, ticket)

    def promote(self, chunks: range) -> None:
        """Somebody waits for these chunks: those that are queued have their turn now."""
        for chunk in chunks:
            if (under_way := self._under_way.get(chunk)) is not None:
                self._slots.promote(under_way.ticket)

    def hold(self, chunk: int) -> None:
        """Hold a chunk back that is being fetched: the store does not get it until somebody asks for it, which shows
        that a reader has come there."""
        self._to_hold.add(chunk)

    def give_up(self, chunks: range) -> None:
        """Store those of the chunks that are held back."""
        for chunk in chunks:
            self._to_hold.discard(chunk)
            if (data := self._held.pop(chunk, None)) is not None and self._store.write(chunk * CHUNK, data):
                self._store.mark(range(chunk, chunk + 1))

    def _without_held(self, chunks: range) -> list[range]:
        """Runs of chunks that are in the data file, without those that are to be held back, which are taken out of it
        before the map has them."""
        held = [chunk for chunk in chunks if chunk in self._to_hold] if self._to_hold else []
        kept: list[range] = []
        for chunk in held:
            self._to_hold.discard(chunk)
            # Somebody waits for it: the reader is there.
            data = b"" if self._is_awaited(chunk) else self._store.take(chunk)
            if data:
                self._held[chunk] = data
                kept.append(range(chunk, chunk + 1))
        for run in kept:
            self._settle(run, None)
        while len(self._held) > _HELD:
            oldest = next(iter(self._held))
            self.give_up(range(oldest, oldest + 1))
        return _minus(chunks, kept) if kept else [chunks]

    async def wait(self, chunks: range) -> None:
        """Wait until none of these chunks is being fetched any more.

        Raises:
            FetchError: of one that could not be fetched.
        """
        under_way = [chunk for chunk in chunks if chunk in self._under_way]
        if not under_way:
            return
        wait = _Wait(len(under_way))
        for chunk in under_way:
            self._under_way[chunk].waits.append(wait)
        self.promote(chunks)
        try:
            await wait.woken.wait()
        finally:
            for chunk in under_way:
                if (now := self._under_way.get(chunk)) is not None and wait in now.waits:
                    now.waits.remove(wait)
        if wait.error is not None:
            raise wait.error

    def _is_awaited(self, chunk: int) -> bool:
        return chunk in self._under_way and bool(self._under_way[chunk].waits)

    def is_under_way(self, chunks: range) -> bool:
        """Whether one of the chunks is being fetched."""
        return any(chunk in self._under_way for chunk in chunks)

    async def _run(self, piece: range, purpose: Purpose, ticket: Ticket) -> None:
        size = len(piece) * CHUNK
        error: FetchError | None = None
        try:
            await self._fetch_or_wait(piece, ticket)
        except FetchError as failure:
            error = failure
            self.failed += 1
        finally:
            self.running[purpose] -= 1
            self.bytes_running[purpose] -= size
            self._to_hold.difference_update(piece)
            self._settle(piece, error)
            self.changed.set()
            self.changed = trio.Event()

    async def _fetch_or_wait(self, piece: range, ticket: Ticket) -> None:
        """Fetch the chunks that nobody else is fetching, then wait for the others, without a slot."""
        locks = self._store.locks
        if locks is None or trio.current_time() < self._distrust_until:
            async with self._slots.taken(ticket):
                await self._fetch_runs([piece])
            return
        longest = trio.current_time() + self._longest_locked
        patience = trio.current_time() + self._lock_patience
        pause = _POLL[0]
        left = [piece]
        while left:
            async with self._slots.taken(ticket):
                claimed = [run for part in left for run in locks.claim(part)]
                try:
                    # Others may have stored them since they were found to be missing.
                    await self._fetch_runs([run for part in claimed for run in self._store.missing(part)])
                finally:
                    for part in claimed:
                        locks.release(part)
            for part in claimed:
                self._settle(part, None)
            before = sum(map(len, left))
            left = [run for part in left for rest in _minus(part, claimed) for run in self._store.missing(rest)]
            for part in _minus(piece, left):
                self._settle(part, None)
            if not left:
                return
            if ticket.purpose is not Purpose.WANTED:
                # Nobody here needs them now, and they are coming.
                return
            if sum(map(len, left)) < before:
                patience, pause = trio.current_time() + self._lock_patience, _POLL[0]
            if trio.current_time() > min(patience, longest):
                self._distrust_until = trio.current_time() + _DISTRUST
                async with self._slots.taken(ticket):
                    await self._fetch_runs(left)
                return
            await trio.sleep(pause)
            pause = min(pause * 1.5, _POLL[1])

    async def _fetch_runs(self, chunks: list[range]) -> None:
        for run in chunks:
            await self._fetch(run)

    async def _fetch(self, chunks: range) -> None:
        """Fetch a run of chunks in one request, and store them as they come."""
        store = self._store
        complete = chunks.start
        with trio.CancelScope() as scope:

            async def receive(offset: int, data: memoryview) -> None:
                nonlocal complete
                if not store.write(offset, data):
                    # Whoever waits fetches what it needs past the store.
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                end = offset + len(data)
                until = chunks.stop if end >= store.size else end // CHUNK
                if until > complete:
                    for done in self._without_held(range(complete, until)):
                        if store.mark(done):
                            self._settle(done, None)
                    complete = until

            offset = chunks.start * CHUNK
            length = min(chunks.stop * CHUNK, store.size) - offset
            deadline = inf if self._timeout is None else trio.current_time() + self._timeout
            await self._transfers.fetch(offset, length, receive, deadline=deadline)

    def _settle(self, chunks: range, error: FetchError | None) -> None:
        """Chunks are not under way any more."""
        for chunk in chunks:
            under_way = self._under_way.pop(chunk, None)
            for wait in under_way.waits if under_way is not None else ():
                wait.left -= 1
                wait.error = wait.error or error
                if not wait.left or error is not None:
                    wait.woken.set()


async def fetch_bytes(transfers: Fetches, offset: int, length: int, deadline: float, again: bool = False) -> bytearray:
    """A range, fetched past every store.

    Raises:
        FetchError: it cannot be fetched, or not in time.
    """
    data = bytearray(length)

    async def receive(place: int, part: memoryview) -> None:
        start = place - offset
        data[start : start + len(part)] = part

    await transfers.fetch(offset, length, receive, deadline=deadline, again=again)
    if len(data) != length:
        raise FetchError(Failure.UNUSABLE, "more bytes than were asked for")
    return data


def _without(chunks: range, some: Container[int]) -> list[range]:
    return runs(chunk for chunk in chunks if chunk not in some)


def _minus(chunks: range, others: Iterable[range]) -> list[range]:
    """The runs of chunks that are in none of the others, which are ascending."""
    left: list[range] = []
    start = chunks.start
    for other in others:
        if other.start > start:
            left.append(range(start, min(other.start, chunks.stop)))
        start = max(start, other.stop)
    if start < chunks.stop:
        left.append(range(start, chunks.stop))
    return [run for run in left if run]


def _joined(parts: Iterable[range]) -> list[range]:
    """Ascending runs, neighbours together."""
    joined: list[range] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined

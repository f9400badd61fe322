"""The process that fetches: answers the questions of a daemon (``protocol``) from an image elsewhere."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import trio

from mystfuse.errors import MystfuseError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.remote import origin, protocol
from mystfuse.remote.answers import Answers, deadline_in
from mystfuse.remote.channel import Channel
from mystfuse.remote.chunk_fetches import ChunkFetches
from mystfuse.remote.chunk_map import CHUNK, chunks_of
from mystfuse.remote.chunk_store import ChunkStore
from mystfuse.remote.confine_fetcher import ReplacedFiles
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.fetching import Fetches
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.prefetch import Prefetch
from mystfuse.remote.request_slots import Purpose
from mystfuse.remote.store_keeper import StoreKeeper
from mystfuse.remote.supervisor import Ending

TAIL = 16 << 10
"""Bytes of the image's end that opening asks for."""
_FIRST_OF_IMAGE, _FIRST_OF_TREE = 32 << 10, 96 << 10
_LOOK_AT_FILES = 5.0
"""Seconds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between attempts to open an image once more."""

OpenTransfers = Callable[[Callable[[int, str], None]], AbstractAsyncContextManager[Fetches]]
"""Makes the image's ``Transfers``; the argument is called with a level of ``logging`` and a line for the log."""


class Worker:
    """Serves one image on one socket until that is closed at the other end.

    Args:
        connection: non-blocking, SOCK_SEQPACKET.
        memory: what a worker before this one may have left.
    """

    def __init__(
        self, connection: socket.socket, config: FetcherConfig, open_transfers: OpenTransfers, memory: Memory
    ) -> None:
        self._channel = Channel(connection)
        self._config = config
        self._open_transfers = open_transfers
        self._keeper = StoreKeeper(config, memory, lambda line: self._channel.note(logging.WARNING, line))
        self._prefetch: Prefetch | None = None
        self._prefetching = trio.CancelScope()
        self._ending = Ending.CLOSED

    async def run(self) -> Ending:
        """Returns when the other end is closed, or when the image cannot be served, or not by this process."""
        try:
            async with self._open_transfers(self._channel.note) as transfers, trio.open_nursery() as nursery:
                self._transfers, self._nursery = transfers, nursery
                self._answers = Answers(nursery, self._channel, transfers, self._name, self._is_prefetching)
                try:
                    opened = await self._open()
                    self._use(self._keeper.open(opened))
                except FetchError as error:
                    await self._channel.send(protocol.Failed(0, error.failure, str(error)))
                    return Ending.GIVEN_UP
                except OSError as error:
                    text = f"{self._name}: nothing can be kept, not even in memory: {error.strerror}"
                    await self._channel.send(protocol.Failed(0, Failure.UNUSABLE, text))
                    return Ending.GIVEN_UP
                self._keep(opened.size - len(opened.tail), opened.tail)
                self._keep(0, opened.head)
                self._begin_with_first_blocks(opened)
                self._plan_prefetch()
                await self._send_opened(opened)
                nursery.start_soon(self._keep_store, opened)
                nursery.start_soon(self._run_prefetch)
                nursery.start_soon(self._watch_files)
                await self._listen()
                nursery.cancel_scope.cancel()
        except (FetchError, MystfuseError, ImportError) as error:
            failure = error.failure if isinstance(error, FetchError) else Failure.UNUSABLE
            if self._keeper.was_open:
                # A file of the configuration is being replaced, say: the next worker may find it.
                self._channel.note(logging.WARNING, str(error))
                return Ending.FAILED
            await self._channel.send(protocol.Failed(0, failure, str(error)))
            return Ending.GIVEN_UP
        return self._ending

    async def _open(self) -> origin.Opened:
        """Raises FetchError; if a worker before this one has opened the image, it tries until that works."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._transfers.open(TAIL, deadline_in(self._config.io_timeout))
            except FetchError as error:
                if not self._keeper.was_open or error.failure is Failure.REPLACED:
                    raise
                self._channel.note(logging.WARNING, str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _send_opened(self, opened: origin.Opened) -> None:
        tail = opened.tail[-protocol.MAX_TAIL :]
        message = protocol.Opened(opened.size, opened.validator, self._name, tail)
        await self._channel.send(message, self._store.for_reader)

    def _use(self, store: ChunkStore) -> None:
        self._store = store
        self._fetches = ChunkFetches(self._nursery, self._transfers, store, self._config.io_timeout)
        self._answers.use(store, self._fetches)

    def _begin_with_first_blocks(self, opened: origin.Opened) -> None:
        """Fetch what every daemon reads first, before it can ask: the file system's superblock, and the hash tree's
        upper levels. Where these are, nobody vouches for yet."""
        places = [(0, _FIRST_OF_IMAGE)]
        with suppress(MystfuseError):
            places.append((Fssig.parse(opened.tail[-FSSIG_SIZE:]).hash_offset, _FIRST_OF_TREE))
        for offset, length in places:
            length = min(length, opened.size - offset)
            if length > 0:
                self._fetches.start(self._fetches.missing(chunks_of(offset, length)), Purpose.AHEAD)

    async def _watch_files(self) -> None:
        files = ReplacedFiles(self._config)
        while True:
            await trio.sleep(_LOOK_AT_FILES)
            if files.are_there():
                break
        self._ending = Ending.RENEWED
        self._nursery.cancel_scope.cancel()

    async def _keep_store(self, opened: origin.Opened) -> None:
        await self._keeper.keep(self._store)
        self._prefetching.cancel()
        # The old one stays open: fetches into it may be under way.
        self._use(self._keeper.open_in_memory(opened))
        await self._send_opened(opened)
        await self._keeper.keep(self._store)

    def _plan_prefetch(self) -> None:
        if self._config.prefetch:
            limit = self._config.cache_limit
            self._prefetch = Prefetch(self._config.prefetch, limit, self._fetches, self._store, self._transfers)
            if self._prefetch.cut:
                self._channel.note(
                    logging.WARNING, f"{self._name}: the cache has no room for all that is to be prefetched"
                )

    async def _run_prefetch(self) -> None:
        if self._prefetch is not None:
            with self._prefetching:
                await self._prefetch.run()

    @property
    def _name(self) -> str:
        from mystfuse.remote.address import parse_address

        return parse_address(self._config.addresses[0]).name

    def _keep(self, offset: int, data: bytes) -> None:
        """Store the whole chunks among bytes that came along."""
        store = self._store
        first = -(-offset // CHUNK)
        end = offset + len(data)
        last = len(store.chunks) if end >= store.size else end // CHUNK
        if first < last and store.write(first * CHUNK, data[first * CHUNK - offset : last * CHUNK - offset]):
            store.mark(range(first, last))

    async def _listen(self) -> None:
        """Take questions until the other end is closed."""
        while (questions := await self._channel.questions()) is not None:
            for question in questions:
                if isinstance(question, protocol.Status):
                    await self._channel.send(protocol.StatusIs(question.request, self._counters()))
            await self._answers.start([question for question in questions if isinstance(question, protocol.Read)])

    def _counters(self) -> dict[str, int]:
        return {
            **self._transfers.counters,
            "bytes_stored": self._store.written,
            "round_trip_microseconds": int(self._transfers.round_trip * 1e6),
            "throughput": int(self._transfers.throughput),
            "process": os.getpid(),
            "in_directory": int(self._keeper.is_in_directory),
            **self._prefetch_counters(),
        }

    def _is_prefetching(self) -> bool:
        return self._prefetch is not None and not self._prefetch.is_over

    def _prefetch_counters(self) -> dict[str, int]:
        prefetch = self._prefetch
        if prefetch is None:
            return {}
        return {
            "prefetch_total": prefetch.total,
            "prefetch_done": prefetch.done,
            "prefetch_is_over": int(prefetch.is_over),
            "prefetch_missing": prefetch.missing if prefetch.is_over else 0,
        }

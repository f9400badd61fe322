"""A stand-in for a fetcher: a thread at the other end of the socket, which does what a test tells it to."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mystfuse.remote.chunk_map import CHUNK, ENTRY, chunks_of
from mystfuse.remote.client import FetcherClient
from mystfuse.remote.protocol import (
    MAX_MESSAGE,
    MAX_PART,
    Done,
    Opened,
    Part,
    Question,
    Status,
    StatusIs,
    Stored,
    parse_question,
)

NAME = "https://example.org/app.img"


class StandInFetcher:
    """Serves an image from memory: READ is answered by STORED, with ``again`` or ``sends_parts`` by PARTs.

    Args:
        content: the image; it may be changed.
        data, map_file: descriptors, for a cache that is there already.
    """

    def __init__(
        self, connection: socket.socket, content: bytearray, data: int | None = None, map_file: int | None = None
    ) -> None:
        self.connection = connection
        self.content = content
        chunks = -(-len(content) // CHUNK)
        self.data = os.memfd_create("data") if data is None else data
        self.map = os.memfd_create("map") if map_file is None else map_file
        os.ftruncate(self.data, len(content))
        os.ftruncate(self.map, chunks * ENTRY)
        self.asked: list[Question] = []
        self.elsewhere: bytes | None = None
        """What is sent when bytes are asked for again; None: ``content``."""
        self.sends_parts = False
        self.validator = "1"
        self.tail = b""
        """What OPENED says of the image's end."""
        self.delay = 0.0
        self.answers: Callable[[Question], bool] | None = None
        """Asked first: True if it has answered by itself."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lock = threading.Lock()

    def start(self) -> None:
        self._thread.start()

    def open(self, size: int | None = None, files: Sequence[int] | None = None) -> None:
        opened = Opened(len(self.content) if size is None else size, self.validator, NAME, self.tail)
        self.send(opened.pack(), (self.data, self.map) if files is None else files)

    def send(self, packet: bytes, files: Sequence[int] = ()) -> None:
        with self._lock:
            socket.send_fds(self.connection, [packet], files)

    def store(self, offset: int, length: int) -> None:
        """Put the chunks of a range into the data file, and then into the map."""
        chunks = chunks_of(offset, length)
        start = chunks.start * CHUNK
        os.pwrite(self.data, self.content[start : chunks.stop * CHUNK], start)
        minute = max(1, int(time.time() // 60))
        os.pwrite(self.map, struct.pack(f"<{len(chunks)}I", *[minute] * len(chunks)), chunks.start * ENTRY)

    def answer(self, question: Question) -> None:
        if isinstance(question, Status):
            self.send(StatusIs(question.request, {"requests": len(self.asked)}).pack())
        elif question.again or self.sends_parts:
            end = question.offset + question.length
            content = self.elsewhere if question.again and self.elsewhere is not None else self.content
            for start in range(question.offset, end, MAX_PART):
                part = bytes(content[start : min(start + MAX_PART, end)])
                self.send(Part(question.request, start, part).pack())
            self.send(Done(question.request).pack())
        else:
            self.store(question.offset, question.length)
            self.send(Stored(question.request).pack())

    def _run(self) -> None:
        with suppress(OSError):
            while packet := self.connection.recv(MAX_MESSAGE):
                question = parse_question(packet)
                self.asked.append(question)
                time.sleep(self.delay)
                if self.answers is None or not self.answers(question):
                    self.answer(question)

    def end(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(30)
        self.connection.close()
        for descriptor in (self.data, self.map):
            os.close(descriptor)


@contextmanager
def stand_in_fetcher(
    content: bytes, opens: bool = True, data: int | None = None, map_file: int | None = None
) -> Iterator[tuple[FetcherClient, StandInFetcher]]:
    """A client, and the fetcher at its other end.

    Args:
        opens: whether it says OPENED, and serves.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fetcher = StandInFetcher(theirs, bytearray(content), data, map_file)
    client = FetcherClient(ours, NAME)
    if opens:
        fetcher.open()
        fetcher.start()
    try:
        yield client, fetcher
    finally:
        fetcher.end()
        client.close()

"""The daemon's side of a fetcher's socket, simply: one question at a time."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from mystfuse.remote import protocol
from mystfuse.remote.chunk_map import ENTRY, chunks_of


class FetcherDaemon:
    """Asks a fetcher.

    Args:
        content: the image's bytes, which stand for the hash tree: what differs is asked for once more.
    """

    def __init__(self, connection: socket.socket, content: bytes = b"") -> None:
        self.connection = connection
        self.content = content
        self.notes: list[str] = []
        self.data = self.map = -1
        self.opened: protocol.Opened
        self.times_opened = self.again = 0
        self._request = 0
        while self.data < 0:
            answer = self.receive()
            assert isinstance(answer, protocol.Opened), answer

    def receive(self) -> protocol.Answer:
        """The next answer that is no note. Raises EOFError."""
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self.connection, protocol.MAX_MESSAGE, 2)
            except ConnectionResetError:
                packet = b""
            if not packet:
                raise EOFError
            answer = protocol.parse_answer(packet)
            if isinstance(answer, protocol.Opened):
                self.close()
                self.opened, (self.data, self.map) = answer, descriptors
                self.times_opened += 1
                return answer
            assert not descriptors
            if not isinstance(answer, protocol.Note):
                return answer
            self.notes.append(answer.text)

    def status(self) -> dict[str, int]:
        """What the fetcher counts."""
        request = self._ask(protocol.Status(self._next()))
        while True:
            answer = self.receive()
            if isinstance(answer, protocol.StatusIs) and answer.request == request:
                return answer.counters
            if isinstance(answer, protocol.Opened):
                request = self._ask(protocol.Status(self._next()))

    def read(self, offset: int, length: int, again: bool = False, timeout: float | None = None) -> bytes:
        """Have a range fetched, whatever the data file has; it need not be right unless ``again``."""
        request = self._ask(protocol.Read(self._next(), offset, length, again, timeout))
        data = bytearray(length)
        while True:
            answer = self.receive()
            if isinstance(answer, protocol.Opened):
                request = self._ask(protocol.Read(self._next(), offset, length, again, timeout))
            elif getattr(answer, "request", None) != request:
                continue
            elif isinstance(answer, protocol.Failed):
                raise OSError(answer.text)
            elif isinstance(answer, protocol.Stored):
                assert not again
                return os.pread(self.data, length, offset)
            elif isinstance(answer, protocol.Done):
                return bytes(data)
            else:
                assert isinstance(answer, protocol.Part)
                data[answer.offset - offset : answer.offset - offset + len(answer.data)] = answer.data

    def verified(self, offset: int, length: int) -> bytes:
        """A range as a daemon reads it: from the data file, by the fetcher, and by it once more."""
        wanted = self.content[offset : offset + length]
        if has_chunks(self.map, offset, length) and os.pread(self.data, length, offset) == wanted:
            return wanted
        data = self.read(offset, length)
        if data != wanted:
            self.again += 1
            data = self.read(offset, length, again=True)
        assert data == wanted, f"wrong bytes at {offset}"
        return data

    def close(self) -> None:
        """Close the files, not the connection."""
        for descriptor in (self.data, self.map):
            if descriptor >= 0:
                os.close(descriptor)
        self.data = self.map = -1

    def _next(self) -> int:
        self._request += 1
        return self._request

    def _ask(self, question: protocol.Question) -> int:
        try:
            self.connection.send(question.pack())
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None
        return question.request


def worker_of(supervisor: int) -> int | None:
    """The process ID of a fetcher's worker, if there is one now."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(children[0]) if children else None


def has_chunks(map_fd: int, offset: int, length: int) -> bool:
    """Whether the map says that the data file has a whole range. Raises OSError."""
    chunks = chunks_of(offset, length)
    entries = os.pread(map_fd, len(chunks) * ENTRY, chunks.start * ENTRY)
    return len(entries) == len(chunks) * ENTRY and 0 not in struct.unpack(f"<{len(chunks)}I", entries)

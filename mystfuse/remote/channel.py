"""The fetcher's end of the socket: messages to the daemon, and questions from it."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio

from mystfuse.remote import protocol

_AT_ONCE = 256
"""Questions that are taken together."""


class Channel:
    """A socket of kind SOCK_SEQPACKET, non-blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = trio.Lock()

    async def send(self, message: protocol.Answer, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message; if the other end is closed, that is for ``questions`` to notice."""
        packet = message.pack()
        async with self._sending:
            while True:
                try:
                    if descriptors:
                        socket.send_fds(self._socket, [packet], descriptors)
                    else:
                        self._socket.send(packet)
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError:
                    return

    def note(self, level: int, line: str) -> None:
        """Send a line for the log, or drop it where that would take time."""
        with suppress(OSError):
            self._socket.send(protocol.Note(level, line).pack())

    async def questions(self) -> list[protocol.Question] | None:
        """Wait for questions; returns all that are there. None: the other end is closed, or says what is no question,
        and is not to be listened to."""
        await trio.lowlevel.wait_readable(self._socket)
        found: list[protocol.Question] = []
        for _ in range(_AT_ONCE):
            try:
                packet = self._socket.recv(protocol.MAX_MESSAGE)
                if not packet:
                    return None
                found.append(protocol.parse_question(packet))
            except BlockingIOError:
                break
            except (OSError, protocol.ProtocolError):
                return None
        return found

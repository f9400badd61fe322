"""The other ends of a fast path: the test is the kernel, libfuse, and the task that takes what is for Python."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from mystfuse.fastpath.fast_path import FastPath
from mystfuse.fuse.protocol import IN_HEADER, OUT_HEADER

LARGEST = (1 << 20) + 8192
OF_LIBFUSE, OF_PYTHON = errno.EDOM, errno.ERANGE
"""The errors that stand for their answers."""
_PATIENCE = 60.0
NO_REPLY = (2, 42)
"""FORGET and BATCH_FORGET."""


class StandInKernel:
    """It gives each request a number, and collects the replies. ``init`` takes the place of an ``InitRequest``."""

    def __init__(self) -> None:
        self._ours, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._libfuse, self._other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._device, self._libfuse, self._other_end):
            # More than an ordinary user may have.
            with suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, 32, 2 * LARGEST)  # SO_SNDBUFFORCE
        self.init: Any = SimpleNamespace(device=self._device.fileno(), other_end=self._other_end.fileno(), offered=0)
        self.replies: dict[int, list[bytes]] = {}
        self._arrived = threading.Condition()
        self._next = 1
        self._threads: list[threading.Thread] = []

    @contextmanager
    def serving(self, fast_path: FastPath) -> Iterator[None]:
        """Start the fast path, and stop it at the end."""
        fast_path.start()
        has_ended = threading.Event()
        self._threads = [
            threading.Thread(target=target)
            for target in (self._collect, self._be_libfuse, lambda: self._be_python(fast_path, has_ended))
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            has_ended.set()
            # Before the fast path's memory goes.
            self._threads.pop().join()
            fast_path.stop()
            for end in (self._ours, self._libfuse):
                end.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join()
            for end in (self._ours, self._device, self._libfuse, self._other_end):
                end.close()

    def send(self, requests: Sequence[bytes]) -> list[int]:
        """Send requests, each with a number of its own; returns those of the ones that have replies."""
        numbers = []
        for request in requests:
            with self._arrived:
                number, self._next = self._next, self._next + 1
            self._ours.send(request[:8] + number.to_bytes(8, "little") + request[16:])
            if int.from_bytes(request[4:8], "little") not in NO_REPLY:
                numbers.append(number)
        return numbers

    def send_raw(self, messages: Sequence[bytes]) -> None:
        """Send messages as they are; nobody waits for replies to them."""
        for message in messages:
            if message:
                self._ours.send(message)

    def wait(self, numbers: Sequence[int]) -> list[bytes]:
        """The replies to some requests; AssertionError: one is missing, or came twice."""
        with self._arrived:
            is_complete = self._arrived.wait_for(lambda: all(number in self.replies for number in numbers), _PATIENCE)
            assert is_complete, f"no reply to {[number for number in numbers if number not in self.replies]}"
            found = [self.replies.pop(number) for number in numbers]
        assert all(len(replies) == 1 for replies in found), "a request has two replies"
        return [replies[0] for replies in found]

    def _collect(self) -> None:
        while message := _receive(self._ours):
            length, _, unique = OUT_HEADER.unpack_from(message)
            assert length == len(message)
            with self._arrived:
                self.replies.setdefault(unique, []).append(message)
                self._arrived.notify_all()

    def _be_libfuse(self) -> None:
        while message := _receive(self._libfuse):
            header = IN_HEADER.unpack_from(message)
            if header[1] not in NO_REPLY:
                # The fast path may have been stopped meanwhile.
                with suppress(BrokenPipeError):
                    self._libfuse.send(OUT_HEADER.pack(OUT_HEADER.size, -OF_LIBFUSE, header[2]))

    def _be_python(self, fast_path: FastPath, has_ended: threading.Event) -> None:
        while not has_ended.is_set():
            request = fast_path.take(10_000)
            if request is None:
                continue
            header = IN_HEADER.unpack_from(fast_path.content(request))
            fast_path.done(request)
            if header[1] not in NO_REPLY:
                fast_path.reply(header[2], OF_PYTHON)


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(LARGEST)
    except OSError:
        return b""


def in_threads(functions: Sequence[Callable[[], None]]) -> None:
    """Run functions side by side; raises the first error."""
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

"""Our end of the fetcher's socket: questions of any thread, each answered or failed in time.

It has no thread of its own, so that it crosses a fork: of the threads that wait, one receives for all. Whatever comes
is hostile: sizes are bounded, ranges checked, descriptors counted. The bytes are unverified, as those of any storage.
"""

from __future__ import annotations

import array
import logging
import math
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Condition, Lock
from typing import NamedTuple

from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.remote.answer_bytes import AnswerBytes
from mystfuse.remote.origin import Failure
from mystfuse.remote.protocol import (
    MAX_MESSAGE,
    MAX_REQUEST,
    Answer,
    Done,
    Failed,
    Note,
    Opened,
    Part,
    ProtocolError,
    Read,
    Status,
    StatusIs,
    Stored,
    parse_answer,
)

log = logging.getLogger(__name__)

_FILES = 2
"""Descriptors that come with OPENED: of data and map."""
_MAX_NOTES, _NOTES_A_SECOND = 50, 1.0
"""Lines for the log that may come at once, and that may come again with time."""
MARGIN = 1.0
"""Seconds, or a tenth of the time if that is less: before we give up, the fetcher can say why it has."""
_LONGEST_WAIT = 3600.0
"""Seconds."""


class _Message(NamedTuple):
    """What has been received."""

    answer: Answer
    files: list[int]
    """Descriptors, ours from now on; none of OPENED where those that we have stay."""


class _Waiting:
    """A question, or waiting for the image to be open, and what has come for it; guarded by the client's lock."""

    def __init__(self, question: Read | Status | None, deadline: float, lock: Lock) -> None:
        self.question = question
        self.deadline = deadline
        self.changed = Condition(lock)
        """Notified when it has been answered, and when it is its turn to receive."""
        self.is_answered = False
        self.failure: Failed | None = None
        self.counters: dict[str, int] = {}
        self.bytes: AnswerBytes | None = None

    def packet(self, request: int) -> bytes:
        """The question under a number; it says how much time is left now."""
        if not isinstance(self.question, Read):
            return Status(request).pack()
        left = None
        if self.deadline != math.inf:
            left = max(self.deadline - time.monotonic(), 0.001)
            left -= min(MARGIN, left / 10)
        return Read(request, self.question.offset, self.question.length, self.question.again, left).pack()

    def take(self, answer: Part | Done | Stored | Failed | StatusIs) -> None:
        """Raises ProtocolError for what is no answer to the question."""
        if isinstance(answer, Failed):
            self.failure = answer
        elif isinstance(answer, StatusIs) and isinstance(self.question, Status):
            self.counters = answer.counters
        elif isinstance(answer, Part) and isinstance(self.question, Read):
            if self.bytes is None:
                self.bytes = AnswerBytes(self.question.offset, self.question.length)
            self.bytes.add(answer.offset, answer.data)
            return
        elif isinstance(answer, Done) and isinstance(self.question, Read) and self.bytes and self.bytes.is_whole:
            pass
        elif isinstance(answer, Stored) and isinstance(self.question, Read) and not self.question.again:
            self.bytes = None
        else:
            raise ProtocolError(f"{type(answer).__name__} is no answer to {type(self.question).__name__}")
        self.is_answered = True


class FetcherClient:
    """A connection to a fetcher, for one image.

    Args:
        connection: of kind SOCK_SEQPACKET; ours from now on. A process that is forked while nobody waits may go on
            with it, if its parent does not.
        name: the image's, for messages.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self.name = name
        self.data_file = self.map_file = -1
        """Descriptors, from ``wait_until_open`` on: see ``chunk_map``. They keep their numbers when a fetcher that has
        been started anew brings other files."""
        self.accepts: Callable[[Sequence[int]], bool] = lambda files: True
        """Asked about files that a fetcher which has been started anew brings; if not, the old ones stay."""
        self.is_one_version = False
        """Whether the image must not be another one of the same size when a fetcher has been started anew: nothing
        else would tell."""
        self._connection = connection
        self._lock = Lock()
        self._opened: Opened | None = None
        self._waiting: dict[int, _Waiting] = {}
        """By the number of the question; without a question, a negative one."""
        self._number, self._process = 0, 0
        self._is_receiving = False
        """Whether one of those that wait receives."""
        self._end: ImageReadError | None = None
        """Why there will be no more answers."""
        self._notes, self._last_note = float(_MAX_NOTES), time.monotonic()

    @property
    def connection(self) -> int:
        """The socket's descriptor, for hints."""
        return self._connection.fileno()

    @property
    def descriptors(self) -> frozenset[int]:
        """Those that a daemon keeps over its fork."""
        return frozenset({self._connection.fileno(), self.data_file, self.map_file} - {-1})

    def wait_until_open(self, deadline: float) -> Opened:
        """What is known of the image.

        Args:
            deadline: by ``time.monotonic``.

        Raises:
            ImageReadError: it cannot be opened; StorageTimeout: not in time.
        """
        if self._opened is None:
            self._wait(_Waiting(None, deadline, self._lock))
        assert self._opened is not None
        return self._opened

    def read(self, offset: int, length: int, again: bool, deadline: float) -> bytearray | None:
        """The range, which is MAX_READ bytes long at most; None: it is in the data file now.

        Args:
            again: past every cache; it is never None then.
            deadline: by ``time.monotonic``.

        Raises:
            ImageReadError: it cannot be fetched; StorageTimeout: not in time.
        """
        answer = self._wait(_Waiting(Read(1, offset, length, again), deadline, self._lock))
        return answer.bytes.data if answer.bytes is not None else None

    def counters(self, deadline: float) -> dict[str, int]:
        """What the fetcher has counted; raises as ``read``."""
        return self._wait(_Waiting(Status(1), deadline, self._lock)).counters

    def close(self) -> None:
        """Close our end of the connection: when no process has it any more, the fetcher ends. Those who wait fail."""
        with self._lock:
            self._end = self._end or ImageReadError(f"{self.name}: closed")
            if self._is_receiving:
                # Wakes the thread. Nobody else has the connection then: it has not crossed a fork.
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
            for descriptor in (self.data_file, self.map_file):
                if descriptor >= 0:
                    os.close(descriptor)
            self.data_file = self.map_file = -1
            for waiting in self._waiting.values():
                waiting.changed.notify()

    def _wait(self, waiting: _Waiting) -> _Waiting:
        """Ask, and wait for the answer."""
        with self._lock:
            if self._end is not None:
                raise self._end
            request = self._next_number() if waiting.question is not None else -id(waiting)
            self._waiting[request] = waiting
        try:
            if waiting.question is not None:
                self._send(waiting.packet(request), waiting.deadline)
            with self._lock:
                while not waiting.is_answered:
                    self._wait_or_receive(waiting)
        finally:
            with self._lock:
                self._forget(waiting)
        if waiting.failure is not None:
            raise self._error(waiting.failure)
        return waiting

    def _next_number(self) -> int:
        if self._process != os.getpid():
            # Answers to what the other process has asked are none of ours.
            self._process, self._number = os.getpid(), int.from_bytes(os.urandom(4), "little")
        self._number = self._number % MAX_REQUEST + 1
        return self._number

    def _forget(self, waiting: _Waiting) -> None:
        """Under the lock: nobody waits for this any more. Another one receives, if nobody does."""
        for request in [request for request, other in self._waiting.items() if other is waiting]:
            del self._waiting[request]
        if not self._is_receiving:
            for other in self._waiting.values():
                if not other.is_answered:
                    other.changed.notify()
                    break

    def _wait_or_receive(self, waiting: _Waiting) -> None:
        """Under the lock: wait a while, or receive one message for whoever it is for."""
        left = waiting.deadline - time.monotonic()
        if self._end is not None:
            raise self._end
        if left <= 0:
            raise StorageTimeout(f"{self.name}: no answer from the fetcher in time")
        if waiting.question is None and self._opened is not None:
            waiting.is_answered = True
            return
        if self._is_receiving:
            waiting.changed.wait(min(left, _LONGEST_WAIT))
            return
        self._is_receiving = True
        try:
            self._lock.release()
            try:
                message = self._receive(min(left, _LONGEST_WAIT))
            finally:
                self._lock.acquire()
            packets = self._deliver(message) if message is not None else []
            self._lock.release()
            try:
                for packet in packets:
                    self._send(packet, waiting.deadline)
            finally:
                self._lock.acquire()
        except (ProtocolError, OSError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            self._end = self._end or ImageReadError(f"{self.name}: the fetcher cannot be used: {what}")
        finally:
            self._is_receiving = False
            if self._end is not None:
                for other in self._waiting.values():
                    other.changed.notify()

    def _send(self, packet: bytes, deadline: float) -> None:
        """Send a question, without the lock.

        Raises:
            StorageTimeout: the fetcher takes none.
        """
        while True:
            try:
                self._connection.send(packet, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                left = min(deadline - time.monotonic(), _LONGEST_WAIT)
                if left <= 0:
                    raise StorageTimeout(f"{self.name}: the fetcher takes no more questions") from None
                self._poll(select.POLLOUT, left)
            except OSError:
                # It has ended, or been closed: what it said last, or its end, is still to be received.
                return

    def _poll(self, events: int, seconds: float) -> bool:
        """Whether it is ready, or closed: then the next call says so."""
        descriptor = self._connection.fileno()
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, events)
        return bool(poll.poll(math.ceil(seconds * 1000)))

    def _receive(self, seconds: float) -> _Message | None:
        """The next message, without the lock; None if none comes in time.

        Raises:
            ProtocolError: it is none, or comes with the wrong files.
            OSError: the connection failed.
        """
        if not self._poll(select.POLLIN, seconds):
            return None
        size = array.array("i").itemsize * _FILES
        try:
            packet, others, flags, _ = self._connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(size))
        except BlockingIOError:
            return None
        files = array.array("i")
        for level, kind, data in others:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files.frombytes(data[: len(data) // files.itemsize * files.itemsize])
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a message that is too long")
            if not packet:
                raise ProtocolError("it has ended")
            answer = parse_answer(packet)
            if isinstance(answer, Note):
                self._note(answer)
            if len(files) != (_FILES if isinstance(answer, Opened) else 0):
                raise ProtocolError(f"{len(files)} descriptors with {type(answer).__name__}")
            for file in files:
                os.set_inheritable(file, False)
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise ProtocolError("a descriptor that is none of a regular file")
            # Without the lock: looking at a file may take any time.
            is_welcome = not files or self.data_file < 0 or self.accepts(files)
        except BaseException:
            for file in files:
                os.close(file)
            raise
        if not is_welcome:
            for file in files:
                os.close(file)
            return _Message(answer, [])
        return _Message(answer, list(files))

    def _note(self, note: Note) -> None:
        now = time.monotonic()
        self._notes = min(self._notes + (now - self._last_note) * _NOTES_A_SECOND, _MAX_NOTES)
        self._last_note = now
        if self._notes >= 1:
            self._notes -= 1
            log.log(note.level, "fetcher: %s", note.text)

    def _deliver(self, message: _Message) -> list[bytes]:
        """Under the lock: hand a message to whoever waits for it; returns what is to be asked again.

        Raises:
            ProtocolError: it is impossible.
        """
        answer = message.answer
        match answer:
            case Opened():
                return self._open(answer, message.files)
            case Note():
                return []
            case Failed(request=0):
                self._end = self._error(answer)
                return []
        waiting = self._waiting.get(answer.request)
        # Without one it is late, or for another process.
        if waiting is not None:
            waiting.take(answer)
            if waiting.is_answered:
                waiting.changed.notify()
        return []

    def _open(self, opened: Opened, files: list[int]) -> list[bytes]:
        """Under the lock: the image is open, for the first time, or by a new fetcher; then all is asked again."""
        if self._end is not None or (self._opened is not None and self._is_replaced(self._opened, opened)):
            for file in files:
                os.close(file)
            raise ProtocolError(f"the image has {opened.size} bytes now, or another version: it has been replaced")
        if self.data_file < 0:
            self.data_file, self.map_file = files
        elif files:
            for new, old in zip(files, (self.data_file, self.map_file), strict=True):
                os.dup2(new, old, inheritable=False)
                os.close(new)
        is_first, self._opened = self._opened is None, opened
        again = [waiting for waiting in self._waiting.values() if not waiting.is_answered]
        packets: list[bytes] = []
        for waiting in again:
            if waiting.question is None:
                waiting.is_answered = True
                waiting.changed.notify()
            elif not is_first:
                # Under new numbers: the old ones may be answered as well.
                self._forget(waiting)
                waiting.bytes = None
                request = self._next_number()
                self._waiting[request] = waiting
                packets.append(waiting.packet(request))
        return packets

    def _is_replaced(self, before: Opened, now: Opened) -> bool:
        return before.size != now.size or (
            self.is_one_version and (before.validator != now.validator or before.tail != now.tail)
        )

    def _error(self, failed: Failed) -> ImageReadError:
        kind = StorageTimeout if failed.failure in (Failure.UNREACHABLE, Failure.BUSY) else ImageReadError
        return kind(failed.text or failed.failure.value).about(self.name)

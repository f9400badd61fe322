"""Log lines written in a thread, so that who logs never waits for who reads them.

The standard library's ``QueueListener`` starts its thread by ``threading.Thread.start``, which waits for ever for one
that has no memory to begin; and its ``stop`` waits for ever for a reader that does not read.
"""

from __future__ import annotations

import _thread
import logging
import os
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Records that wait to be written; what comes then is dropped, and counted."""
PATIENCE = 1.0
"""Seconds that the thread gets to begin, and to write what is left at the end."""
_STACK = 256 << 10
"""Bytes: all of it would be locked with what an encrypted mount locks."""


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor; holds nothing meanwhile that the end of the process would wait for, as the
    buffer of a file does."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write it whole, however long that takes; what cannot be written is lost."""
        line = memoryview(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        with suppress(OSError):
            while line:
                line = line[os.write(self._descriptor, line) :]


class LogThread(logging.Handler):
    """Hands records on to ``sink``, in their order, in a thread; until ``start`` they are kept."""

    def __init__(self, sink: logging.Handler) -> None:
        super().__init__(sink.level)
        self._sink = sink
        self._waiting: SimpleQueue[logging.LogRecord | threading.Event] = SimpleQueue()
        self._dropped = 0
        # Whoever takes it decides: the thread that begins, or who gives up waiting for that.
        self._ticket = [None]
        self._is_direct = False

    def start(self) -> None:
        """Start the thread; the process must be confined by now, and forks no more. Without one, records are written by
        who logs them."""
        begun = threading.Event()

        def serve() -> None:
            try:
                self._ticket.pop()
            except IndexError:
                return
            begun.set()
            self._write_for_ever()

        usual = threading.stack_size(_STACK)
        try:
            _thread.start_new_thread(serve, ())
            begun.wait(PATIENCE)
        except (RuntimeError, MemoryError) as error:
            log.info("log lines are written without a thread: %s", error)
        finally:
            threading.stack_size(usual)
        self._do_without_unless_begun()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it for the thread, unless too many wait already."""
        try:
            if self._is_direct:
                self._sink.emit(record)
            elif self._waiting.qsize() >= MAX_WAITING:
                self._dropped += 1
            else:
                self._tell_dropped()
                # As it is now: what it is about may change until it is written.
                record.msg, record.args = record.getMessage(), None
                self._waiting.put(record)
        except Exception:
            # No memory, say. It must not be the end of who logs.
            self._dropped += 1

    def written(self) -> threading.Event:
        """An event that is set when all is written that was logged before; ask for one at the end, too: what was
        dropped is told then."""
        self._do_without_unless_begun()
        event = threading.Event()
        self.acquire()
        try:
            if self._is_direct:
                event.set()
            else:
                self._tell_dropped()
                self._waiting.put(event)
        finally:
            self.release()
        return event

    def _do_without_unless_begun(self) -> None:
        try:
            self._ticket.pop()
        except IndexError:
            return
        self.acquire()
        try:
            self._is_direct = True
            while not self._waiting.empty():
                self._write(self._waiting.get())
        finally:
            self.release()

    def _tell_dropped(self) -> None:
        if self._dropped:
            message = f"lines dropped here, for which there was no room: {self._dropped}"
            self._waiting.put(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))
            self._dropped = 0

    def _write_for_ever(self) -> None:
        while True:
            try:
                self._write(self._waiting.get())
            except Exception:
                # No memory, say. There must go on being somebody who writes.
                time.sleep(0.1)

    def _write(self, item: logging.LogRecord | threading.Event) -> None:
        if isinstance(item, threading.Event):
            item.set()
        else:
            self._sink.emit(item)

"""Log lines are written in a thread, so that the code that logs never waits for a slow reader.

Not by the standard library's ``QueueListener``: it starts its thread by ``threading.Thread.start``, which waits for
ever if the thread has no memory to begin, and its ``stop`` waits for ever for a reader that does not read.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from mystfuse.system.pool import begin_thread

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Records that wait to be written; further ones are dropped, and counted."""
PATIENCE = 1.0
"""Seconds for the thread to begin, and to write the last lines at the end."""
_STACK = 256 << 10
"""Bytes: an encrypted mount locks all of its memory."""


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor, without a buffer whose lock the end of the process would wait for."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line whole, however long that takes; on an error the rest is lost."""
        line = memoryview(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        with suppress(OSError):
            while line:
                line = line[os.write(self._descriptor, line) :]


class LogThread(logging.Handler):
    """Passes records to ``sink``, in order, in a thread; keeps them until ``start``."""

    def __init__(self, sink: logging.Handler) -> None:
        super().__init__(sink.level)
        self._sink = sink
        self._waiting: SimpleQueue[logging.LogRecord | threading.Event] = SimpleQueue()
        self._dropped = 0
        self._give_up: Callable[[], bool] = lambda: True
        """Called to do without the thread: True if it has not begun, and never will."""
        self._is_direct = False

    def start(self) -> None:
        """Start the thread; the process must be confined by now, and not fork any more. If no thread begins, records
        are written where they are logged."""
        begun = threading.Event()

        def serve() -> None:
            begun.set()
            self._write_for_ever()

        usual = threading.stack_size(_STACK)
        try:
            self._give_up = begin_thread(serve)
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
                # Formatted now: its arguments may change until it is written.
                record.msg, record.args = record.getMessage(), None
                self._waiting.put(record)
        except Exception:
            # MemoryError, for example. The code that logs must go on.
            self._dropped += 1

    def written(self) -> threading.Event:
        """An event that is set when all records logged before are written. At the end it also writes the count of
        dropped lines."""
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
        if self._is_direct or not self._give_up():
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
            message = f"log lines dropped here (the reader is too slow): {self._dropped}"
            self._waiting.put(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))
            self._dropped = 0

    def _write_for_ever(self) -> None:
        while True:
            try:
                self._write(self._waiting.get())
            except Exception:
                # MemoryError, for example. The thread must go on.
                time.sleep(0.1)

    def _write(self, item: logging.LogRecord | threading.Event) -> None:
        if isinstance(item, threading.Event):
            item.set()
        else:
            self._sink.emit(item)

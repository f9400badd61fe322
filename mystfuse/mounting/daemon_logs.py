"""The places of log lines: stderr while there is one, and for a daemon a log file or syslog."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from mystfuse.errors import one_line
from mystfuse.mounting.log_thread import PATIENCE, DescriptorHandler, LogThread

_SYSLOG = Path("/dev/log")


class RateLimit(logging.Filter):
    """Lets each place in the code log 50 lines in 10 seconds: a hostile image must not make us fill a disk."""

    LINES = 50
    SECONDS = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        now = time.monotonic()
        start, count = self._windows.get(place, (now, 0))
        if now - start > self.SECONDS:
            start, count = now, 0
        self._windows[place] = (start, count + 1)
        return count < self.LINES


class _OneLine(logging.Formatter):
    """Records in the form of the command line's own messages: one line each, the level named from WARNING up."""

    def format(self, record: logging.LogRecord) -> str:
        record.level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return one_line(super().format(record)) if not record.exc_info else super().format(record)


class _StartUp(logging.Filter):
    """Keeps messages of devices off stderr until the mount is ready: until then each of their errors ends the start,
    whose one line contains it. What a fetcher says meanwhile is why it takes long, or that its cache is not used."""

    is_over = False

    def filter(self, record: logging.LogRecord) -> bool:
        return self.is_over or not record.name.startswith("mystfuse.devices")


class DaemonLogs:
    """A daemon's logs. Once the threads run, code that logs does not wait for the writing."""

    def __init__(self, foreground: bool, log_file: int | None) -> None:
        """Log to stderr (in the background warnings only, until it is detached from the terminal) and to the descriptor
        ``log_file``, or, in the background, to syslog."""
        self._start_up = _StartUp()
        self._threads: list[LogThread] = []
        self._stderr: logging.Handler
        if foreground:
            # Not 2 itself, which is another file while libfuse starts.
            self._stderr = self._in_thread(_stderr_handler(DescriptorHandler(os.dup(2))))
        else:
            # Without a thread: while a caller reads this, there is no mount to delay.
            self._stderr = _stderr_handler(logging.StreamHandler())
            self._stderr.setLevel(logging.WARNING)
        self._stderr.addFilter(self._start_up)
        handlers = [self._stderr]
        if log_file is not None:
            handler: logging.Handler = DescriptorHandler(log_file)
            handler.setFormatter(logging.Formatter("%(asctime)s mystfuse[%(process)d] %(levelname)s: %(message)s"))
            handlers.append(self._in_thread(handler))
        elif not foreground and _SYSLOG.is_socket():
            # Imported here: it takes 3 ms, and most commands do not log to syslog.
            from logging.handlers import SysLogHandler

            handler = SysLogHandler(str(_SYSLOG), SysLogHandler.LOG_DAEMON)
            handler.setFormatter(logging.Formatter("mystfuse[%(process)d]: %(levelname)s: %(message)s"))
            handlers.append(self._in_thread(handler))
        self._foreground = foreground
        _log_to(handlers)

    def _in_thread(self, handler: logging.Handler) -> LogThread:
        thread = LogThread(handler)
        self._threads.append(thread)
        return thread

    def start_threads(self) -> None:
        """Call this when the process is confined; it writes the lines logged before."""
        for thread in self._threads:
            thread.start()

    def start_up_is_over(self) -> None:
        """The mount is ready: a caller reads no further."""
        self._start_up.is_over = True
        if not self._foreground:
            logging.getLogger("mystfuse").removeHandler(self._stderr)

    def catch_up_stderr(self) -> None:
        """Wait a moment for the lines on stderr: other output follows them."""
        if isinstance(self._stderr, LogThread):
            self._stderr.written().wait(PATIENCE)

    def catch_up(self) -> None:
        """Wait a moment for all lines; at the end."""
        deadline = time.monotonic() + PATIENCE
        # First the wait for all of them: one that hangs takes no time from the others.
        for event in [thread.written() for thread in self._threads]:
            event.wait(max(0.0, deadline - time.monotonic()))


def log_to_stderr() -> None:
    """Log to stderr alone, without a thread, and without lines of the devices: the command's last line has their
    errors."""
    handler = _stderr_handler(logging.StreamHandler())
    handler.addFilter(_StartUp())
    _log_to([handler])


def _stderr_handler(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(_OneLine("mystfuse: %(level)s%(message)s"))
    handler.setLevel(logging.INFO)
    return handler


def _log_to(handlers: list[logging.Handler]) -> None:
    logger = logging.getLogger("mystfuse")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Those of ``log_to_stderr``, where a daemon has been started since.
    for earlier in logger.handlers[:]:
        logger.removeHandler(earlier)
    for each in handlers:
        # Not on the logger, whose filters do not see lines of its children; and each handler counts by itself.
        each.addFilter(RateLimit())
        logger.addHandler(each)
    logging.getLogger("pyfuse3").setLevel(logging.ERROR)

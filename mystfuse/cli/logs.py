"""Where log lines go: stderr while there is one, and for a daemon a file or the system's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from mystfuse.cli.text import one_line

_SYSLOG = Path("/dev/log")


class RateLimit(logging.Filter):
    """Lets each place in the code log 50 lines in 10 seconds: what reads a hostile image must not fill a disk."""

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
    """Records as the command line's own lines look: one line each, the level named from warnings up."""

    def format(self, record: logging.LogRecord) -> str:
        record.level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return one_line(super().format(record)) if not record.exc_info else super().format(record)


class _StartUp(logging.Filter):
    """Keeps what the devices log off stderr until the mount stands: until then each of their errors ends the start, and
    is told in the one line that this ends with."""

    is_over = False

    def filter(self, record: logging.LogRecord) -> bool:
        return self.is_over or not record.name.startswith("mystfuse.devices")


def set_up_logging(foreground: bool, log_file: int | None) -> Callable[[], None]:
    """Log to stderr (a daemon: warnings only, until it lets go of the terminal) and to the descriptor ``log_file``, or,
    as a daemon, to syslog.

    Returns:
        A function to call when the mount stands.
    """
    stderr = logging.StreamHandler()
    stderr.setFormatter(_OneLine("mystfuse: %(level)s%(message)s"))
    start_up = _StartUp()
    stderr.addFilter(start_up)
    stderr.setLevel(logging.INFO if foreground else logging.WARNING)
    handlers: list[logging.Handler] = [stderr]
    if log_file is not None:
        handler: logging.Handler = logging.StreamHandler(
            open(log_file, "a", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        )
        handler.setFormatter(logging.Formatter("%(asctime)s mystfuse[%(process)d] %(levelname)s: %(message)s"))
        handlers.append(handler)
    elif not foreground and _SYSLOG.is_socket():
        # Only here: it takes 3 ms to import, and most commands do not log there.
        from logging.handlers import SysLogHandler

        handler = SysLogHandler(str(_SYSLOG), SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter("mystfuse[%(process)d]: %(levelname)s: %(message)s"))
        handlers.append(handler)
    logger = logging.getLogger("mystfuse")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for each in handlers:
        # Not on the logger, whose filters do not see what its children log; and each counts for itself.
        each.addFilter(RateLimit())
        logger.addHandler(each)
    logging.getLogger("pyfuse3").setLevel(logging.ERROR)

    def start_up_is_over() -> None:
        start_up.is_over = True

    return start_up_is_over

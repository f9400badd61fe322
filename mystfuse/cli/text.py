"""Messages for people: always one line each."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from typing import NoReturn

from mystfuse.errors import ExitStatus, one_line

_FILE_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def file_type(mode: int) -> str:
    """The kind of a file in words, as every ``--json`` has it."""
    return _FILE_TYPES.get(stat.S_IFMT(mode), "unknown")


def complain(message: str, status: ExitStatus) -> ExitStatus:
    """Write one line to stderr, for any message, and return the status."""
    with suppress(OSError):
        print(f"mystfuse: {one_line(message)}", file=sys.stderr)
    return status


def warn(message: str) -> None:
    """Write one line of warning to stderr."""
    complain(f"warning: {message}", ExitStatus.DONE)


def remark(message: str) -> None:
    """Write one line to stderr that is neither an error nor a warning: where stdout is another program's."""
    complain(message, ExitStatus.DONE)


def say(message: str) -> None:
    """Write one line to stdout; an error of writing does not matter."""
    try:
        print(one_line(message), flush=True)
    except OSError:
        discard_stdout()


def discard_stdout() -> None:
    """Drop the unwritten output of stdout: Python would try to write it once more at exit, and fail."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def leave(status: int) -> NoReturn:
    """Flush stdout and stderr, and exit at once.

    Python would first finalize all imported modules. In the parent of a daemon that copies each page that it touches,
    and takes 10 to 50 ms.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if os.environ.get("MYSTFUSE_DEBUG"):
        # Profilers write their results at exit.
        sys.exit(status)
    os._exit(status)

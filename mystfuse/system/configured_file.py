"""Small files that users name: keys, root hashes, passphrases, settings, packages. None of them can hang a command or
fill its memory."""

from __future__ import annotations

import os
import re
import stat
from io import BufferedReader, FileIO

from mystfuse.errors import UsageError

_DESCRIPTOR = re.compile(r"/dev/(?:stdin|fd/\d{1,9})|/proc/(?:self|thread-self|\d{1,9})/fd/\d{1,9}")
"""Names of open descriptors, as of a shell's <(...): these may be pipes."""
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def open_configured_file(path: str, what: str) -> FileIO:
    """Open a file that an option or a setting names, unbuffered, without ever waiting for it.

    It must be a regular file, or a pipe that is open already and named as a descriptor (``/dev/fd/N``): reading that
    waits for its writer, and a signal interrupts it.

    Args:
        what: the option that named it, for messages.

    Raises:
        UsageError: opening it failed, or it is neither.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would hang, and so would some devices.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        # ValueError: NUL in the name.
        raise UsageError(f"{what} {path}: {error.strerror if isinstance(error, OSError) else error}") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) and names_descriptor(path):
            os.set_blocking(fd, True)
        elif not stat.S_ISREG(mode):
            raise UsageError(f"{what} {path}: {kind_of(mode)}, not a regular file")
        return FileIO(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_configured_file(path: str, what: str, limit: int) -> bytes:
    """The contents of such a file, of at most ``limit`` bytes.

    Raises:
        UsageError: as ``open_configured_file``; reading it failed, or it is larger.
    """
    with open_configured_file(path, what) as file:
        return read_at_most(file, f"{what} {path}", limit)


def read_at_most(file: FileIO, name: str, limit: int) -> bytes:
    """All of an open file; UsageError if reading fails, or it has more than ``limit`` bytes."""
    try:
        data = BufferedReader(file).read(limit + 1)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(f"{name}: too large (over {limit} bytes)")
    return data


def names_descriptor(path: str) -> bool:
    """Whether a path names a descriptor that is open already, as a shell's <(...) does: then a pipe is as good as a
    file."""
    return _DESCRIPTOR.fullmatch(path) is not None


def kind_of(mode: int) -> str:
    """The kind of the file, for messages."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")

"""What a program shares with the host whatever its root is: nodes of devices, and the standard descriptors.

A node is a file of the host's. For its owner, which the program's user 0 is, its mode and times are there to be
changed, for everybody on the machine. Through a mount that is read-only nobody changes them, while the device itself
is read from and written to as ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from mystfuse.errors import MountError
from mystfuse.sandbox import show_read_only

_NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""What bwrap(1) shows of the host's with ``--dev``; /dev/console, which is the terminal of stdout, besides."""
_STANDARD = (0, 1, 2)
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


def protect_devices() -> list[int]:
    """Make the nodes that a program gets read-only in this mount name space, which must be private.

    Returns:
        The standard descriptors for the program: ours, but for those of such a node, which are opened anew.

    Raises:
        MountError: a node cannot be made read-only.
    """
    nodes = {path for path in (*_NODES, *_terminals()) if os.path.exists(path)}
    for path in nodes:
        show_read_only(path)
    return [_reopen(fd, nodes) for fd in _STANDARD]


def _terminals() -> Iterator[str]:
    for fd in _STANDARD:
        # Not a terminal, or one that has no name here.
        with suppress(OSError):
            yield os.ttyname(fd)


def _reopen(fd: int, nodes: set[str]) -> int:
    try:
        status = os.fstat(fd)
    except OSError:
        return fd
    if not stat.S_ISCHR(status.st_mode):
        return fd
    for path in nodes:
        if os.path.samestat(os.stat(path), status):
            try:
                return os.open(path, fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_FLAGS | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError as error:
                # A terminal of somebody else, after su(1), whose mode is not the program's to change either; or one
                # that has been closed.
                if error.errno in (errno.EACCES, errno.EIO, errno.ENXIO):
                    return fd
                raise MountError(f"{path}: cannot be opened for the program: {error.strerror}") from error
    return fd

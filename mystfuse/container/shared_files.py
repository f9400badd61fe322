"""What a program always shares with the host: nodes of devices, the standard descriptors, and bubblewrap's own file,
which /proc/1/exe leads to.

A node is a file of the host's. For its owner, which the program's user 0 is, its mode and times are there to be
changed, for all users of the machine. A read-only mount keeps them unchanged, while the device itself is read
from and written to as ever. In the same way a file that the program is given to read is kept from being changed: a
program that may write to it can open /proc/self/fd/0 anew, for writing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from mystfuse.container.mounts import show_read_only
from mystfuse.errors import MountError

_NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""The nodes of the host that ``bwrap --dev`` shows; also /dev/console, which is stdout's terminal."""
_STANDARD = {0: "standard input", 1: "standard output", 2: "standard error"}
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


def standard_names() -> dict[int, str]:
    """The kernel's names of our standard descriptors: read them before this process gets mounts of its own, since a
    mount namespace without processes has no paths."""
    names: dict[int, str] = {}
    for fd in _STANDARD:
        with suppress(OSError):
            names[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return names


def protect_shared_files(bubblewrap: str, names: Mapping[int, str]) -> list[int]:
    """Make the nodes that a program gets, the files that it is given to read, and bubblewrap's file read-only in this
    mount namespace, which must be private.

    Args:
        bubblewrap: the path of bwrap(1).
        names: from ``standard_names``.

    Returns:
        The standard descriptors for the program: ours, but for those of such files, which are opened anew.

    Raises:
        MountError: making one read-only failed.
    """
    nodes = {path for path in (*_NODES, *_terminals()) if os.path.exists(path)}
    for path in (*nodes, os.path.realpath(bubblewrap)):
        show_read_only(path)
    return [_protect(fd, nodes, names.get(fd, "")) for fd in _STANDARD]


def pass_positions_on(given: Sequence[int]) -> None:
    """Let the next reader go on where the program has stopped, as if the program had read from our standard descriptors
    themselves."""
    for ours, theirs in zip(_STANDARD, given, strict=True):
        # Not a file.
        with suppress(OSError):
            if ours != theirs:
                os.lseek(ours, os.lseek(theirs, 0, os.SEEK_CUR), os.SEEK_SET)


def _terminals() -> Iterator[str]:
    for fd in _STANDARD:
        # Not a terminal, or one that has no name here.
        with suppress(OSError):
            yield os.ttyname(fd)


def _protect(fd: int, nodes: set[str], name: str) -> int:
    try:
        status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_FLAGS
    except OSError:
        return fd
    if stat.S_ISCHR(status.st_mode):
        is_terminal = os.isatty(fd)
        for path in nodes:
            node = os.stat(path)
            # The same device by another node, of a /dev elsewhere, is as good; of terminals, each devpts has its own.
            if os.path.samestat(node, status) or (not is_terminal and node.st_rdev == status.st_rdev):
                return _open_node(fd, path, flags)
        if is_terminal:
            return fd
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        # A read-only mount does not affect a device.
        raise MountError(f"{_STANDARD[fd]}: a device, which the program could write to: use a pipe (cat)")
    if flags & os.O_ACCMODE == os.O_RDONLY and stat.S_ISREG(status.st_mode) and status.st_nlink:
        return _open_file(fd, status, flags, name)
    return fd


def _open_node(fd: int, path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # A terminal of another user, after su(1), whose mode is not the program's to change either; or one that has
        # been closed.
        if error.errno in (errno.EACCES, errno.EIO, errno.ENXIO):
            return fd
        raise MountError(f"{path}: cannot be opened for the program: {error.strerror}") from error


def _open_file(fd: int, status: os.stat_result, flags: int, path: str) -> int:
    own = f"/proc/self/fd/{fd}"
    if status.st_uid != os.geteuid() and not os.access(own, os.W_OK):
        return fd
    try:
        if not os.path.samestat(os.stat(path), status):
            raise MountError("another file has its name")
        show_read_only(path)
        new = os.open(path, flags | os.O_CLOEXEC)
        os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
    except (OSError, MountError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MountError(f"{_STANDARD[fd]}: cannot be kept from being written to ({why}): use a pipe (cat)") from error
    return new

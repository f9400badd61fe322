"""User namespaces: which users and groups a program has, and what its privileges are worth.

Each is made by a process of its own, which ends once its namespace is open here: maps are written from outside, since a
process inside may map no user but its own. Source: user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from mystfuse.container.mounts import MS_NODEV, MS_NOSUID, mount
from mystfuse.container.resource_limits import bound_user_namespace
from mystfuse.errors import MystfuseError, one_line
from mystfuse.formats.oci_config import User
from mystfuse.system import libc

# <linux/sched.h>
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_NO_PROC = 1
"""The exit status of a process that could not mount a /proc."""
_FAILED = 2
_MADE = b"\0"
"""What a process says when it has its namespace; otherwise it says why it has none."""
_MAX_MESSAGE = 4096
_SWITCHES = (
    (Path("/proc/sys/user/max_user_namespaces"), "0"),
    (Path("/proc/sys/kernel/unprivileged_userns_clone"), "0"),
    (Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"), "1"),
)
"""Settings that refuse user namespaces, and with which value: of all kernels, of Debian's, of Ubuntu's."""

WriteMaps = Callable[[int], None]
"""Writes the maps of the user namespace that the process with this number has just made."""


def unshare(flags: int) -> None:
    """unshare(2); raises MystfuseError, with what may be the reason, if it fails."""
    try:
        libc.call("unshare", flags)
    except OSError as error:
        raise MystfuseError(f"no namespaces of our own: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    """Why the system refuses a user namespace, as far as its settings say."""
    return f"{error.strerror} ({_find_reason(error)})"


def _find_reason(error: OSError) -> str:
    for path, refusing in _SWITCHES:
        try:
            if path.read_text().strip() == refusing:
                return f"sysctl {path.parent.name}.{path.name} is {refusing}"
        except OSError:
            continue
    if error.errno == errno.ENOSPC:
        return "there are as many as sysctl user.max_user_namespaces allows here or further out"
    return "are unprivileged user namespaces switched off?"


def make_callers_namespace(uid: int, gid: int) -> int:
    """A descriptor of a new user namespace in which this process is the user ``uid`` of the group ``gid``, and there
    are no others.

    Raises:
        MystfuseError: the system does not allow it.
    """
    return _make(_one_user(uid, gid), lambda: 0)[0]


def make_root_namespaces(write_maps: WriteMaps | None, processes: int | None) -> tuple[int, int]:
    """Two user namespaces for a program that is root inside, made while this process is dumpable: nothing else writes
    maps for a process that is not.

    Args:
        write_maps: for the users besides root, which is this process's user; None for no others.
        processes: see ``make_user_namespace``.

    Returns:
        Descriptors of the one that this process is to enter, whose users an image's files belong to; and of the
        program's, below that.

    Raises:
        MystfuseError: the system does not allow it, or as ``write_maps``.
    """
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def make_programs() -> int:
        try:
            socket.send_fds(sender, [_MADE], [make_user_namespace(processes)])
        except MystfuseError as error:
            sender.send(str(error).encode()[:_MAX_MESSAGE])
        return 0

    with receiver:
        with sender:
            own, _ = _make(write_maps or _one_user(0, 0), make_programs)
        message, descriptors, _, _ = socket.recv_fds(receiver, _MAX_MESSAGE, 1)
    if not descriptors:
        os.close(own)
        raise MystfuseError(message.decode(errors="replace") or "no user namespace for the program")
    os.set_inheritable(descriptors[0], False)
    return own, descriptors[0]


def make_user_namespace(processes: int | None = None) -> int:
    """A descriptor of a new user namespace, below ours, with the users and groups of ours: each file keeps its owner,
    and capabilities in it are worth nothing outside.

    Args:
        processes: the maximum number of processes of all its users together, where the kernel bounds them; our own
            count too.

    Raises:
        MystfuseError: the system does not allow it, or no /proc could be mounted in there.
    """
    try:
        fd, status = _make(_same_users, _try_proc, processes)
    except MystfuseError as error:
        raise MystfuseError(f"no user namespace for the program: {error}") from error
    if status == 0:
        return fd
    os.close(fd)
    if status == _NO_PROC:
        raise MystfuseError("no /proc for the program: parts of our own are hidden, as in a container")
    raise MystfuseError("no namespaces for the program: are there too many?")


def enter_user_namespace(fd: int) -> None:
    """Enter the user namespace ``fd`` to stay; this process must have one thread. MystfuseError if that fails."""
    try:
        libc.call("setns", fd, CLONE_NEWUSER)
    except OSError as error:
        raise MystfuseError(f"a user namespace of our own cannot be entered: {error.strerror}") from error


def _make(write_maps: WriteMaps, work: Callable[[], int], processes: int | None = None) -> tuple[int, int]:
    """A descriptor of a new user namespace, and the exit status of ``work``, which the process that made it runs in it.

    Raises:
        MystfuseError: the system does not allow it, or as ``write_maps``.
    """
    (is_there, says), (goes_on, lets) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = _FAILED
        try:
            os.close(lets)
            if processes is not None:
                bound_user_namespace(processes)
            unshare(CLONE_NEWUSER)
            os.write(says, _MADE)
            if os.read(goes_on, 1):
                status = work()
        except (MystfuseError, OSError) as error:
            os.write(says, one_line(str(error)).encode()[:_MAX_MESSAGE])
        finally:
            os._exit(status)
    os.close(says)
    os.close(goes_on)
    fd = -1
    try:
        message = os.read(is_there, _MAX_MESSAGE)
        if message != _MADE:
            raise MystfuseError(message.decode(errors="replace") or "no namespaces of our own")
        try:
            write_maps(pid)
            fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            os.write(lets, b"+")
        except OSError as error:
            raise MystfuseError(f"no users in a namespace of our own: {_explain(error)}") from error
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    finally:
        os.close(is_there)
        os.close(lets)
        _, ended = os.waitpid(pid, 0)
    return fd, os.waitstatus_to_exitcode(ended)


def _one_user(uid: int, gid: int) -> WriteMaps:
    """Maps for our own user and group, which are to be ``uid`` and ``gid``. Nobody may give up groups then."""

    def write(pid: int) -> None:
        _write(pid, "setgroups", "deny")
        _write(pid, "uid_map", f"{uid} {os.geteuid()} 1")
        _write(pid, "gid_map", f"{gid} {os.getegid()} 1")

    return write


def _same_users(pid: int) -> None:
    """Maps for all users and groups of our own namespace, each of which keeps its number."""
    for name in ("uid_map", "gid_map"):
        lines = (line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines())
        _write(pid, name, "".join(f"{inside} {inside} {count}\n" for inside, _, count in lines))


def _write(pid: int, name: str, text: str) -> None:
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write(text)


def _try_proc() -> int:
    """Mount a /proc as bubblewrap will, in a process of its own; returns its status. The kernel refuses it if it would
    show more than the present one."""
    unshare(CLONE_NEWNS | CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        status = _NO_PROC
        try:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become(user: User) -> None:
    """Be this user of the present namespace, for good; raises OSError if it has no such user."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)

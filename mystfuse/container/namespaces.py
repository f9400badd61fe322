"""The namespaces in which a program runs that has an image as its root, and its session keyring.

All mounts are made in a private mount namespace: they are gone with the last process in it, however that ends.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mystfuse.container.mounts import MS_NODEV, MS_NOSUID, MS_REC, MS_SLAVE, mount
from mystfuse.errors import MountError, MystfuseError
from mystfuse.mounting.mount_table import own_mountpoints
from mystfuse.mounting.unmount import unmount
from mystfuse.system import libc
from mystfuse.system.syscall_numbers import syscall_numbers

# <linux/sched.h>
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
# <linux/keyctl.h>
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NOT_TRIED = 2
"""The exit status of a process that failed before mounting a /proc."""


def enter_private_namespace() -> None:
    """Give this process (which must have one thread) mounts of its own; as an ordinary user by a user namespace, in
    which it keeps its user and group.

    Raises:
        MystfuseError: the system does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", None, MS_REC | MS_SLAVE)


def drop_mounts_of_ours(needed: Sequence[str]) -> None:
    """Unmount our other mounts in the namespace, except those of the paths ``needed``: they would keep their daemons
    alive where ``/`` is private, so that unmounting does not get through.

    An ordinary user has no privilege for that.
    """
    if os.geteuid():
        return
    for mountpoint in own_mountpoints():
        if not any(f"{os.path.realpath(path)}/".startswith(f"{mountpoint}/") for path in needed):
            with suppress(MountError):
                unmount(mountpoint, lazy=True)


def shield_next_child() -> None:
    """Make the next child of this process the first of a process namespace, in which no other can follow it. So what a
    terminal sends to all of the foreground (^C, ^Z) does not end bubblewrap, but reaches the program.

    No thread can be started afterwards.
    """
    _unshare(_CLONE_NEWPID)


def show_own_processes() -> None:
    """In the first process of a namespace that ``shield_next_child`` made: give it a /proc that shows that namespace.

    bubblewrap looks for its child there, by the number that the child has in it; in the caller's /proc that is another
    process, or, in a container that runs little else, none. Where the kernel refuses a /proc, all stays as it is.
    """
    with suppress(MystfuseError):
        _unshare(_CLONE_NEWNS)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)


def _unshare(flags: int) -> None:
    try:
        libc.call("unshare", flags)
    except OSError as error:
        raise MystfuseError(
            f"no namespaces of our own: {error.strerror} (are unprivileged user namespaces switched off?)"
        ) from error


def make_user_namespace() -> int:
    """A descriptor of a new user namespace, below ours, with the users and groups of ours: each file keeps its owner,
    and capabilities in it are worth nothing outside.

    Raises:
        MystfuseError: the system does not allow it, or no /proc could be mounted in there.
    """
    maps = {name: _identity(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map")}
    (is_there, says), (goes_on, lets) = os.pipe(), os.pipe()
    # The maps are written from outside: inside, a process may map no user but its own.
    pid = os.fork()
    if pid == 0:
        status = _NOT_TRIED
        try:
            os.close(lets)
            _unshare(_CLONE_NEWUSER)
            os.write(says, b"+")
            os.read(goes_on, 1)
            status = _try_proc()
        finally:
            os._exit(status)
    os.close(says)
    os.close(goes_on)
    fd = -1
    try:
        if os.read(is_there, 1):
            for name, text in maps.items():
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(text)
            fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MystfuseError(
            f"no user namespace for the program: {error.strerror} (--privileged does without)"
        ) from error
    finally:
        os.close(is_there)
        os.close(lets)
        _, status = os.waitpid(pid, 0)
    if fd >= 0 and status == 0:
        return fd
    if os.waitstatus_to_exitcode(status) == _NOT_TRIED:
        raise MystfuseError("no user namespace for the program: are they switched off? (--privileged does without)")
    raise MystfuseError(
        "no /proc for the program: parts of our own are hidden, as in a container (--privileged shows it all)"
    )


def enter_user_namespace(fd: int) -> None:
    """Enter the user namespace ``fd`` to stay; this process must have one thread. MystfuseError if that fails."""
    try:
        libc.call("setns", fd, _CLONE_NEWUSER)
    except OSError as error:
        raise MystfuseError(f"the program's user namespace cannot be entered: {error.strerror}") from error


def _try_proc() -> int:
    """Mount a /proc as bubblewrap will, in a process of its own; returns its status. The kernel refuses it if it would
    show more than the present one."""
    _unshare(_CLONE_NEWNS | _CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _identity(text: str) -> str:
    """The map (user_namespaces(7)) that maps each number of ``text``, our own map, to itself."""
    lines = (line.split() for line in text.splitlines())
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in lines)


def leave_session_keyring() -> None:
    """Give this process, and what it starts, a session keyring of its own, with nothing in it.

    Raises:
        MystfuseError: the system has keyrings, but not one more for us.
    """
    keyctl = syscall_numbers(platform.machine()).get("keyctl", -1)
    try:
        libc.system_call(keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        # A kernel without keyrings, or a container's filter: then the program sees none either.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise MystfuseError(f"no session keyring for the program: {error.strerror}") from error

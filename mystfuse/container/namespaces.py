"""The namespaces in which a program runs that has an image as its root, and its session keyring.

All mounts are made in a private mount namespace: they are gone with the last process in it, however that ends.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Sequence
from contextlib import suppress

from mystfuse.container.mounts import MS_NODEV, MS_NOSUID, MS_REC, MS_SLAVE, mount
from mystfuse.container.user_namespaces import CLONE_NEWNS, CLONE_NEWPID, enter_user_namespace, unshare
from mystfuse.errors import MountError, MystfuseError
from mystfuse.mounting.mount_table import own_mountpoints
from mystfuse.mounting.unmount import unmount
from mystfuse.system import libc
from mystfuse.system.syscall_numbers import syscall_numbers

# <linux/keyctl.h>
_KEYCTL_JOIN_SESSION_KEYRING = 1


def enter_private_namespace(user_namespace: int | None) -> None:
    """Give this process (which must have one thread) mounts of its own.

    Args:
        user_namespace: a descriptor of the user namespace that they belong to, which is closed; None: the present one,
            which takes privileges.

    Raises:
        MystfuseError: the system does not allow it.
    """
    if user_namespace is not None:
        enter_user_namespace(user_namespace)
        os.close(user_namespace)
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_SLAVE)


def drop_mounts_of_ours(needed: Sequence[str]) -> None:
    """Unmount our other mounts in the namespace, except those of the paths ``needed``: they would keep their daemons
    alive where ``/`` is private, so that unmounting does not get through.

    For root alone: a user namespace of an ordinary user has no power over the mounts that it finds.
    """
    for mountpoint in own_mountpoints():
        if not any(f"{os.path.realpath(path)}/".startswith(f"{mountpoint}/") for path in needed):
            with suppress(MountError):
                unmount(mountpoint, lazy=True)


def shield_next_child() -> None:
    """Make the next child of this process the first of a process namespace, in which no other can follow it. So what a
    terminal sends to all of the foreground (^C, ^Z) does not end bubblewrap, but reaches the program.

    No thread can be started afterwards.
    """
    unshare(CLONE_NEWPID)


def show_own_processes() -> None:
    """In the first process of a namespace that ``shield_next_child`` made: give it a /proc that shows that namespace.

    bubblewrap looks for its child there, by the number that the child has in it; in the caller's /proc that is another
    process, or, in a container that runs little else, none. Where the kernel refuses a /proc, all stays as it is.
    """
    with suppress(MystfuseError):
        unshare(CLONE_NEWNS)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)


def leave_groups() -> None:
    """Give up our supplementary groups, which have no numbers in the program's namespace. Where the system forbids that
    (only our own group is mapped), the program keeps them."""
    with suppress(PermissionError):
        os.setgroups([])


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

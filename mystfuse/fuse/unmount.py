"""Unmounting: by the system call who may, through fusermount3 as anybody else."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
import subprocess

from mystfuse.errors import MountError
from mystfuse.fuse.mount_table import find_daemon, find_mount, find_other_server

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class BusyError(MountError):
    """Somebody still uses the mount."""


def unmount(mountpoint: str, lazy: bool = False) -> None:
    """Unmount whatever is on top at ``mountpoint``. Blocks; never call it from the loop that serves the mount.

    Args:
        lazy: take it out of the tree at once, whoever still uses it.

    Raises:
        BusyError: it is in use.
        MountError: it cannot be unmounted for another reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)) == 0:
        return
    code = ctypes.get_errno()
    # Not whether we are root: in a name space of their own others may unmount too.
    if code != errno.EPERM:
        raise (BusyError if code == errno.EBUSY else MountError)(f"{mountpoint}: {os.strerror(code)}")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        result = subprocess.run(command, capture_output=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed (apt install fuse3)") from error
    if result.returncode:
        message = " ".join(result.stderr.split())
        raise (BusyError if "busy" in message else MountError)(f"{mountpoint}: {message}")


def unmount_and_wait(mountpoint: str, lazy: bool, timeout: float) -> None:
    """Unmount one of our mounts and return when the process that served it is gone.

    Raises:
        BusyError: it is in use.
        MountError: not one of ours, it cannot be unmounted, or its daemon does not end within ``timeout`` seconds.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        raise MountError(f"{mountpoint}: nothing of mystfuse's is mounted there")
    daemon = find_daemon(mount)
    if daemon is None and (server := find_other_server(mount)) is not None:
        raise MountError(f"{mountpoint}: not mystfuse's: {server} serves it (umount takes it away)")
    try:
        unmount(mountpoint, lazy)
        if daemon is not None:
            poll = select.poll()
            poll.register(daemon, select.POLLIN)
            if not poll.poll(None if timeout == math.inf else timeout * 1000):
                raise MountError(
                    f"{mountpoint}: unmounted, but still in use: its daemon has not ended after {timeout:g} s"
                )
    finally:
        if daemon is not None:
            os.close(daemon)


def unmount_stale(mountpoint: str) -> None:
    """Take away a mount of ours whose daemon is gone; if there is none, or it is served, do nothing.

    Raises:
        MountError: it cannot be unmounted.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        return
    daemon = find_daemon(mount)
    if daemon is not None:
        os.close(daemon)
    elif find_other_server(mount) is None:
        unmount(mountpoint, lazy=True)

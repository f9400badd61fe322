"""Unmounting, with retries while the mount is busy: by umount2(2), or through fusermount3 for a user without the
privilege."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import MountError, StorageTimeout
from mystfuse.mounting.busy_processes import describe_users, mounts_below, name_users
from mystfuse.mounting.find_daemon import find_daemon, find_other_server
from mystfuse.mounting.fusermount import run_fusermount
from mystfuse.mounting.mount_table import Mount, describe_absence, find_mount
from mystfuse.system import libc
from mystfuse.system.openat2 import RESOLVE_NO_SYMLINKS, openat2
from mystfuse.system.wait_readable import wait_readable

BUSY_PATIENCE = 2.0
"""Seconds for retries of a busy unmount: programs that look into new mounts leave them soon."""
_KILL_PATIENCE = 5.0
"""Seconds from SIGKILL to the end."""
_ANSWERING = 5
"""Seconds that a mount with a hidden daemon may take to answer."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class BusyError(MountError):
    """The mount is busy."""


class GoneError(MountError):
    """The mount to be unmounted has gone, or another is on top of it."""


def unmount(mountpoint: str, lazy: bool = False, expected: Mount | None = None) -> None:
    """Unmount the topmost mount at ``mountpoint``. Blocks; never call it from the loop that serves the mount.

    Args:
        lazy: take it out of the tree at once, even if it is in use.
        expected: the mount that has to be there. Others may rename the directories above, or put links there,
            between looking and unmounting: then this one is unmounted, or none.

    Raises:
        BusyError: it is in use.
        GoneError: the topmost mount is not the ``expected`` one, or there is none.
        MountError: unmounting failed for another reason.
    """
    with _expecting(mountpoint, expected) as path:
        try:
            libc.call("umount2", os.fsencode(path), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
            return
        except OSError as error:
            # Not by asking whether we are root: in a namespace of their own, other users may unmount too.
            if error.errno in (errno.EINVAL, errno.ENOENT):
                raise GoneError(f"{mountpoint}: nothing is mounted there any more") from error
            if error.errno != errno.EPERM:
                is_busy = error.errno == errno.EBUSY
                raise (BusyError if is_busy else MountError)(f"{mountpoint}: {error.strerror}") from error
    result = run_fusermount(["-u", *(["-z"] if lazy else []), "--", mountpoint])
    if result.returncode:
        if expected is not None and expected.user_id != os.geteuid():
            raise MountError(
                f"{mountpoint}: user {expected.user_id} has mounted it: only that user and root unmount it"
            )
        message = " ".join(result.stderr.split())
        raise (BusyError if "busy" in message else MountError)(f"{mountpoint}: {message}")


@contextmanager
def _expecting(mountpoint: str, expected: Mount | None) -> Iterator[str]:
    """A path that leads to the ``expected`` mount at a mountpoint, or to none, even if directories are renamed
    meanwhile."""
    if expected is None:
        yield mountpoint
        return
    parent, name = os.path.split(mountpoint)
    try:
        directory = openat2(parent, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            is_gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            raise (GoneError if is_gone else MountError)(f"{mountpoint}: {error.strerror}") from error
        # An old kernel, or a container whose filter does not know the call.
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    try:
        path = f"/proc/self/fd/{directory}"
        # From here on the path goes through this very directory: a mount in it does not move.
        if os.readlink(path) != parent or find_mount(mountpoint) != expected:
            raise GoneError(f"{mountpoint}: another mount, or none, has taken its place")
        yield f"{path}/{name}"
    finally:
        os.close(directory)


def unmount_and_wait(mountpoint: str, lazy: bool, timeout: float) -> None:
    """Unmount one of our mounts, and wait until its daemon has ended.

    Args:
        timeout: seconds for its daemon to end. While the mount is busy, the unmount is tried again for as long, but not
            longer than ``BUSY_PATIENCE``.

    Raises:
        BusyError: it is in use.
        MountError: it is not one of ours, unmounting failed, or its daemon does not end within ``timeout`` seconds.
    """
    mount, daemon = _find_ours(mountpoint)
    try:
        _unmount_patiently(mountpoint, lazy, mount, min(timeout, BUSY_PATIENCE))
        if daemon is not None and not wait_readable([daemon], timeout):
            raise MountError(f"{mountpoint}: unmounted, but still in use: its daemon has not ended after {timeout:g} s")
    except BusyError as error:
        raise BusyError(f"{mountpoint}: {describe_users(mount)}") from error
    finally:
        if daemon is not None:
            os.close(daemon)


def unmount_by_force(mountpoint: str, timeout: float) -> str:
    """Unmount one of our mounts whoever uses it, and end its daemon: their next access is ENOTCONN.

    Args:
        timeout: seconds for the daemon to end by itself, before it is killed.

    Returns:
        Which processes used it, and what was mounted below it, in words; empty if nobody did.

    Raises:
        MountError: it is not one of ours, unmounting failed, or its daemon cannot be ended.
    """
    mount, daemon = _find_ours(mountpoint)
    try:
        users = ", ".join(filter(None, [name_users(mount), *(f"{path} below it" for path in mounts_below(mount))]))
        _unmount_or_gone(mountpoint, True, mount)
        if daemon is not None:
            # Users keep it alive; with it the kernel ends the connection, and answers them by itself.
            _end_daemon(mountpoint, daemon, timeout)
        return users
    finally:
        if daemon is not None:
            os.close(daemon)


def _end_daemon(mountpoint: str, daemon: int, timeout: float) -> None:
    for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, _KILL_PATIENCE)):
        try:
            signal.pidfd_send_signal(daemon, number)
        except ProcessLookupError:
            return
        except OSError as error:
            raise MountError(f"{mountpoint}: unmounted, but its daemon cannot be ended: {error.strerror}") from error
        if wait_readable([daemon], patience):
            return
    raise MountError(f"{mountpoint}: unmounted, but its daemon hangs in the kernel (for want of storage?)")


def _find_ours(mountpoint: str) -> tuple[Mount, int | None]:
    """Our mount at a mountpoint, and a pidfd of its daemon; None if that is gone.

    Raises:
        MountError: there is none, or it is not ours.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        raise MountError(f"{mountpoint}: {describe_absence(mountpoint)}")
    daemon = find_daemon(mount)
    if daemon is None and (server := find_other_server(mount)) is not None:
        raise MountError(f"{mountpoint}: not mystfuse's: {server} serves it (umount takes it away)")
    return mount, daemon


def _unmount_patiently(mountpoint: str, lazy: bool, expected: Mount, patience: float) -> None:
    """``unmount``, tried again for ``patience`` seconds while the mount is busy."""
    deadline, pause = time.monotonic() + patience, _SHORTEST_PAUSE
    while True:
        try:
            return _unmount_or_gone(mountpoint, lazy, expected)
        except BusyError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def unmount_stale(mountpoint: str) -> None:
    """Unmount a dead mount of ours, whose daemon was killed; do nothing if there is none, or if it is served.

    Raises:
        MountError: unmounting failed.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        return
    daemon = find_daemon(mount)
    if daemon is not None:
        os.close(daemon)
    elif find_other_server(mount) is None and not _is_answered(mount):
        _unmount_or_gone(mountpoint, True, mount)


def _unmount_or_gone(mountpoint: str, lazy: bool, expected: Mount) -> None:
    """``unmount``, if the mount does not go by itself meanwhile, as one does that ends by damage."""
    try:
        unmount(mountpoint, lazy, expected)
    except GoneError:
        if find_mount(mountpoint) is not None:
            raise


def _is_answered(mount: Mount) -> bool:
    """Whether a mount is served, though we see no process that serves it (/proc with hidepid, another namespace).

    Without allow_other the kernel refuses root access to another user's mount by itself: then the processes that we see
    decide.
    """
    if mount.user_id != os.geteuid():
        return False
    try:
        wait_for_storage(partial(os.statvfs, mount.mountpoint), mount.mountpoint, _ANSWERING)
    except StorageTimeout:
        return True
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True

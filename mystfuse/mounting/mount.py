"""Mounting: by mount(2), or through fusermount3 for a user without the privilege."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat

from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.fusermount import run_fusermount
from mystfuse.mounting.mount_table import FSTYPE, find_mount
from mystfuse.system import libc

# <sys/mount.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024
_SPARE_DESCRIPTORS = 4
_MAX_READ = 128 << 10
"""Bytes that the kernel asks the threads of the fast path for at once: they share what it reads ahead. libfuse must not
hear of it. (With fusermount3 the kernel asks an ordinary user's mount for no more anyway.)"""


def mount(options: MountOptions, may_run_programs: bool) -> int:
    """Mount by the system call, or through fusermount3; returns the descriptor of /dev/fuse.

    Sources: libfuse's lib/mount.c; the kernel's Documentation/filesystems/fuse.rst.
    """
    check_descriptors(0)
    flags = _MS_NOATIME
    for is_set, flag in (
        (options.read_only, _MS_RDONLY), (not options.suid, _MS_NOSUID), (not options.dev, _MS_NODEV),
        (options.noexec, _MS_NOEXEC),
    ):  # fmt: skip
        flags |= flag if is_set else 0
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"/dev/fuse: {error.strerror}") from error
    user, group = options.owner
    data = f"fd={descriptor},rootmode={_kind_of(options):o},user_id={user},group_id={group}"
    if options.default_permissions:
        data += ",default_permissions"
    if options.allow_other:
        data += ",allow_other"
    if options.fastpath:
        data += f",max_read={_MAX_READ}"
    # By the descriptor: it is the checked directory, even if its name now leads elsewhere.
    target = options.mountpoint if options.directory is None else f"/proc/self/fd/{options.directory}"
    name, place = options.shown_name.encode(), os.fsencode(target)
    try:
        _refuse_second(options)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        libc.call("mount", name, place, FSTYPE.encode(), ctypes.c_ulong(flags), data.encode())
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EPERM or not may_run_programs:
            raise MountError(f"cannot mount on {options.mountpoint}: {error.strerror}") from error
    return _mount_by_fusermount(options)


def _mount_by_fusermount(options: MountOptions) -> int:
    """The same through fusermount3, which sends the descriptor, and checks the mountpoint itself."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with receiver, sender:
        arguments = ["-o", ",".join(sorted(options.fuse_options())), "--", options.mountpoint]
        _refuse_second(options)
        result = run_fusermount(arguments, sender)
        if result.returncode:
            message = " ".join(result.stderr.split()) or f"fusermount3 exited {result.returncode}"
            raise MountError(f"cannot mount on {options.mountpoint}: {message}")
        sender.close()
        _, descriptors, _, _ = socket.recv_fds(receiver, 1, 1)
    if not descriptors:
        raise MountError(f"cannot mount on {options.mountpoint}: fusermount3 has not sent a descriptor")
    return descriptors[0]


def _refuse_second(options: MountOptions) -> None:
    """Raise MountError if another process has mounted an image there since the mountpoint was opened: the kernel would
    stack them, and we could not unmount the lower one."""
    if not options.nonempty and (mount := find_mount(options.mountpoint)) is not None:
        raise MountError(f"{options.mountpoint}: {mount.source} is already mounted there")


def _kind_of(options: MountOptions) -> int:
    """The file type to mount on, which the kernel compares with the root's: a directory, or a file
    (``encrypted_file``)."""
    if options.directory is not None:
        return stat.S_IFDIR
    try:
        return stat.S_IFMT(os.stat(options.mountpoint).st_mode)
    except OSError as error:
        raise MountError(f"{options.mountpoint}: {error.strerror}") from error


def check_descriptors(open_one: int) -> None:
    """Make sure that a few more descriptors can be opened; without them, unmounting may fail.

    Args:
        open_one: any that is open.

    Raises:
        MountError: there are none left.
    """
    spare: list[int] = []
    try:
        for _ in range(_SPARE_DESCRIPTORS):
            # Not opened anew: the daemon is confined.
            spare.append(os.dup(open_one))
    except OSError as error:
        raise MountError(f"cannot mount: {error.strerror} (ulimit -n)") from error
    finally:
        for descriptor in spare:
            os.close(descriptor)

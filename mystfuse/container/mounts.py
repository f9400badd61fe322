"""mount(2) and mount_setattr(2) in the mount namespace of a program that ``exec`` runs."""

from __future__ import annotations

import ctypes
import os

from mystfuse.errors import MountError
from mystfuse.system import libc

# <sys/mount.h>, <linux/mount.h>, <fcntl.h>
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 0x1000, 0x4000, 1 << 19
_MOUNT_ATTR_RDONLY = 1
_MNT_DETACH = 2
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_SYS_MOUNT_SETATTR = 442


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); raises MountError if it fails."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    try:
        libc.call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    except OSError as error:
        raise MountError(f"{target}: cannot be mounted on: {error.strerror}") from error


def unmount(target: str) -> None:
    """umount2(2) of the topmost mount at ``target``, in use or not, through links such as ``/proc/self/fd/N``; raises
    OSError if it fails."""
    libc.call("umount2", os.fsencode(target), _MNT_DETACH)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def make_read_only(target: str) -> None:
    """mount_setattr(2) of what is mounted at ``target`` and everything in it; not in the C library yet."""
    attributes = _MountAttributes(set=_MOUNT_ATTR_RDONLY)
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        size = ctypes.sizeof(attributes)
        libc.system_call(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, ctypes.byref(attributes), size)
    except OSError as error:
        raise MountError(f"{target}: cannot be made read-only: {error.strerror}") from error
    finally:
        os.close(fd)


def show_read_only(path: str) -> None:
    """Make the file or directory ``path`` of this mount namespace, which must be private, read-only."""
    mount(path, path, None, MS_BIND)
    make_read_only(path)

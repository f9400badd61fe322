"""Directories that we write into or mount on: reached through no link that somebody else has planted, and made durable.

A link of another user, anywhere on a path, would let that user choose where root writes. Directories of other users do
no harm: what they can put there is theirs.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_MAX_LINKS = 40
"""As the kernel's MAXSYMLINKS (include/linux/namei.h)."""
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_HERE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What is said where the file system has no way to do it."""


class LinkOfAnother(OSError):
    """A symbolic link that root does not follow, since another user made it."""

    def __init__(self, link: str, uid: int) -> None:
        shown = link if link.isprintable() else ascii(link)
        super().__init__(errno.ELOOP, f"{shown} is a symbolic link of user {uid}, which root does not follow here")


def read_trusted_link(name: str, directory: int | None = None) -> str | None:
    """The target of the symbolic link ``name``; None if it is none, or not there.

    Nothing is asked of what may be mounted under that name.

    Raises:
        LinkOfAnother: we are root, and the link is neither root's nor (in a user name space) of an unknown owner.
    """
    try:
        link = os.open(name, _ITSELF, dir_fd=directory)
    except OSError:
        return None
    try:
        # Only a link has a target; fstat(2) of anything else could hang with the storage under a mount.
        target = os.readlink("", dir_fd=link)
        owner = os.fstat(link).st_uid
    except OSError:
        return None
    finally:
        os.close(link)
    if os.geteuid() == 0 and owner != 0 and not _may_be_roots(owner):
        raise LinkOfAnother(name, owner)
    return target


def open_directory(path: str | os.PathLike[str]) -> int:
    """A descriptor (O_PATH) of the directory at ``path``.

    Each component is opened under the descriptor of the one before, so that nobody can exchange them meanwhile.

    Raises:
        LinkOfAnother: the path goes through a link that root does not follow.
        OSError: as open(2).
    """
    pending = os.fspath(path).split("/")[::-1]
    flags = _ITSELF | os.O_DIRECTORY
    descriptor = os.open("/" if os.fspath(path).startswith("/") else ".", flags)
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            target = read_trusted_link(name, descriptor)
            if target is None:
                below = os.open(name, flags, dir_fd=descriptor)
            else:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                pending += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                below = os.open("/", flags)
            os.close(descriptor)
            descriptor = below
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_directories(path: Path) -> None:
    """Make the directory at ``path`` and those above it that are missing, and have the disk know of them.

    Raises:
        OSError: as mkdir(2); LinkOfAnother as ``open_directory``.
    """
    try:
        os.close(open_directory(path))
        return
    except FileNotFoundError:
        if path == path.parent:
            raise
    make_directories(path.parent)
    above = open_directory(path.parent)
    try:
        with suppress(FileExistsError):
            os.mkdir(path.name, dir_fd=above)
        sync_directory(above)
    finally:
        os.close(above)
    os.close(open_directory(path))


def sync_directory(directory: int) -> None:
    """Have the names in a directory on disk before this returns: fsync(2) of a file does not do it.

    Args:
        directory: a descriptor; O_PATH is enough.

    Raises:
        OSError: the disk failed.
    """
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        # One that may be written to, but not listed.
        sync_file_system(directory)
        return
    _sync(descriptor, os.fsync)


def sync_file_system(directory: int) -> None:
    """Have everything that was written to a directory's file system on disk before this returns.

    Args:
        directory: a descriptor; O_PATH is enough.

    Raises:
        OSError: the disk failed (Linux 5.8 and later say so), or nothing may be made there.
    """
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
    _sync(descriptor, _syncfs)


def _syncfs(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _sync(descriptor: int, how: Callable[[int], None]) -> None:
    try:
        how(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    finally:
        os.close(descriptor)


def _may_be_roots(uid: int) -> bool:
    """Whether a user number stands for owners that our user name space does not know, the host's root among them."""
    try:
        mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        overflow = int(Path("/proc/sys/fs/overflowuid").read_text())
    except OSError:
        return False
    return uid == overflow and not any(int(first) <= uid < int(first) + int(count) for first, _, count in mapped)

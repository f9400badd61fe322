"""Paths to write to or mount on: resolved through no link of another user; and made durable.

A link of another user, anywhere on a path, would let that user choose where root writes. Directories of other users do
no harm: their owners could put files only there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mystfuse.system import libc

MAX_LINKS = 40
"""As the kernel's MAXSYMLINKS (include/linux/namei.h)."""
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1
"""<linux/fs.h>"""
_NOT_HERE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""The errors of a file system that does not support it."""


class LinkOfAnother(OSError):
    """A symbolic link that root does not follow, since another user made it."""

    def __init__(self, link: str, uid: int) -> None:
        shown = link if link.isprintable() else ascii(link)
        super().__init__(errno.ELOOP, f"{shown} is a symbolic link of user {uid}, which root does not follow here")


def read_trusted_link(name: str, directory: int | None = None) -> str | None:
    """The target of the symbolic link ``name``; None if it is none, or not there.

    It does not touch a mount under that name.

    Raises:
        LinkOfAnother: we are root, and the link is neither root's nor (in a user namespace) of an unknown owner.
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
        above = "" if directory is None else os.readlink(f"/proc/self/fd/{directory}")
        raise LinkOfAnother(os.path.join(above, name), owner)
    return target


def open_directory(path: str | os.PathLike[str]) -> int:
    """A descriptor (O_PATH) of the directory at ``path``.

    Each component is opened under the descriptor of the one before, so that no other process can exchange them
    meanwhile.

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
                if links > MAX_LINKS:
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


def open_for_appending(path: str | os.PathLike[str]) -> int:
    """A descriptor to append to the regular file at ``path`` with, which is made if there is none.

    It neither waits for the reader of a FIFO nor opens any other thing than a regular file: that may have effects.

    Raises:
        LinkOfAnother: the path goes through a link that root does not follow.
        OSError: it is a link, not a regular file, or could be a file that another user has chosen; or as open(2).
    """
    above, name = os.path.split(os.fspath(path))
    directory = open_directory(above or ".")
    try:
        while True:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            try:
                found = os.open(name, _ITSELF, dir_fd=directory)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
                continue
            try:
                _check_file(os.fstat(found), directory)
                return os.open(f"/proc/self/fd/{found}", flags)
            finally:
                os.close(found)
    finally:
        os.close(directory)


def open_for_changing(path: str | os.PathLike[str]) -> int:
    """A descriptor to read and overwrite the regular file or block device at ``path`` with, which must exist.

    Links are followed, by the rule of this module. It does not wait for the reader of a FIFO.

    Raises:
        LinkOfAnother: the path goes through a link that root does not follow.
        OSError: it is neither, or could be a file that another user has chosen; or as open(2).
    """
    current = os.fspath(path)
    for _ in range(MAX_LINKS + 1):
        above, name = os.path.split(current)
        directory = open_directory(above or ".")
        try:
            target = read_trusted_link(name, directory)
            if target is not None:
                current = os.path.join(above, target)
                continue
            found = os.open(name, _ITSELF, dir_fd=directory)
            try:
                status = os.fstat(found)
                if not stat.S_ISBLK(status.st_mode):
                    _check_file(status, directory)
                return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC)
            finally:
                os.close(found)
        finally:
            os.close(directory)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_file(found: os.stat_result, directory: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link, which is not followed: name the file itself")
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if os.geteuid() == 0 and found.st_nlink > 1:
        # fs.protected_hardlinks keeps other users from linking files of root; it may be off.
        raise OSError(errno.EMLINK, "it has other names too (hard links): it could be another file that is written to")
    if is_put_there_by_another(found, directory):
        raise OSError(
            errno.EACCES, f"it is user {found.st_uid}'s, in a directory that others may write to: remove it first"
        )


def is_put_there_by_another(found: os.stat_result, directory: int) -> bool:
    """Whether a file is another user's, in a directory where all users may make files (the sticky bit, as in /tmp).

    open(2) with O_CREAT refuses it under fs.protected_regular (Documentation/admin-guide/sysctl/fs.rst).
    """
    above = os.stat(f"/proc/self/fd/{directory}")
    is_shared = above.st_mode & stat.S_ISVTX and above.st_mode & 0o022
    is_known = found.st_uid in (os.geteuid(), above.st_uid) and not _may_be_roots(found.st_uid)
    return bool(is_shared) and not is_known


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
    """Sync the names in a directory to disk: fsync(2) of a file does not do it.

    Args:
        directory: a descriptor; O_PATH is enough.

    Raises:
        OSError: the disk failed.
    """
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        # A directory that is writable, but not listable.
        sync_file_system(directory)
        return
    _sync(descriptor, os.fsync)


def sync_file_system(directory: int) -> None:
    """Sync everything that was written to a directory's file system to disk.

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
    libc.call("syncfs", descriptor)


def _sync(descriptor: int, how: Callable[[int], None]) -> None:
    try:
        how(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    finally:
        os.close(descriptor)


def rename_without_replacing(directory: int, old: bytes | str, new: bytes | str) -> None:
    """Rename within a directory.

    Raises:
        FileExistsError: the new name exists.
        OSError: as rename(2).
    """
    # musl has no function of that name.
    with suppress(AttributeError):
        try:
            libc.call("renameat2", directory, os.fsencode(old), directory, os.fsencode(new), _RENAME_NOREPLACE)
            return
        except OSError as error:
            # Some file systems lack it (nfs).
            if error.errno not in _NOT_HERE:
                raise
    try:
        os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno not in _NOT_HERE:
            raise
        # A directory, or no hard links either: the check and the rename are two steps then.
        with suppress(FileNotFoundError):
            os.lstat(new, dir_fd=directory)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        os.unlink(old, dir_fd=directory)


def _may_be_roots(uid: int) -> bool:
    """Whether a user number stands for owners that our user namespace does not know, the host's root among them."""
    try:
        mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        overflow = int(Path("/proc/sys/fs/overflowuid").read_text())
    except OSError:
        return False
    return uid == overflow and not any(int(first) <= uid < int(first) + int(count) for first, _, count in mapped)

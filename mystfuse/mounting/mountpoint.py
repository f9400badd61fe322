"""The directory to mount on: resolving its path, checking for a mount of ours, and opening it."""

from __future__ import annotations

import errno
import os
import shlex

from mystfuse.errors import MountError
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system.openat2 import RESOLVE_NO_SYMLINKS, openat2
from mystfuse.system.output_paths import MAX_LINKS, LinkOfAnother, read_trusted_link


def resolve_mountpoint(path: str) -> str:
    """The absolute path of a mountpoint, symbolic links resolved, as the kernel's mount table has it.

    It does not touch the file system that is mounted there, which may hang.

    Raises:
        MountError: we are root, and a link on the way is another user's, who could lead us elsewhere.
        OSError: there is no current directory, or too many links.
    """
    # Read only where it matters: the directory may be gone.
    start = "/" if path.startswith("/") else os.getcwd()
    pending = os.path.join(start, path).split("/")[::-1]
    resolved, links = "/", 0
    while pending:
        name = pending.pop()
        if name == "..":
            resolved = os.path.dirname(resolved)
        if name in ("", ".", ".."):
            continue
        here = os.path.join(resolved, name)
        try:
            target = read_trusted_link(here)
        except LinkOfAnother as error:
            raise MountError(f"{path}: {error.strerror}") from error
        if target is None:
            resolved = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            resolved = "/"
        pending += target.split("/")[::-1]
    return resolved


def refuse_second_mount(path: str, name: str) -> None:
    """Raise MountError if we have mounted there already; decided without looking into the mount, which might hang."""
    mount = find_mount(path)
    if mount is None:
        return
    daemon = find_daemon(mount)
    if daemon is not None:
        os.close(daemon)
        raise MountError(f"{name}: {mount.source} is already mounted there (mystfuse status {shlex.quote(name)})")


def open_mountpoint(path: str, name: str, may_be_filled: bool) -> int:
    """A descriptor (O_PATH) of the directory to mount on, which must have no symbolic link in its ``path`` any more."""
    directory = -1
    try:
        directory = _open_without_links(path)
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            with os.scandir(listing) as entries:
                is_filled = any(entries)
        finally:
            os.close(listing)
    except FileNotFoundError as error:
        raise MountError(f"{name}: no such directory to mount on (mkdir makes one)") from error
    except NotADirectoryError as error:
        raise MountError(f"{name}: not a directory, so nothing can be mounted on it") from error
    except PermissionError as error:
        raise MountError(f"{name}: {error.strerror}") from error
    except OSError as error:
        raise MountError(
            f"{name}: {error.strerror}: left over from a mount that died? (mystfuse umount {name} clears it away)"
        ) from error
    if is_filled and not may_be_filled:
        raise MountError(f"{name}: not empty; what is in it would be hidden (-o nonempty mounts all the same)")
    return directory


def _open_without_links(path: str) -> int:
    """A descriptor (O_PATH) of the directory at ``path``, which has no symbolic link in it; OSError if it has."""
    try:
        return openat2(path, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        # An old kernel, or a filter that does not know it (systemd 252).
        if error.errno != errno.ENOSYS:
            raise
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{directory}") == path:
        return directory
    os.close(directory)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

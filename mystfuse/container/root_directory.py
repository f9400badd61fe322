"""The root directory that a program sees: an image's mount, and further mounts inside it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import PurePosixPath

from mystfuse.container.made_for_mounts import MadeForMounts
from mystfuse.container.mounts import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, make_read_only, mount
from mystfuse.errors import MountError, MystfuseError
from mystfuse.system.openat2 import RESOLVE_IN_ROOT, openat2

_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")  # noqa: S108
"""The image's mountpoint in the namespace: any directory whose contents are not needed there."""
_OWN = ("proc", "dev")
"""Directories that bubblewrap mounts itself."""


def find_place() -> str:
    """A directory to mount the image on."""
    for place in _PLACES:
        if os.path.isdir(place):
            return place
    raise MystfuseError(f"none of {', '.join(_PLACES)} is there to mount the image on")


class Root:
    """The program's tree, while it is built under ``path``. Paths in it are resolved as if it were the root already:
    none leads out."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.made = MadeForMounts()
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int) -> int:
        """Open the file at ``path``; OSError as open(2)."""
        return openat2(path, flags, RESOLVE_IN_ROOT, self._fd)

    def make_directory(self, path: str) -> str:
        """The host's name of directory ``path``, made with its parents if missing.

        Raises:
            MountError: it is not a directory, making it failed, or bubblewrap mounts it.
        """
        try:
            return _name_of(self._make_directories(_inside(path)))
        except FileExistsError as error:
            # openat2(2) has found nothing there, mkdir(2) something.
            raise MountError(f"{path}: a link in the image that leads to nothing: mount at what it names") from error
        except OSError as error:
            raise MountError(f"{path}: cannot be mounted on in the image: {error.strerror}") from error

    def _make_directories(self, path: PurePosixPath) -> int:
        """A descriptor of a directory, made with its parents if missing."""
        fd = self.open("/", os.O_PATH | os.O_DIRECTORY)
        for part in (*reversed(path.parents), path)[1:]:
            parent = fd
            try:
                try:
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
                except FileNotFoundError:
                    with self.made.recording(parent, part.name):
                        os.mkdir(part.name, 0o755, dir_fd=parent)
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
            finally:
                os.close(parent)
        return fd

    def make_own(self) -> None:
        """Make the directories that bubblewrap mounts on, where they are missing: it would make them itself, and nobody
        would know that they are not the program's. What prevents that, it says itself."""
        for name in _OWN:
            with suppress(OSError):
                os.close(self._make_directories(PurePosixPath("/", name)))

    def make_file(self, path: str) -> str:
        """The host's name of file ``path``, made empty, with its parents, if missing.

        Raises:
            MountError: it is a directory, making it failed, or bubblewrap mounts it.
        """
        pure = _inside(path)
        try:
            try:
                fd = self.open(str(pure), os.O_PATH)
            except FileNotFoundError:
                parent = self._make_directories(pure.parent)
                try:
                    # A dangling link is not followed: its target may be anywhere.
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    with self.made.recording(parent, pure.name):
                        fd = os.open(pure.name, flags, 0o644, dir_fd=parent)
                finally:
                    os.close(parent)
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            name = _name_of(fd)
        except FileExistsError:
            raise MountError(f"{path}: a link in the image that leads to nothing: mount at what it names") from None
        except OSError as error:
            raise MountError(f"{path}: cannot be mounted on in the image: {error.strerror}") from error
        if is_directory:
            raise MountError(f"{path}: a directory in the image, where a file is to be mounted")
        return name

    def is_empty_or_absent(self, path: str) -> bool:
        """Whether ``path`` is an empty file, or does not exist; a link is neither."""
        try:
            fd = self.open(path, os.O_PATH)
        except FileNotFoundError:
            return True
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size == 0

    def remove_link(self, path: str) -> None:
        """Remove ``path`` if it is a link."""
        pure = _inside(path)
        try:
            parent = self.open(str(pure.parent), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISLNK(os.lstat(pure.name, dir_fd=parent).st_mode):
                with self.made.recording(parent, pure.name):
                    os.unlink(pure.name, dir_fd=parent)
        except FileNotFoundError:
            return
        finally:
            os.close(parent)

    def bind(self, source_fd: int, path: str, read_only: bool = False) -> None:
        """Show a file of the host, or a directory with its mounts, at ``path``."""
        is_directory = stat.S_ISDIR(os.fstat(source_fd).st_mode)
        target = self.make_directory(path) if is_directory else self.make_file(path)
        mount(f"/proc/self/fd/{source_fd}", target, None, MS_BIND | MS_REC)
        self.made.mounted(target)
        if read_only:
            make_read_only(target)

    def mount_tmpfs(self, path: str, size: int | None, read_only: bool = False) -> None:
        """An empty directory open to all users at ``path``, in memory: up to ``size`` bytes (None: half of it)."""
        limit = "" if size is None else f",size={size}"
        target = self.make_directory(path)
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777{limit}")
        self.made.mounted(target)
        if read_only:
            make_read_only(target)


def _name_of(fd: int) -> str:
    """The place of ``fd``, which is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _inside(path: str) -> PurePosixPath:
    """``path`` in a root, without ``..``; MountError for places that take no mount."""
    pure = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
    if len(pure.parts) == 1 or pure.parts[1] in _OWN:
        raise MountError(f"{path}: nothing can be mounted there")
    return pure

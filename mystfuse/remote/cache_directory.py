"""The cache's directory, which processes and users share, and in which nobody believes anything.

::

    DIR/layout          "mystfuse-cache 1"
    DIR/lock            locked by whoever is evicting
    DIR/KEY/data        the image's chunks, sparse (chunk_map)
    DIR/KEY/map         which ones
    DIR/KEY/about       JSON, for people: name, size, validator; touched last when the image was last in use

Whoever may write to the directory may replace, cut and link anything in it at any moment. So names are opened below
descriptors of directories, without following links, and only regular files that have one name are written to: a second
name may be that of somebody's precious file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mystfuse.remote.chunk_locks import ChunkLocks
from mystfuse.system.output_paths import make_directories, open_directory

_LAYOUT = b"mystfuse-cache 1\n"
_KEY = re.compile(r"[0-9a-f]{64}")
_FILES = ("data", "map", "about")
_MAX_ABOUT = 4096
_MAX_IMAGES = 100_000
_ATTEMPTS = 10
_RACE_PAUSE = 0.02
"""Seconds before the next attempt after somebody else has removed what we were opening."""
_LOCK_PATIENCE, _LOCK_POLL = 5.0, 0.05
_BLOCK = 512
"""Bytes of st_blocks."""


class CacheUnusable(Exception):
    """The directory cannot be used as a cache; the message says why."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Open files of one image; who gets them closes them."""

    data: int
    map: int
    about: int
    locks: ChunkLocks
    for_reader: tuple[int, int]
    """Data and map, for reading alone."""

    def touch(self) -> None:
        """Note that the image is in use now; an error does not matter."""
        with suppress(OSError):
            os.utime(self.about)

    def describe(self, about: dict[str, object]) -> None:
        """Write what people may want to know of the image; an error does not matter."""
        text = json.dumps(about).encode()
        with suppress(OSError):
            if os.pread(self.about, _MAX_ABOUT, 0) != text:
                os.ftruncate(self.about, 0)
                os.pwrite(self.about, text, 0)

    @property
    def is_removed(self) -> bool:
        """Whether nobody else can find the files any more. Raises OSError."""
        return not all(os.fstat(file).st_nlink for file in (self.data, self.map))

    def close(self) -> None:
        for descriptor in (self.data, self.map, self.about, *self.for_reader):
            os.close(descriptor)
        self.locks.close()


@dataclass(frozen=True, slots=True)
class CachedImage:
    """What the cache has of an image, as far as the file system says."""

    key: str
    name: str
    """As ``about`` says: not to be believed."""
    size: int
    """Bytes of the image."""
    used: int
    """Bytes on the disk."""
    last_use: float
    """Seconds since 1970."""


class CacheDirectory:
    """An open cache.

    Args:
        path: made if it does not exist, with its parents. Root follows no link of another user to it.

    Raises:
        CacheUnusable: it cannot be opened or made, or is of another version.
    """

    def __init__(self, path: str, create: bool = True) -> None:
        self.path = path
        try:
            if create:
                make_directories(Path(path))
            found = open_directory(path)
            try:
                self._directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
            finally:
                os.close(found)
        except OSError as error:
            raise CacheUnusable(f"cache {path}: {error.strerror}") from error
        mode = os.fstat(self._directory).st_mode
        self._shared = (0o060 if mode & stat.S_IWGRP else 0) | (0o066 if mode & stat.S_IWOTH else 0)
        """Permissions that others get, because they may write to the directory; none: the umask decides."""
        try:
            self._check_layout(create)
        except OSError as error:
            os.close(self._directory)
            raise CacheUnusable(f"cache {path}: {error.strerror}") from error
        except BaseException:
            os.close(self._directory)
            raise

    def close(self) -> None:
        os.close(self._directory)

    def open_image(self, key: str, create: bool = True) -> ImageFiles:
        """Open an image's files, and note that it is in use.

        Raises:
            OSError: they cannot be opened or made; FileNotFoundError where they are not to be made.
        """
        for _ in range(_ATTEMPTS):
            with ExitStack() as stack:
                directory = self._open_entry(key, create)
                stack.callback(os.close, directory)
                files = self._open_files(directory, create)
                stack.callback(files.close)
                if files.locks.share() and self._is_current(key, directory, files):
                    stack.pop_all()
                    os.close(directory)
                    return files
            time.sleep(_RACE_PAUSE)
        raise OSError(errno.EAGAIN, "somebody else keeps removing it")

    def images(self) -> list[CachedImage]:
        """What is in the cache. Raises OSError."""
        found: list[CachedImage] = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if _KEY.fullmatch(entry.name) and len(found) < _MAX_IMAGES:
                    with suppress(OSError):
                        found.append(self._examine(entry.name))
        return found

    def remove(self, key: str) -> bool:
        """Remove an image that nobody uses; returns False where somebody does. Raises OSError."""
        try:
            directory = self._open_entry(key, create=False)
        except FileNotFoundError:
            return True
        with ExitStack() as stack:
            stack.callback(os.close, directory)
            try:
                locks = ChunkLocks(self._open_file(directory, "map", create=False))
                stack.callback(locks.close)
                if not stack.enter_context(locks.alone()):
                    return False
            except OSError:
                # No map, or something in its place: nobody can use it.
                pass
            for name in _FILES:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            # In a sticky directory only its owner can.
            with suppress(PermissionError, FileNotFoundError):
                os.rmdir(key, dir_fd=self._directory)
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For the block, keep others from evicting; blocks up to 5 s while somebody does, and then goes on."""
        try:
            file = self._open_file(self._directory, "lock", create=True)
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while not _try_lock(file) and time.monotonic() < deadline:
                time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(file)

    def _check_layout(self, create: bool) -> None:
        try:
            file = self._open_file(self._directory, "layout", create, os.O_RDONLY)
        except FileNotFoundError:
            raise CacheUnusable(f"cache {self.path}: not a cache of mystfuse") from None
        try:
            found = os.pread(file, len(_LAYOUT) + 1, 0)
        finally:
            os.close(file)
        if not found and create:
            file = self._open_file(self._directory, "layout", create)
            try:
                os.pwrite(file, _LAYOUT, 0)
            finally:
                os.close(file)
        elif found != _LAYOUT:
            raise CacheUnusable(f"cache {self.path}: made by another version of mystfuse; remove it, or name another")

    def _open_entry(self, key: str, create: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        is_new = False
        for _ in range(_ATTEMPTS):
            try:
                entry = os.open(key, flags, dir_fd=self._directory)
                if is_new and self._shared and os.fstat(entry).st_uid == os.geteuid():
                    # Who removes an image removes its files.
                    os.fchmod(entry, 0o700 | self._shared | self._shared >> 2 & 0o011)
                return entry
            except FileNotFoundError:
                if not create:
                    raise
            except NotADirectoryError:
                # A link or a file, which nobody of ours has made.
                os.unlink(key, dir_fd=self._directory)
            with suppress(FileExistsError):
                os.mkdir(key, dir_fd=self._directory)
                is_new = True
        raise OSError(errno.EAGAIN, "somebody else keeps removing it")

    def _open_files(self, directory: int, create: bool) -> ImageFiles:
        with ExitStack() as stack:

            def opened(name: str, access: int = os.O_RDWR, create: bool = create) -> int:
                descriptor = self._open_file(directory, name, create, access)
                stack.callback(os.close, descriptor)
                return descriptor

            data, map, about = opened("data"), opened("map"), opened("about")
            readers = opened("data", os.O_RDONLY, False), opened("map", os.O_RDONLY, False)
            locks = ChunkLocks(opened("map", create=False))
            stack.pop_all()
            return ImageFiles(data, map, about, locks, readers)

    def _open_file(self, directory: int, name: str, create: bool, access: int = os.O_RDWR) -> int:
        """Open a regular file that has this name alone; what is in its place is removed. Raises OSError."""
        flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        for _ in range(_ATTEMPTS):
            try:
                descriptor = os.open(name, flags, dir_fd=directory)
            except FileNotFoundError:
                if not create:
                    raise
                # Not O_CREAT alone: in directories of others the kernel refuses that for files that exist
                # (fs.protected_regular).
                with suppress(FileExistsError):
                    descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
                    if self._shared:
                        os.fchmod(descriptor, 0o600 | self._shared)
                    return descriptor
                continue
            except OSError:
                if not create:
                    raise
            else:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    return descriptor
                os.close(descriptor)
                if status.st_nlink == 0 and not create:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if not create:
                    raise OSError(errno.EINVAL, f"{name} is no regular file, or has other names")
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=directory)
                continue
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=directory)
        raise OSError(errno.EAGAIN, "somebody else keeps replacing it")

    def _is_current(self, key: str, directory: int, files: ImageFiles) -> bool:
        """Whether the open files are all of one image, and still those that have the names."""
        with suppress(OSError):
            entry = os.stat(key, dir_fd=self._directory, follow_symlinks=False)
            data, map = (os.stat(name, dir_fd=directory, follow_symlinks=False) for name in ("data", "map"))
            return (
                os.path.samestat(entry, os.fstat(directory))
                and all(os.path.samestat(data, os.fstat(file)) for file in (files.data, files.for_reader[0]))
                and all(os.path.samestat(map, os.fstat(file)) for file in (files.map, files.for_reader[1]))
                and files.locks.is_of(map)
            )
        return False

    def _examine(self, key: str) -> CachedImage:
        directory = self._open_entry(key, create=False)
        try:
            statuses = {}
            for name in _FILES:
                with suppress(FileNotFoundError):
                    statuses[name] = os.stat(name, dir_fd=directory, follow_symlinks=False)
            data, about = statuses.get("data"), statuses.get("about")
            return CachedImage(
                key,
                self._read_name(directory),
                data.st_size if data else 0,
                sum(status.st_blocks for status in statuses.values()) * _BLOCK,
                min(about.st_mtime, time.time()) if about else 0.0,
            )
        finally:
            os.close(directory)

    def _read_name(self, directory: int) -> str:
        with suppress(OSError, ValueError, RecursionError):
            file = self._open_file(directory, "about", False, os.O_RDONLY)
            try:
                document = json.loads(os.pread(file, _MAX_ABOUT, 0))
            finally:
                os.close(file)
            name = document.get("name") if isinstance(document, dict) else None
            if isinstance(name, str) and name.isprintable():
                return name
        return ""


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True

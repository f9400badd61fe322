"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mystfuse.errors import MystfuseError


class WritableFile(Protocol):
    """An open file that child processes can be given."""

    fd: int
    target: Path
    """What to call it in messages."""

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        ...


class AtomicFile:
    """A nameless file in the directory of ``target``, given that name by ``commit``.

    Leaving the ``with`` block without ``commit``, or dying in it, leaves nothing behind. Where the file system has no
    nameless files (O_TMPFILE), a hidden temporary name is used, and removed when the block ends.

    Args:
        replace: whether ``target`` may exist; if not, ``commit`` never overwrites it, not even in a race.
        mode: permissions, before the umask takes away from them.

    Raises:
        MystfuseError: from the constructor, when the target exists or its directory cannot be written.
    """

    def __init__(self, target: Path, replace: bool, mode: int = 0o666) -> None:
        self.target = target
        self.fd = -1
        self._replace = replace
        self._temporary: Path | None = None
        self._directory = target.parent
        if not replace and os.path.lexists(target):
            raise MystfuseError(f"{target}: already exists (--force overwrites it)")
        if target.is_dir():
            raise MystfuseError(f"{target}: is a directory")
        if target.exists() and not target.is_file():
            # It would be replaced: /dev/stdout, and with it everybody's.
            raise MystfuseError(f"{target}: neither a regular file nor absent: it is not replaced")
        try:
            try:
                self.fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
            except OSError as error:
                # What open(2) says where there are no nameless files: by the file system, or by an old kernel.
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                    raise
                self._temporary = self._hidden_name()
                self.fd = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        except OSError as error:
            raise MystfuseError(f"{target}: cannot be written: {self._explain(error)}") from error
        except KeyboardInterrupt:
            self.__exit__(None, None, None)
            raise

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        return f"/proc/self/fd/{self.fd}"

    def write(self, data: bytes) -> None:
        """Append all of ``data``.

        Raises:
            MystfuseError: it cannot be written.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise MystfuseError(f"{self.target}: cannot be written: {error.strerror}") from error

    def commit(self) -> None:
        """Write everything to disk and give the file its name.

        Raises:
            MystfuseError: the name is taken, or the disk is full.
        """
        try:
            os.fsync(self.fd)
            if self._temporary is None and not self._replace:
                self._link(self.target)
                return
            if self._temporary is None:
                # Noted first: an interrupt may come in between.
                self._temporary = self._hidden_name()
                self._link(self._temporary)
            if self._replace:
                os.replace(self._temporary, self.target)
            else:
                self._rename_without_replacing(self._temporary)
            self._temporary = None
        except FileExistsError as error:
            raise MystfuseError(f"{self.target}: already exists (--force overwrites it)") from error
        except OSError as error:
            raise MystfuseError(f"{self.target}: cannot be written: {self._explain(error)}") from error

    def _explain(self, error: OSError) -> str:
        with suppress(OSError):
            if not self._directory.stat().st_nlink:
                return "its directory has been removed"
            if self.fd >= 0 and not os.path.lexists(self.path):
                return "/proc is not mounted"
        return error.strerror or str(error)

    def _rename_without_replacing(self, temporary: Path) -> None:
        try:
            os.link(temporary, self.target)
        except PermissionError:
            # No hard links either (vfat): the check and the rename are two steps then.
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            os.rename(temporary, self.target)
        else:
            temporary.unlink()

    def _link(self, name: Path) -> None:
        # With a directory descriptor Python calls linkat(2), which can follow the link in /proc.
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(self.path, name.name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)

    def _hidden_name(self) -> Path:
        return self._directory / f".{self.target.name[:200]}.{secrets.token_hex(6)}.tmp"

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()
        if self.fd >= 0:
            os.close(self.fd)

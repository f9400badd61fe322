"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mystfuse.errors import MystfuseError
from mystfuse.system.output_paths import (
    is_put_there_by_another,
    open_directory,
    rename_without_replacing,
    sync_directory,
)

_ACL = "system.posix_acl_access"


class WritableFile(Protocol):
    """An open file that child processes can be given."""

    fd: int
    target: Path
    """Its name in messages."""

    @property
    def server(self) -> int | None:
        """pidfd of the process that serves it, without which writing fails; None if there is none."""
        ...

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        ...


def check_target(target: Path, replace: bool) -> None:
    """Raise MystfuseError if a new file cannot take this name, as ``AtomicFile`` does: for callers that ask for a
    passphrase before they make the file."""
    if not replace and os.path.lexists(target):
        raise MystfuseError(f"{target}: already exists (--force overwrites it)")
    if target.is_dir():
        raise MystfuseError(f"{target}: is a directory")
    if target.exists() and not target.is_file():
        # We would replace it: /dev/stdout, and with it every user's.
        raise MystfuseError(f"{target}: neither a regular file nor absent: it is not replaced")


class AtomicFile:
    """A nameless file in the directory of ``target``, given that name by ``commit``.

    The directory is resolved once: a symbolic link that replaces it later gets nothing. A symbolic link under the name
    itself is replaced, or in the way, but never followed; root goes through no link of another user.

    A replacement gets the old file's permissions and ACL, and its owner and group as far as we may set them, before it
    gets its name. Only users who could read the old file can read the new one.

    Leaving the ``with`` block without ``commit``, or dying in it, leaves nothing behind. Where the file system has no
    nameless files (O_TMPFILE), a hidden temporary name is used, and removed when the block ends.

    Args:
        replace: whether ``target`` may exist; if not, ``commit`` never overwrites it, not even in a race.
        mode: permissions of a file that replaces none, before the umask takes away from them.

    Raises:
        MystfuseError: from the constructor, when the target exists or its directory is not writable.
    """

    def __init__(self, target: Path, replace: bool, mode: int = 0o666) -> None:
        self.target = target
        self.server: int | None = None
        self.fd = self._directory = -1
        self._replace = replace
        self._temporary: str | None = None
        check_target(target, replace)
        try:
            self._directory = open_directory(target.parent)
            replaced = self._find_replaced() if replace else None
            self.fd = self._open(0o600 if replaced is not None and stat.S_ISREG(replaced.st_mode) else mode)
            if replaced is not None:
                self._take_after(replaced)
        except FileNotFoundError as error:
            missing = self._directory < 0
            self.__exit__(None, None, None)
            why = f"there is no directory {target.parent}" if missing else self._explain(error)
            raise MystfuseError(f"{target}: cannot be written: {why}") from error
        except OSError as error:
            message = f"{target}: cannot be written: {self._explain(error)}"
            self.__exit__(None, None, None)
            raise MystfuseError(message) from error
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _open(self, mode: int) -> int:
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._directory)
        except OSError as error:
            # The errors of open(2) without nameless files: from the file system, or from an old kernel.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
        self._temporary = self._hidden_name()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return os.open(self._temporary, flags, mode, dir_fd=self._directory)

    def _find_replaced(self) -> os.stat_result | None:
        """The status of the file that has our name now; None if there is none.

        Raises:
            MystfuseError: another user has made it in a directory for all: as owner of the new file, that user could
                read and change it.
        """
        try:
            found = os.stat(self.target.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if is_put_there_by_another(found, self._directory):
            raise MystfuseError(
                f"{self.target}: it is user {found.st_uid}'s, in a directory that others may write to: remove it first"
            )
        return found

    def _take_after(self, replaced: os.stat_result) -> None:
        """Give the file the permissions, ACL, group and owner of the one that it replaces; where one fails to be set,
        fewer permissions, so that no user gains any."""
        if not stat.S_ISREG(replaced.st_mode):
            # A link, which has no permissions. Its target stays, and the new file has no more than that has.
            with suppress(FileNotFoundError):
                seen = os.stat(self.target.name, dir_fd=self._directory).st_mode
                os.fchmod(self.fd, os.fstat(self.fd).st_mode & seen & 0o777)
            return
        # Without set-user-ID bits, which writing to the old file would have taken away too.
        mode = replaced.st_mode & 0o777
        self._set_mode(mode & 0o600, mode)
        with suppress(OSError):
            os.fchown(self.fd, replaced.st_uid if os.geteuid() == 0 else -1, replaced.st_gid)
        acl = None
        with suppress(OSError):
            acl = os.getxattr(f"/proc/self/fd/{self._directory}/{self.target.name}", _ACL, follow_symlinks=False)
        if not self._set_acl(acl):
            self._set_acl(None)
            mode &= 0o700
        elif os.fstat(self.fd).st_gid != replaced.st_gid:
            # A member of the old group counts among the others now, and the reverse.
            both = mode >> 3 & mode & 0o007
            mode = mode & 0o700 | both << 3 | both
        self._set_mode(mode, mode)

    def _set_mode(self, mode: int, at_most: int) -> None:
        try:
            os.fchmod(self.fd, mode)
        except PermissionError:
            # On some file systems (vfat) all files have the same permissions: no harm, if the old one has them too.
            if os.fstat(self.fd).st_mode & 0o777 & ~at_most:
                raise

    def _set_acl(self, acl: bytes | None) -> bool:
        """Set the ACL, or remove the one inherited from the directory; returns whether that worked."""
        try:
            if acl is not None:
                os.setxattr(self.fd, _ACL, acl)
            else:
                os.removexattr(self.fd, _ACL)
        except OSError as error:
            return acl is None and error.errno in (errno.ENODATA, errno.EOPNOTSUPP)
        return True

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        return f"/proc/self/fd/{self.fd}"

    def write(self, data: bytes | bytearray) -> None:
        """Append all of ``data``.

        Raises:
            MystfuseError: writing failed.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise MystfuseError(f"{self.target}: cannot be written: {error.strerror}") from error

    def commit(self, name: str | None = None) -> None:
        """Give the file its name, and write everything to disk: the content before the name, and the name itself.

        Args:
            name: another one than the target's, in the same directory: for a file that is named after its contents.

        Raises:
            MystfuseError: the name is taken, or the disk is full.
        """
        if name is not None:
            self.target = self.target.with_name(name)
        try:
            replaced = self._find_replaced() if self._replace else None
            if replaced is not None:
                # Another process may have changed or made it meanwhile.
                self._take_after(replaced)
            os.fsync(self.fd)
            self._give_name()
        except FileExistsError as error:
            raise MystfuseError(f"{self.target}: already exists (--force overwrites it)") from error
        except OSError as error:
            raise MystfuseError(f"{self.target}: cannot be written: {self._explain(error)}") from error
        try:
            sync_directory(self._directory)
        except OSError as error:
            raise MystfuseError(f"{self.target}: made, but may be gone after a crash: {error.strerror}") from error

    def _give_name(self) -> None:
        if self._temporary is None and not self._replace:
            self._link(self.target.name)
            return
        if self._temporary is None:
            # Recorded first: an interrupt may come in between.
            self._temporary = self._hidden_name()
            self._link(self._temporary)
        if self._replace:
            os.replace(self._temporary, self.target.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        else:
            rename_without_replacing(self._directory, self._temporary, self.target.name)
        self._temporary = None

    def _explain(self, error: OSError) -> str:
        with suppress(OSError):
            if not os.fstat(self._directory).st_nlink:
                return "its directory has been removed"
            if self.fd >= 0 and not os.path.lexists(self.path):
                return "/proc is not mounted"
        return error.strerror or str(error)

    def _link(self, name: str) -> None:
        # With a directory descriptor Python calls linkat(2), which can follow the link in /proc.
        os.link(self.path, name, dst_dir_fd=self._directory, follow_symlinks=True)

    def _hidden_name(self) -> str:
        return f".{self.target.name[:200]}.{secrets.token_hex(6)}.tmp"

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        for descriptor in (self.fd, self._directory):
            if descriptor >= 0:
                os.close(descriptor)

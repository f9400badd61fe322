"""Every error that mystfuse raises on purpose, and the exit status each one ends in.

An error is raised where a rule is broken, with the numbers. It is turned into an exit status once, in ``cli.main``, or
into an errno once, in ``fuse.operations``.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import Self


class ExitStatus(IntEnum):
    """What the process exits with. These numbers are an interface: scripts depend on them."""

    DONE = 0
    FAILED = 1
    """Something outside went wrong: no space, no permission, a tool is missing. Of ``diff`` 1 means that the trees
    differ, as of diff(1), and what is FAILED elsewhere is 2."""
    USAGE = 2
    """The command line makes no sense."""
    NOT_TRUSTED = 3
    """No trusted root hash or key covers this image."""
    INTEGRITY = 4
    """The image does not match its root hash."""
    KEY = 5
    """The key is missing or wrong."""
    FORMAT = 6
    """Not an image, or one with a feature that we do not have."""
    MOUNT = 7
    """The image is fine, but mounting it there failed."""
    NOT_EXECUTABLE = 126
    """``exec``: the program exists, but is not executable; the exit status of a shell."""
    PROGRAM_NOT_FOUND = 127
    """``exec``: the image lacks the program or its interpreter; the exit status of a shell."""


class MystfuseError(Exception):
    """Base of all errors that the user gets as one line.

    ``exit_status`` is a command's exit status, ``errno`` the answer to a file-system request.
    """

    exit_status: ExitStatus = ExitStatus.FAILED
    errno: int = errno.EIO

    def at(self, where: str) -> Self:
        """The same error, its message with ``where`` in front."""
        return self._saying(f"{where}: {self}")

    def _saying(self, message: str) -> Self:
        # Not by calling the class: what subclasses want besides the message, only who raised it knows.
        error = type(self).__new__(type(self), message)
        error.__dict__.update(self.__dict__)
        return error

    def advised(self, advice: str) -> Self:
        """The same error, with ``advice``, if any, behind its message."""
        return self._saying(f"{self}; {advice}") if advice else self

    def about(self, name: str) -> Self:
        """The same error, with ``name`` in front where its message does not say what it is about."""
        return self if name in str(self) else self.at(name)


class UsageError(MystfuseError):
    """The options contradict each other or name something that is not what it should be."""

    exit_status = ExitStatus.USAGE


class NotTrusted(MystfuseError):
    """The image is not trusted by any root hash or public key."""

    exit_status = ExitStatus.NOT_TRUSTED
    errno = errno.EPERM


class IntegrityError(MystfuseError):
    """Bytes of the image do not have the digest that the hash tree gives for them."""

    exit_status = ExitStatus.INTEGRITY


class WrongKey(MystfuseError):
    """The key or passphrase is missing, impossible, or does not open the image."""

    exit_status = ExitStatus.KEY


class FormatError(MystfuseError):
    """The bytes are not an image, or an impossible one."""

    exit_status = ExitStatus.FORMAT


class NotAnImage(FormatError):
    """The file is something else than an image; the message says what, and what to do."""

    title: str = ""
    """What it is, without what to do."""

    @classmethod
    def of(cls, title: str, message: str) -> NotAnImage:
        """The error about a file that is what ``title`` says."""
        error = cls(message)
        error.title = title
        return error


class UnsupportedFeature(FormatError):
    """A well-formed image that uses something mystfuse does not have; the message names it."""


class EncryptedContents(UnsupportedFeature):
    """A file or directory that is encrypted with fscrypt, for which there is no key."""

    errno = errno.ENOKEY


class CorruptFilesystem(FormatError):
    """The EXT2 file system breaks a rule of its format; the message has the inode or block number."""

    errno = errno.EUCLEAN


class ImageReadError(MystfuseError):
    """The image file could not be read: an I/O error, a truncated file, or storage that does not answer."""


class StorageTimeout(ImageReadError):
    """Storage did not answer in time. Asking again would only wait again."""


class MountError(MystfuseError):
    """The file system could not be mounted or unmounted there."""

    exit_status = ExitStatus.MOUNT


def error_of(status: ExitStatus, message: str) -> MystfuseError:
    """The error that ends in an exit status, from the status: for what another process says."""
    kinds = (UsageError, NotTrusted, IntegrityError, WrongKey, FormatError, MountError)
    return next((kind for kind in kinds if kind.exit_status is status), MystfuseError)(message)


def innermost(error: BaseException) -> BaseException:
    """The one error inside the groups of one that trio's nurseries make."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


_UNWRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def explain(error: BaseException) -> str | None:
    """The message for an error of the system: which resource is short. None for any other error."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, (ImportError, SystemError)):
        return f"a part of mystfuse cannot be loaded: {error} (too little memory, too few open files, not installed?)"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no further thread can be started: too little memory, or too many processes (ulimit -v, ulimit -u)"
    if not isinstance(error, OSError):
        return None
    reason = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        reason += " (ulimit -n)"
    if error.filename:
        return f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno == errno.EAGAIN:
        return f"no further process can be started: {reason} (ulimit -u)"
    if error.errno in _UNWRITTEN:
        # Errors of files with a name have been reported above.
        return f"the output cannot be written: {reason}"
    if error.errno == errno.ENOENT and not _has_current_directory():
        return "the current directory is gone: cd to another, or give absolute paths"
    return reason


def one_line(message: str) -> str:
    """The message with every character that could end the line or drive a terminal escaped."""
    # Not by a codec: Python imports one when it is first used, and a daemon cannot.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)


def _has_current_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True

"""The contents of files below a directory on disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mystfuse.archives.file_tree import Entry
from mystfuse.errors import MystfuseError
from mystfuse.system.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2


class DirectoryContents:
    """Opens files below a directory, through no symbolic link.

    Raises:
        MystfuseError: the directory cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MystfuseError(f"{directory}: {error.strerror}") from error
        self.descriptors = frozenset({self._descriptor})

    def open(self, entry: Entry) -> OpenFile:
        """Raises OSError: it cannot be opened, or another kind of file has taken its place."""
        # Without waiting for the other end of a FIFO.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        path = os.fsdecode(entry.path)
        descriptor = openat2(path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS, self._descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ESTALE, "it has become another kind of file")
        return OpenFile(descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class OpenFile:
    """A file of a descriptor; see ``OpenContents``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def close(self) -> None:
        os.close(self._descriptor)

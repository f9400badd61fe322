"""Files of an image as Python's own file objects."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable
from functools import partial
from typing import IO, Any, NoReturn

from mystfuse.system.loop_thread import LoopThread
from mystfuse.tree.image_file import ImageFile

BUFFER = 128 << 10
"""Bytes: each read from the image wakes another thread twice."""
ENCODING = "utf-8"
"""Not the locale's: the image is from elsewhere."""


def open_file(
    open_raw: Callable[[], RawImageFile],
    path: str | bytes,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[Any]:
    """Open a regular file of an image by ``open_raw``; the other arguments, and errors, as for ``Image.open``."""
    if re.fullmatch(r"[wax][bt]?\+?|[wax]\+?[bt]?|r[bt]?\+|r\+[bt]?", mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if mode not in ("r", "rt", "tr", "rb", "br"):
        raise ValueError(f"invalid mode: {mode!r}")
    is_binary = "b" in mode
    if is_binary and (encoding, errors, newline) != (None, None, None):
        raise ValueError("binary mode takes no encoding, errors or newline")
    if not is_binary and buffering == 0:
        raise ValueError("text cannot be unbuffered")
    raw = open_raw()
    if buffering == 0:
        return raw  # type: ignore[return-value]
    buffered = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER)
    if is_binary:
        return buffered
    text = io.TextIOWrapper(buffered, encoding or ENCODING, errors, newline)
    text.mode = mode  # type: ignore[misc]
    return text


class RawImageFile(io.RawIOBase):
    """A regular file of an image, unbuffered.

    Args:
        thread: in whose loop it is read.
        image: kept from being closed as garbage.
    """

    def __init__(self, thread: LoopThread[Any], file: ImageFile, image: object) -> None:
        self.name = file.name
        self.mode = "rb"
        self._thread = thread
        self._file = file
        self._image = image

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(-1)

    def write(self, data: Any) -> NoReturn:
        raise io.UnsupportedOperation("not writable")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        self._check_open()
        return self._file.tell()

    def pread(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from byte ``offset`` on, fewer only at the end; the position stays where it is."""
        self._check_open()
        return self._thread.call(partial(self._file.pread, offset, length)).run()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    def _read(self, size: int) -> bytes:
        self._check_open()
        return self._thread.call(partial(self._file.read, size)).run()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in {self._image!r}>"

"""An image's file without an event loop, on storage that may hang: opened and read in threads that we can abandon.

No signal interrupts a thread in the kernel that waits for storage, and ^C reaches Python code only when the main thread
returns from the kernel. So the main thread never waits for storage.
"""

from __future__ import annotations

import _thread
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from mystfuse.devices.source import FileSource, Remoteness, Source, attempts_of, bypass_cache, read_again, remoteness
from mystfuse.errors import StorageTimeout

T = TypeVar("T")

IO_TIMEOUT = 30.0
"""The default of seconds that storage may take to answer."""

_ENDING = 1.0
"""Seconds for a finished thread to end."""


def wait_for_storage(work: Callable[[], T], name: str, io_timeout: float) -> T:
    """Return the result of ``work`` in a thread, when that has ended: a process of one thread has one again, as some
    namespaces require. ^C ends the wait at once, and leaves the thread behind.

    Args:
        name: of the file or storage.
        io_timeout: seconds.

    Raises:
        StorageTimeout: it has not ended by then.
        RuntimeError: no thread can be started.
    """
    results: SimpleQueue[list[T] | BaseException] = SimpleQueue()
    thread = 0

    def serve() -> None:
        nonlocal thread
        thread = _thread.get_native_id()
        try:
            results.put([work()])
        except BaseException as error:
            results.put(error)

    _thread.start_new_thread(serve, ())
    try:
        result = results.get(timeout=None if io_timeout == math.inf else io_timeout)
    except Empty:
        raise timed_out(name, io_timeout) from None
    _wait_for_end(thread)
    if isinstance(result, BaseException):
        raise result
    return result[0]


def _wait_for_end(thread: int) -> None:
    """Wait until a finished thread has ended, but not long."""
    deadline = time.monotonic() + _ENDING
    while os.path.exists(f"/proc/self/task/{thread}") and time.monotonic() < deadline:
        time.sleep(0.0001)


def timed_out(name: str, io_timeout: float) -> StorageTimeout:
    """The error when storage does not answer."""
    return StorageTimeout(f"{name}: no answer from storage within {io_timeout:g} s")


class Opening:
    """Opening a file, in a thread that may be left behind: call ``run`` there, and ``abandon`` to stop waiting."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._is_abandoned = False
        self._opened: list[FileSource] = []

    def run(self) -> FileSource:
        """Raises ImageReadError, FormatError as ``FileSource``."""
        source = FileSource(self._path)
        self._opened.append(source)
        if self._is_abandoned:
            self.abandon()
        return source

    def abandon(self) -> None:
        """Close the file, now or when it has been opened."""
        self._is_abandoned = True
        # Each of the two threads pops it: only one gets it.
        with suppress(IndexError):
            self._opened.pop().close()


def open_file(path: str | os.PathLike[str], io_timeout: float) -> FileSource:
    """Open an image's file.

    Raises:
        ImageReadError, FormatError: as ``FileSource``; StorageTimeout after ``io_timeout`` seconds.
    """
    opening = Opening(path)
    try:
        return wait_for_storage(opening.run, os.fspath(path), io_timeout)
    except BaseException:
        opening.abandon()
        raise


class PatientSource:
    """A ``Source`` whose reads take ``io_timeout`` seconds at most, and do not keep ^C from the main thread."""

    def __init__(self, source: Source, io_timeout: float) -> None:
        self.name = source.name
        self.read_cached = source.read_cached
        self.close = source.close
        self.source = source
        self.attempts = attempts_of(source)
        self._io_timeout = io_timeout

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def remoteness(self) -> Remoteness:
        return remoteness(self.source)

    def read_again(self, offset: int, length: int) -> bytes | None:
        """See ``source.read_again``; StorageTimeout when it does not answer."""
        return wait_for_storage(partial(read_again, self.source, offset, length), self.name, self._io_timeout)

    def bypass_cache(self) -> None:
        """See ``source.bypass_cache``."""
        bypass_cache(self.source)

    def read(self, offset: int, length: int) -> bytes:
        """As of any source; StorageTimeout when storage does not answer."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As of any source; StorageTimeout when storage does not answer."""
        if not self.read_cached(offset, buffer):
            # Not into the buffer itself, which an abandoned thread would go on to change.
            buffer[:] = wait_for_storage(partial(self.source.read, offset, len(buffer)), self.name, self._io_timeout)

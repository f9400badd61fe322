"""Storage of images that hangs when a test says so, within the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mystfuse.devices import patience
from mystfuse.devices.source import FileSource


class HangingSource(FileSource):
    """Its reads, none of which the page cache answers, wait for ``answers``."""

    answers = threading.Event()
    waiting = 0

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        return super().read_cached(offset, buffer) if self.answers.is_set() else False

    def read(self, offset: int, length: int) -> bytes:
        if not self.answers.is_set():
            HangingSource.waiting += 1
            self.answers.wait(30)
        return super().read(offset, length)


@contextmanager
def hanging_storage() -> Iterator[type[HangingSource]]:
    """Images that the block opens hang while ``answers`` is not set; it is, at first and at the end."""
    HangingSource.answers = threading.Event()
    HangingSource.answers.set()
    HangingSource.waiting = 0
    patience.FileSource, before = HangingSource, patience.FileSource  # type: ignore[misc]
    try:
        yield HangingSource
    finally:
        HangingSource.answers.set()
        patience.FileSource = before  # type: ignore[misc]

"""The number of names of a huge directory, and a source without memory for its answers."""

from __future__ import annotations

import os

from mystfuse.devices.source import FileSource

NAMES = int(os.environ.get("MYSTFUSE_LIMIT_NAMES", "60000"))


class FailingSource(FileSource):
    """A source without memory, or without a thread, for its answers."""

    failure: BaseException | None = None

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if isinstance(self.failure, OSError):
            raise self.failure
        return False

    def read(self, offset: int, length: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        return super().read(offset, length)

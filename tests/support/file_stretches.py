"""Where a file has data and where it has holes, as lseek(2) tells."""

from __future__ import annotations

import os
from errno import ENXIO
from pathlib import Path


def stretches(path: Path, flags: int = os.O_RDONLY) -> list[tuple[int, int]]:
    """The file's data: where each stretch begins and ends.

    Args:
        flags: with which it is opened.
    """
    found = []
    handle = os.open(path, flags)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(handle, end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == ENXIO
                return found
            end = os.lseek(handle, start, os.SEEK_HOLE)
            found.append((start, end))
    finally:
        os.close(handle)

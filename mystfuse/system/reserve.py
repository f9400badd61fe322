"""Memory that is kept back for what must not fail: the end of a commit, once the first block has been overwritten."""

from __future__ import annotations

import mmap
from collections.abc import Callable

_SIZE = 2 << 20
"""Bytes: two of the pieces that Python's allocator takes from the system for small objects."""

_kept: mmap.mmap | None = None


def keep_reserve() -> None:
    """Have the reserve ready. It is address space that nobody touches: no memory until it is given back.

    Raises:
        MemoryError: there is none.
    """
    global _kept
    if _kept is None:
        try:
            _kept = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            raise MemoryError from None


def insist(step: Callable[[], None]) -> None:
    """Call ``step`` until it succeeds: with the reserve, when there is no other memory.

    Args:
        step: may be called again from its beginning, wherever it failed; takes no more than small objects.
    """
    global _kept
    try:
        step()
    except MemoryError:
        _kept = None
        step()

"""zstd: Python's own module from 3.14 on, or the same for older ones."""

from __future__ import annotations

from typing import Any


def load_zstd() -> Any:
    """The module: only where it is needed, since it takes some milliseconds to import."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd
    return zstd

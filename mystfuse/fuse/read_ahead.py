"""How far the kernel reads ahead of whoever reads a file."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

READ_AHEAD = 1 << 20
"""Bytes: as much as one request can have. A request costs about the same whatever it brings."""


def raise_read_ahead(device: str, size: int = READ_AHEAD) -> None:
    """Have the kernel read up to ``size`` bytes ahead on the mount ``device`` (``major:minor``), rather than the
    128 KiB that it takes by itself, if we may: that is for root.

    Not before INIT has been answered, which lowers it to what was agreed then (fs/fuse/inode.c, process_init_reply).
    """
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{size >> 10}\n")
    except OSError as error:
        log.debug("the kernel reads 128 KiB ahead: %s", error)

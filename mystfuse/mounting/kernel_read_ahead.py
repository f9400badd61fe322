"""The kernel's own read-ahead on a mount: how far it reads ahead, and how many reads it sends at once."""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)

READ_AHEAD = 1 << 20
"""Bytes: the most that one request can have. A request costs about the same for any size."""
BACKGROUND = 48
"""Reads for the page cache at once: fewer than ``session.MAX_TASKS``, which leaves some for other requests."""


def raise_read_ahead(device: str, size: int = READ_AHEAD) -> None:
    """Have the kernel read up to ``size`` bytes ahead on the mount ``device`` (``major:minor``), rather than its
    default of 128 KiB; only root may.

    Not before INIT has been answered, which lowers it to what was agreed then (fs/fuse/inode.c, process_init_reply).
    """
    try:
        _write(f"/sys/class/bdi/{device}/read_ahead_kb", size >> 10)
    except OSError as error:
        log.debug("the kernel reads 128 KiB ahead: %s", error)


def allow_background(device: str, requests: int = BACKGROUND) -> None:
    """Have the kernel send up to ``requests`` reads for the page cache at once on the mount ``device``
    (``major:minor``), rather than 12, if we may. Requests that wait in the kernel for storage that hangs wait
    longer than one time-out. (fs/fuse/control.c; the number of a connection is the device's minor one.)
    """
    try:
        _write(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/max_background", requests)
    except OSError as error:
        log.debug("the kernel sends 12 reads at once: %s", error)


def _write(path: str, number: int) -> None:
    # Without O_CREAT and O_TRUNC, which the filter refuses to the keeper.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{number}\n".encode())
    finally:
        os.close(descriptor)

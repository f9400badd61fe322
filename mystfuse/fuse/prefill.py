"""Prefill: small files go into the kernel's page cache when they are opened, so that it need not ask for them."""

from __future__ import annotations

import logging

import pyfuse3

from mystfuse.fuse.lookup_counts import LookupCounts
from mystfuse.volume.volume import Volume

log = logging.getLogger(__name__)

SMALL_FILE = 64 << 10
"""Bytes: files up to this size are prefilled."""
_MAX_FILLED = 65536


class Prefill:
    """The files of one mount that were put into the page cache, and that the kernel has not forgotten since."""

    def __init__(self, volume: Volume, lookup_counts: LookupCounts) -> None:
        self._volume = volume
        self._lookup_counts = lookup_counts
        self._filled: set[int] = set()

    def forget(self, ino: int) -> None:
        """The kernel has forgotten an inode, and its pages with it."""
        self._filled.discard(ino)

    def fill(self, ino: int) -> None:
        """Put a file that is being opened for reading into the page cache, if it is small and needs no waiting.

        notify_store waits for pages that are locked, and would wait for ever for those that are locked by a READ, which
        only this thread answers. A READ belongs to a handle (the kernel holds it until the READ has been answered), so
        there is none while there is no handle; and without a writer no page is dirty. Between checking both and storing
        there is no await.
        """
        if ino in self._filled or self._lookup_counts.is_open(ino):
            return
        content = self._volume.read_now(ino, SMALL_FILE)
        if not content:
            return
        if len(self._filled) >= _MAX_FILLED:
            self._filled.clear()
        self._filled.add(ino)
        try:
            pyfuse3.notify_store(ino, 0, content)  # type: ignore[arg-type]  # pyfuse3 takes any buffer
        except OSError as error:
            # Then the kernel asks for it.
            log.debug("inode %d: page cache not prefilled: %s", ino, error)

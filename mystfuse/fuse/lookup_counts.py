"""FUSE lookup counts: the inodes that the kernel knows or has open. An unlinked inode lives until it is neither."""

from __future__ import annotations

from array import array
from collections import Counter

_PAGE = 128
"""Inodes in a page of 1 KiB, about the size of the kernel's own inode: names scattered over the inodes cost us no more
than they cost the kernel."""


class LookupCounts:
    """Lookup counts by inode number, in arrays rather than objects, and open handles."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._in_page: Counter[int] = Counter()
        """The number of inodes of a page with a count: a page without one is dropped."""
        self._open: dict[int, int] = {}

    def known(self, ino: int) -> None:
        """A reply has named the inode once more (a lookup, a new name, an entry of a listing)."""
        number, index = divmod(ino, _PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = array("Q", bytes(8 * _PAGE))
        if not page[index]:
            self._in_page[number] += 1
        page[index] += 1

    def forgotten(self, ino: int, count: int) -> bool:
        """FORGET: subtract ``count``. True if the kernel does not know the inode any more."""
        number, index = divmod(ino, _PAGE)
        page = self._pages.get(number)
        if page is None or not page[index]:
            return True
        page[index] -= min(count, page[index])
        if not page[index]:
            self._in_page[number] -= 1
            if not self._in_page[number]:
                del self._in_page[number], self._pages[number]
            return True
        return False

    def opened(self, ino: int) -> None:
        """A handle of the inode was opened."""
        self._open[ino] = self._open.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        """A handle of the inode was released."""
        self._open[ino] -= 1
        if not self._open[ino]:
            del self._open[ino]

    def is_open(self, ino: int) -> bool:
        """Whether there is a handle of the inode."""
        return ino in self._open

    def has(self, ino: int) -> bool:
        """Whether the kernel knows the inode, or has it open."""
        page = self._pages.get(ino // _PAGE)
        return ino in self._open or (page is not None and page[ino % _PAGE] != 0)

"""FUSE lookup counts: the inodes that the kernel knows. An unlinked inode lives until the kernel has forgotten it, and
the kernel forgets none that is open."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Protocol

_PAGE = 128
"""Inodes in a page of 1 KiB, about the size of the kernel's own inode: names scattered over the inodes cost us no more
than they cost the kernel."""


class LookupCounts(Protocol):
    """Lookup counts by inode number."""

    def known(self, ino: int) -> None:
        """A reply has named the inode once more (a lookup, a new name, an entry of a listing)."""
        ...

    def forgotten(self, ino: int, count: int) -> bool:
        """FORGET: subtract ``count``. True if the kernel does not know the inode any more."""
        ...

    def has(self, ino: int) -> bool:
        """Whether the kernel knows the inode."""
        ...


class OwnLookupCounts:
    """``LookupCounts`` in arrays rather than objects."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._in_page: Counter[int] = Counter()
        """The number of inodes of a page with a count: a page without one is dropped."""

    def known(self, ino: int) -> None:
        number, index = divmod(ino, _PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = array("Q", bytes(8 * _PAGE))
        if not page[index]:
            self._in_page[number] += 1
        page[index] += 1

    def forgotten(self, ino: int, count: int) -> bool:
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

    def has(self, ino: int) -> bool:
        page = self._pages.get(ino // _PAGE)
        return page is not None and page[ino % _PAGE] != 0

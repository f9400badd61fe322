"""Memory for blocks, taken from the system in arenas and given back to it page by page."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from errno import ENOSPC
from itertools import pairwise

ARENA_SIZE = 4 << 20
"""Bytes."""


class Arenas:
    """Slots of ``block_size`` bytes (a power of two), named by a number.

    Memory of pages without a used slot goes back to the system at once, and so does the address space of an empty
    arena. All memory is anonymous: it never reaches a disk but by swapping.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._slots = ARENA_SIZE // block_size
        self._slots_per_page = max(mmap.PAGESIZE // block_size, 1)
        self._arenas: dict[int, mmap.mmap] = {}
        self._free: dict[int, list[int]] = {}
        """Free slots of each arena, by their number in it."""
        self._used_in_page: dict[int, bytearray] = {}
        self._with_room: list[int] = []
        self._next_arena = 0
        self.used = 0
        """Slots in use."""

    def store(self, content: bytes | bytearray | memoryview) -> int:
        """Take a slot and fill it; returns its number.

        Raises:
            OSError: ENOSPC, the system has no memory left.
        """
        if not self._with_room:
            self._add_arena()
        arena = self._with_room[-1]
        free = self._free[arena]
        index = free.pop()
        if not free:
            self._with_room.pop()
        self._used_in_page[arena][index // self._slots_per_page] += 1
        self.used += 1
        start = index * self._block_size
        self._arenas[arena][start : start + self._block_size] = content
        return arena * self._slots + index

    def overwrite(self, slot: int, content: bytes | bytearray | memoryview) -> None:
        """Fill a slot that is in use with something else."""
        arena, index = divmod(slot, self._slots)
        start = index * self._block_size
        self._arenas[arena][start : start + self._block_size] = content

    def load(self, slot: int) -> bytes:
        """A copy of what is in a slot."""
        arena, index = divmod(slot, self._slots)
        start = index * self._block_size
        return self._arenas[arena][start : start + self._block_size]

    def free(self, slots: Iterable[int]) -> None:
        """Give slots back."""
        pages: dict[int, list[int]] = {}
        for slot in slots:
            arena, index = divmod(slot, self._slots)
            free = self._free[arena]
            if not free:
                self._with_room.append(arena)
            free.append(index)
            self.used -= 1
            page = index // self._slots_per_page
            counts = self._used_in_page[arena]
            counts[page] -= 1
            if not counts[page]:
                pages.setdefault(arena, []).append(page)
        for arena, empty in pages.items():
            if len(self._free[arena]) == self._slots and len(self._with_room) > 1:
                self._drop_arena(arena)
            else:
                self._give_back(arena, sorted(empty))

    def _add_arena(self) -> None:
        try:
            memory = mmap.mmap(-1, ARENA_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise OSError(ENOSPC, "no memory left for the overlay") from error
        arena, self._next_arena = self._next_arena, self._next_arena + 1
        self._arenas[arena] = memory
        # Taken from the end: the first slots first.
        self._free[arena] = list(range(self._slots - 1, -1, -1))
        self._used_in_page[arena] = bytearray(self._slots // self._slots_per_page)
        self._with_room.append(arena)

    def _drop_arena(self, arena: int) -> None:
        self._arenas.pop(arena).close()
        del self._free[arena], self._used_in_page[arena]
        self._with_room.remove(arena)

    def _give_back(self, arena: int, pages: list[int]) -> None:
        """Give the memory of pages back, neighbours together."""
        length = max(mmap.PAGESIZE, self._block_size)
        starts = [pages[0], *(page for previous, page in pairwise(pages) if page != previous + 1)]
        ends = [*(previous for previous, page in pairwise(pages) if page != previous + 1), pages[-1]]
        for start, end in zip(starts, ends, strict=True):
            self._arenas[arena].madvise(mmap.MADV_DONTNEED, start * length, (end + 1 - start) * length)

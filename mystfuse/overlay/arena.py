"""Memory for blocks, taken from the system in arenas and given back to it page by page."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import suppress
from errno import ENOSPC
from itertools import pairwise

ARENA_SIZE = 4 << 20
"""Bytes."""
_MADV_POPULATE_WRITE = 23
"""Linux 5.14, include/uapi/asm-generic/mman-common.h; Python has no name for it."""


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
        self.is_unsure = False
        """Whether something failed in the middle of a change: ``recover`` is to be called before the next one."""

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

    def store_run(self, content: memoryview) -> list[int]:
        """Take slots for several blocks and fill them: all of it or nothing. Returns their numbers, in order.

        Raises:
            OSError: ENOSPC, the system has no memory left.
        """
        slots: list[int] = []
        count = len(content) // self._block_size
        try:
            while len(slots) < count:
                slots += self._store_in_arena(content[len(slots) * self._block_size :])
        except (OSError, MemoryError):
            self.free(slots)
            raise
        return slots

    def _store_in_arena(self, content: memoryview) -> list[int]:
        """Store as many blocks as have room in one arena, and one at least."""
        if not self._with_room:
            self._add_arena()
        arena = self._with_room[-1]
        free = self._free[arena]
        # As they would be popped one by one.
        indices = free[: -(len(content) // self._block_size) - 1 : -1]
        del free[-len(indices) :]
        if not free:
            self._with_room.pop()
        self.used += len(indices)
        size, used_in_page, position = self._block_size, self._used_in_page[arena], 0
        for stretch in _stretches(indices):
            if self._slots_per_page == 1:
                used_in_page[stretch.start : stretch.stop] = b"\1" * len(stretch)
            else:
                for index in stretch:
                    used_in_page[index // self._slots_per_page] += 1
            start, length = stretch.start * size, len(stretch) * size
            _populate(self._arenas[arena], start, length)
            self._arenas[arena][start : start + length] = content[position : position + length]
            position += length
        return [arena * self._slots + index for index in indices]

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

    def recover(self, slots: Iterable[int]) -> None:
        """Have exactly these slots in use, each of which may come more than once: an error in the middle of a change
        has left tables that may say otherwise.

        Raises:
            MemoryError: to be called again.
        """
        in_use = {arena: bytearray(self._slots) for arena in self._arenas}
        for slot in slots:
            arena, index = divmod(slot, self._slots)
            in_use[arena][index] = 1
        per_page = self._slots_per_page
        self._free = {
            arena: [index for index in range(self._slots - 1, -1, -1) if not used[index]]
            for arena, used in in_use.items()
        }
        self._used_in_page = {
            arena: bytearray(sum(used[start : start + per_page]) for start in range(0, self._slots, per_page))
            for arena, used in in_use.items()
        }
        self._with_room = [arena for arena, free in self._free.items() if free]
        self.used = sum(used.count(1) for used in in_use.values())
        for arena, counts in self._used_in_page.items():
            if empty := [page for page, count in enumerate(counts) if not count]:
                self._give_back(arena, empty)
        for arena in [arena for arena in self._with_room if len(self._free[arena]) == self._slots][1:]:
            self._drop_arena(arena)
        self.is_unsure = False

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


def _stretches(indices: list[int]) -> list[range]:
    """Consecutive numbers, together."""
    if indices[-1] - indices[0] == len(indices) - 1 and indices == list(range(indices[0], indices[-1] + 1)):
        return [range(indices[0], indices[-1] + 1)]
    ends = [position for position in range(1, len(indices)) if indices[position] != indices[position - 1] + 1]
    return [range(indices[begin], indices[end - 1] + 1) for begin, end in pairwise([0, *ends, len(indices)])]


def _populate(memory: mmap.mmap, start: int, length: int) -> None:
    """Have the system give the pages of a range at once, rather than each when it is first written to."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    # An older kernel does not know this: then they come one by one.
    with suppress(OSError):
        memory.madvise(_MADV_POPULATE_WRITE, first, start + length - first)

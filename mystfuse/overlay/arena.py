"""Memory for blocks, taken from the system in arenas and given back to it page by page."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from errno import ENOSPC

from mystfuse.overlay.mirror import Mirror
from mystfuse.overlay.slots import USED, Slots, runs_of

ARENA_SIZE = 4 << 20
"""Bytes."""
TOUCHED = 2
"""State of a slot: it has been used again since the spill last looked at it."""
_MADV_POPULATE_WRITE = 23
"""Linux 5.14, include/uapi/asm-generic/mman-common.h; Python has no name for it."""

Content = bytes | bytearray | memoryview
Placed = tuple[mmap.mmap, slice, Content, int]
"""A block, the memory and the slice of it that it goes to, and the slot that this is."""


class Arenas:
    """Slots of ``block_size`` bytes (a power of two), named by a number.

    Memory of pages without a used slot goes back to the system at once, and so does the address space of an empty
    arena. All memory is anonymous: it never reaches a disk but by swapping.
    """

    def __init__(self, block_size: int) -> None:
        self.slots = Slots()
        self._states = self.slots.states
        self._block_size = block_size
        self._per_arena = ARENA_SIZE // block_size
        self._per_page = max(mmap.PAGESIZE // block_size, 1)
        self._arenas: dict[int, mmap.mmap] = {}
        self._mirror: Mirror | None = None

    @property
    def used(self) -> int:
        """Slots in use."""
        return self.slots.used

    def most(self, count: int) -> int:
        """The number of arenas there may be once ``count`` more slots have been taken."""
        return -(-(max(self.slots.size, self.slots.used + count)) // self._per_arena) + 1

    def set_mirror(self, mirror: Mirror) -> None:
        """Tell ``mirror`` of the arenas, and of all that come and go from now on."""
        for number, memory in self._arenas.items():
            mirror.arena(number, memory)
        self._mirror = mirror

    def take(self, count: int) -> list[int]:
        """Take ``count`` slots (at least one), to be filled: all of them or none.

        Raises:
            OSError: ENOSPC, the system has no memory left.
            MemoryError: the same, for other memory than blocks.
        """
        missing = count - self.slots.size + self.slots.used
        if missing > 0:
            self.slots.grow(-(-missing // self._per_arena) * self._per_arena)
        slots = self.slots.take(count)
        try:
            # The arenas between have no free slot, so they exist.
            for arena in range(slots[0] // self._per_arena, slots[-1] // self._per_arena + 1):
                if arena not in self._arenas:
                    memory = mmap.mmap(-1, ARENA_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                    self._arenas[arena] = memory
                    if self._mirror is not None:
                        self._mirror.arena(arena, memory)
        except OSError as error:
            self.free(slots)
            raise OSError(ENOSPC, "no memory left for the overlay") from error
        except MemoryError:
            self.free(slots)
            raise
        return slots

    def fill(self, slot: int, content: Content) -> None:
        """Put a block into a slot."""
        memory, where = self.place(slot)
        memory[where] = content

    def fill_run(self, slots: Sequence[int], content: Content) -> None:
        """Put consecutive blocks into slots."""
        size, position = self._block_size, 0
        for run in runs_of(slots):
            for part in self._in_arenas(run):
                memory, where = self.place(part.start, len(part))
                if len(part) > self._per_page:
                    # All pages at once, rather than each on its first write. An older kernel lacks this.
                    first = where.start // mmap.PAGESIZE * mmap.PAGESIZE
                    with suppress(OSError):
                        memory.madvise(_MADV_POPULATE_WRITE, first, where.stop - first)
                length = len(part) * size
                memory[where] = content if length == len(content) else content[position : position + length]
                position += length

    def placed(self, blocks: Iterable[tuple[int, Content]]) -> list[Placed]:
        """Blocks by their slots, made ready for ``overwrite``."""
        arenas, per_arena, size = self._arenas, self._per_arena, self._block_size
        return [
            (arenas[slot // per_arena], slice(start := slot % per_arena * size, start + size), content, slot)
            for slot, content in blocks
        ]

    def overwrite(self, blocks: Iterator[Placed]) -> None:
        """Put blocks into slots that are in use. Takes no memory, so that it cannot fail."""
        states = self._states
        for memory, where, content, slot in blocks:
            memory[where] = content
            states[slot] = TOUCHED

    def place(self, slot: int, count: int = 1) -> tuple[mmap.mmap, slice]:
        """The place of a slot's bytes (and of those behind it in the same arena)."""
        arena, index = divmod(slot, self._per_arena)
        return self._arenas[arena], slice(index * self._block_size, (index + count) * self._block_size)

    def load(self, slot: int) -> bytes:
        """A copy of a slot's contents."""
        states = self._states
        if states[slot] == USED:
            states[slot] = TOUCHED
        # Every read of a block comes here, so it does not call ``place``.
        arena, index = divmod(slot, self._per_arena)
        start = index * self._block_size
        return self._arenas[arena][start : start + self._block_size]

    def free(self, slots: Sequence[int]) -> None:
        """Give slots back."""
        self.slots.free(slots, self.slots.used - len(slots))
        self.give_back(slots)

    def give_back(self, slots: Sequence[int]) -> None:
        """Give the pages of free slots to the system. Never fails: without memory for that we keep them."""
        try:
            for run in runs_of(sorted(slots)):
                for part in self._in_arenas(run):
                    self._give_back(part)
        except MemoryError:
            return

    def _give_back(self, part: range) -> None:
        arena, is_free = part.start // self._per_arena, self.slots.is_free
        if is_free(arena * self._per_arena, (arena + 1) * self._per_arena):
            if arena in self._arenas:
                if self._mirror is not None:
                    self._mirror.arena(arena, None)
                self._arenas.pop(arena).close()
            return
        start, end = part.start // self._per_page * self._per_page, -(-part.stop // self._per_page) * self._per_page
        if not is_free(start, part.start):
            start += self._per_page
        if not is_free(part.stop, end):
            end -= self._per_page
        if start < end:
            memory, where = self.place(start, end - start)
            memory.madvise(mmap.MADV_DONTNEED, where.start, where.stop - where.start)

    def _in_arenas(self, run: range) -> list[range]:
        """A run of slots, divided where arenas end."""
        bounds = range(run.start - run.start % self._per_arena, run.stop, self._per_arena)
        return [run[max(bound - run.start, 0) : bound + self._per_arena - run.start] for bound in bounds]

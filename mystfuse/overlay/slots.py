"""The slots of memory or of a file that are in use: one byte each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

FREE, USED = 0, 1
"""States of a slot. The owner may define further ones, which mean that it is in use."""
_FREE_RUN = re.compile(b"\0+")


class Slots:
    """Slots by number, the lowest ones taken first. ``take`` takes all or, when it raises, none."""

    def __init__(self) -> None:
        self.states = bytearray()
        """Always the same object."""
        self.used = 0
        """Slots in use."""
        self._lowest = 0
        """No slot below this is free."""

    @property
    def size(self) -> int:
        """Slots, free ones included."""
        return len(self.states)

    def grow(self, count: int) -> None:
        """Add free slots behind the last one."""
        self.states += bytes(count)

    def shrink(self) -> None:
        """Drop the free slots behind the last one in use."""
        del self.states[len(self.states.rstrip(b"\0")) :]
        self._lowest = min(self._lowest, len(self.states))

    def take(self, count: int, end: int | None = None) -> list[int]:
        """Take the first ``count`` free slots, or fewer if there are fewer.

        Args:
            end: only slots below this.
        """
        states, position = self.states, self._lowest
        end = len(states) if end is None else end
        slots: list[int] = []
        while (missing := count - len(slots)) and (start := states.find(FREE, position, end)) >= 0:
            part = states[start : min(start + missing, end)]
            position = start + len(part) - len(part.lstrip(b"\0"))
            slots += range(start, position)
        used = self.used + len(slots)
        # Once the loop has begun nothing takes memory.
        for slot in slots:
            states[slot] = USED
        self.used, self._lowest = used, position
        return slots

    def free(self, slots: Iterable[int], left: int) -> None:
        """Give slots back. With an iterator this takes no memory, so that it cannot fail.

        Args:
            left: the number in use afterwards.
        """
        states = self.states
        for slot in slots:
            states[slot] = FREE
            if slot < self._lowest:
                self._lowest = slot
        self.used = left

    def free_runs(self) -> list[range]:
        """All free slots."""
        return [range(*match.span()) for match in _FREE_RUN.finditer(self.states)]

    def is_free(self, start: int, end: int) -> bool:
        """Whether no slot from ``start`` to before ``end`` is in use."""
        return self.states.startswith(bytes(end - start), start)


def runs_of(slots: Sequence[int], longest: int | None = None) -> Iterator[range]:
    """Consecutive slots, together."""
    if not slots:
        return
    if slots[-1] - slots[0] == len(slots) - 1 and longest is None and list(range(slots[0], slots[-1] + 1)) == slots:
        # The usual case.
        yield range(slots[0], slots[-1] + 1)
        return
    ends = [position for position in range(1, len(slots)) if slots[position] != slots[position - 1] + 1]
    for begin, end in pairwise([0, *ends, len(slots)]):
        step = longest or end - begin
        for start in range(begin, end, step):
            yield range(slots[start], slots[min(start + step, end) - 1] + 1)

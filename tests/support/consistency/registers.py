"""Registers: what one writer made of one thing, and when."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class Register(Generic[T]):
    """The states of one thing, in the order in which its writer made them.

    A state begins at some moment of the call that made it, and ends at some moment of the next one.
    """

    def __init__(self) -> None:
        self.states: list[T] = []
        self._starts: list[int] = []
        self._ends: list[int] = []

    def set(self, state: T, start: int, end: int) -> None:
        """A call from ``start`` to ``end`` (ns) made this state."""
        self.states.append(state)
        self._starts.append(start)
        self._ends.append(end)

    def window(self, start: int, end: int) -> range:
        """The numbers of the states that may have been at some moment from ``start`` to ``end``."""
        return range(max(bisect_left(self._ends, start) - 1, 0), bisect_right(self._starts, end))

    def during(self, start: int, end: int) -> Iterator[T]:
        """The states of that window."""
        for index in self.window(start, end):
            yield self.states[index]

    def story(self, start: int, end: int) -> str:
        """That window for people, with a state before and after it."""
        window = self.window(start, end)
        shown = range(max(window.start - 1, 0), min(window.stop + 1, len(self.states)))
        lines = []
        for index in shown:
            mark = "*" if index in window else " "
            lines.append(f"  {mark} {index}: {self._starts[index]}..{self._ends[index]} {self.states[index]}")
        return "\n".join(lines)


class Order:
    """Whether readers of one register saw its states in their order.

    A reader that begins after another has ended sees no older state. Each read takes the oldest state that it can have
    seen: if that finds none, there is none, since an older one restricts later reads least.
    """

    def __init__(self) -> None:
        self._oldest = 0
        self._pending: list[tuple[int, int]] = []

    def take(self, choices: list[int], start: int, end: int) -> bool:
        """A read from ``start`` to ``end`` saw one of the states ``choices`` (increasing). Call it by increasing
        ``start``. False: all of them were over."""
        while self._pending and self._pending[0][0] < start:
            self._oldest = max(self._oldest, heappop(self._pending)[1])
        for choice in choices:
            if choice >= self._oldest:
                heappush(self._pending, (end, choice))
                return True
        return False

"""The base of the targets: a target, the errors that it may raise, and decisions made from bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

CORPUS = Path(__file__).parent / "corpus"
"""A directory for each target: inputs that together reach all code that was reached so far."""
REGRESSIONS = Path(__file__).parent / "regressions"
"""A directory for each target: inputs that broke a promise once."""
MAX_SECONDS = 10.0
"""Processor time for one input, instrumentation included: far more than any input needs."""

T = TypeVar("T")


class InvariantBroken(AssertionError):
    """The code under test has broken a promise."""


@dataclass(frozen=True)
class Target:
    """Code under test, as a function of bytes. It raises nothing unless that code is wrong."""

    name: str
    function: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]] = field(default=lambda: [b""])
    """Well-formed inputs to start from, besides those in the corpus."""
    max_length: int = 2048
    """The maximum length of an input in bytes."""
    words: Sequence[bytes] = ()
    """Words of the format, which the fuzzer inserts into inputs."""

    def run(self, data: bytes) -> None:
        """Run one input.

        Raises:
            Exception: the code under test is wrong.
        """
        with bounded():
            self.function(data)

    def stored(self) -> list[Path]:
        """The inputs in the repository."""
        return sorted([*(CORPUS / self.name).glob("*"), *(REGRESSIONS / self.name).glob("*")])


@contextmanager
def bounded(seconds: float = MAX_SECONDS, what: str = "one input") -> Iterator[None]:
    """Raise if this takes too long, in processor time, so that a busy machine makes no difference."""
    started = time.thread_time()
    yield
    spent = time.thread_time() - started
    ensure(spent <= seconds, f"{what} takes {spent:.1f} s")


def ensure(holds: bool, message: str) -> None:
    """Raise InvariantBroken unless this holds."""
    if not holds:
        raise InvariantBroken(message)


class Choices:
    """Decisions made from bytes, one after the other; behind the last byte all are 0. So every input has a meaning, and
    similar inputs have similar ones."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._position < len(self._data)

    def take(self, count: int) -> bytes:
        """``count`` bytes, zeros behind the end."""
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        taken = self._data[self._position :]
        self._position = len(self._data)
        return taken

    def number(self, size: int) -> int:
        """A number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, end: int) -> int:
        """A number from 0 to ``end - 1``."""
        return self.number(1 if end <= 1 << 8 else 2 if end <= 1 << 16 else 4) % end

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def nasty(self, size: int, old: int, others: Sequence[int] = ()) -> int:
        """A value for a field of ``size`` bytes that is likely to break something.

        Args:
            old: the present value.
            others: values with a meaning in this place.
        """
        mask = (1 << 8 * size) - 1
        half = 1 << 8 * size - 1
        values = (0, 1, 2, mask, mask - 1, half, half - 1, half + 1, old + 1, old - 1, old * 2, old // 2, *others)
        kind = self.below(len(values) + 2)
        if kind < len(values):
            return values[kind] & mask
        return self.number(size) if kind == len(values) else (old ^ 1 << self.below(8 * size)) & mask

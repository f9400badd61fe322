"""The workers' counters, in memory that all processes share: operations and their latencies, errors, progress."""

from __future__ import annotations

import errno
import math
import mmap
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

KINDS = (
    "walk", "list", "stat", "read", "read-direct", "read-mapped", "read-image", "create", "write", "append",
    "write-direct", "write-mapped", "fsync", "truncate", "rename", "link", "symlink", "unlink", "mkdir", "rmdir",
    "xattr", "open", "statfs",
)  # fmt: skip
"""Of operations."""
_INDEX = {kind: index for index, kind in enumerate(KINDS)}
_PER_OCTAVE = 8
"""Latencies are counted to within 9 %."""
_BUCKETS = 40 * _PER_OCTAVE
_LONGEST, _COUNT, _HISTOGRAM = 0, 1, 2
_PER_KIND = _HISTOGRAM + _BUCKETS
"""The longest, in nanoseconds; the number; the number for each range."""
_ERRNOS = 134
_STATE, _PROGRESS, _BYTES, _FILES, _ERRORS = range(5)
_TIMES = _ERRORS + _ERRNOS
_PER_WORKER = _TIMES + len(KINDS) * _PER_KIND
_PHASE, _FILL_AT, _HEAD = 0, 1, 2


class Phase(IntEnum):
    """What the workers shall do, and what a worker has reached."""

    RUN = 0
    PAUSE = 1
    CHECK = 2
    """Compare everything with the model."""
    REMOVE = 3
    """Remove everything, and end."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of one kind of operation, in seconds."""

    count: int
    median: float
    p99: float
    longest: float


class Meter:
    """The counters of all workers. Made before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._words = memoryview(mmap.mmap(-1, 8 * (_HEAD + workers * _PER_WORKER))).cast("Q")

    @property
    def phase(self) -> Phase:
        return Phase(self._words[_PHASE])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._words[_PHASE] = phase

    @property
    def fill_at(self) -> float:
        """When (time.monotonic) a worker shall fill the overlay up."""
        return self._words[_FILL_AT] / 1e9

    @fill_at.setter
    def fill_at(self, moment: float) -> None:
        self._words[_FILL_AT] = int(moment * 1e9)

    def of(self, worker: int) -> WorkerMeter:
        """The counters of one worker."""
        start = _HEAD + worker * _PER_WORKER
        return WorkerMeter(self._words[start : start + _PER_WORKER])

    def _sum(self, index: int) -> int:
        return sum(self._words[_HEAD + index :: _PER_WORKER])

    def states(self) -> list[Phase]:
        """The phase that each worker has reached."""
        return [Phase(state) for state in self._words[_HEAD + _STATE :: _PER_WORKER]]

    def progress(self) -> list[int]:
        """A number for each worker that grows while it makes progress."""
        return list(self._words[_HEAD + _PROGRESS :: _PER_WORKER])

    def checked(self) -> tuple[int, int]:
        """(files, bytes) that were compared with the model."""
        return self._sum(_FILES), self._sum(_BYTES)

    def errors(self) -> dict[str, int]:
        """How often each error came."""
        counts = {number: self._sum(_ERRORS + number) for number in range(_ERRNOS)}
        return {errno.errorcode.get(number, str(number)): count for number, count in counts.items() if count}

    def operations(self) -> dict[str, int]:
        """The number of operations of each kind."""
        return {kind: self._sum(_TIMES + index * _PER_KIND + _COUNT) for kind, index in _INDEX.items()}

    def latencies(self) -> dict[str, Latency]:
        """The latencies of each kind of operation."""
        found = {}
        for kind, index in _INDEX.items():
            histogram = self._histogram(index)
            count = sum(histogram)
            if count:
                longest = max(self._words[_HEAD + _TIMES + index * _PER_KIND + _LONGEST :: _PER_WORKER]) / 1e9
                median, p99 = (min(_quantile(histogram, count * part), longest) for part in (0.5, 0.99))
                found[kind] = Latency(count, median, p99, longest)
        return found

    def _histogram(self, kind: int) -> list[int]:
        starts = (
            _HEAD + worker * _PER_WORKER + _TIMES + kind * _PER_KIND + _HISTOGRAM for worker in range(self.workers)
        )
        return [sum(counts) for counts in zip(*(self._words[at : at + _BUCKETS] for at in starts), strict=True)]


def _quantile(histogram: list[int], rank: float) -> float:
    bucket = bisect_left(list(accumulate(histogram)), rank)
    return float(2 ** ((bucket + 1) / _PER_OCTAVE) / 1e9)


class WorkerMeter:
    """The counters of one worker."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words

    @property
    def state(self) -> Phase:
        return Phase(self._words[_STATE])

    @state.setter
    def state(self, state: Phase) -> None:
        self._words[_STATE] = state

    def moved(self) -> None:
        """The worker is making progress."""
        self._words[_PROGRESS] += 1

    def compared(self, count: int) -> None:
        """``count`` bytes were compared and right."""
        self._words[_BYTES] += count
        self.moved()

    def file_checked(self) -> None:
        """A whole file was compared and right."""
        self._words[_FILES] += 1

    def failed(self, number: int) -> None:
        """An operation ended with this errno."""
        self._words[_ERRORS + min(number, _ERRNOS - 1)] += 1

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Times an operation; counts it unless it fails."""
        start = time.perf_counter_ns()
        yield
        taken = max(time.perf_counter_ns() - start, 1)
        at = _TIMES + _INDEX[kind] * _PER_KIND
        self._words[at + _LONGEST] = max(self._words[at + _LONGEST], taken)
        self._words[at + _COUNT] += 1
        self._words[at + _HISTOGRAM + min(int(math.log2(taken) * _PER_OCTAVE), _BUCKETS - 1)] += 1
        self._words[_PROGRESS] += 1

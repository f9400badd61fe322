"""Storage that lies by seed: its changes to the bytes of an image, and a ``Source`` that makes them below the
reader."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from mystfuse.errors import ImageReadError

GRAIN = 512
"""The smallest block of a hash tree in bytes: pieces from elsewhere have this size."""
ERRORS = (errno.EIO, errno.ENXIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EBADMSG, errno.ENODATA)


class Liar:
    """Chooses the fault of each read by seed. Thread-safe.

    Args:
        content: the image.
        stale: another signed image of the same size, from before.
        rate: how many of the reads it spoils, 0 to 1.
    """

    def __init__(self, content: bytes, stale: bytes, seed: object, rate: float) -> None:
        assert len(content) == len(stale)
        self.rate = rate
        self.done: Counter[str] = Counter()
        """The faults so far, by kind."""
        self._content = content
        self._stale = stale
        self._dice = random.Random(repr(seed))
        self._lock = threading.Lock()
        self._kinds: dict[str, Callable[[int, bytes], bytes]] = {
            "flipped": self._flip,
            "short": lambda offset, right: right[: self._dice.randrange(len(right))],
            "stale": lambda offset, right: self._stale[offset : offset + len(right)],
            "stale blocks": self._mix_in_stale,
            "swapped": self._swap,
            "elsewhere": self._take_elsewhere,
            "zeros": lambda offset, right: bytes(len(right)),
            "noise": lambda offset, right: self._dice.randbytes(len(right)),
        }

    def choose(self, *more: str) -> str:
        """The fault of the next read: a kind of ``spoil``, one of ``more``, or "" for none."""
        with self._lock:
            if self._dice.random() >= self.rate:
                return ""
            kind = self._dice.choice([*self._kinds, *more])
            self.done[kind] += 1
            return kind

    def throw(self, low: float, high: float) -> float:
        """A random number in this range."""
        with self._lock:
            return self._dice.uniform(low, high)

    def error(self) -> int:
        """A random errno."""
        with self._lock:
            return self._dice.choice(ERRORS)

    def spoil(self, kind: str, offset: int, length: int) -> bytes:
        """The bytes returned instead of ``length`` bytes at ``offset``; the true ones if ``kind`` is none of ours."""
        right = self._content[offset : offset + length]
        with self._lock:
            return self._kinds[kind](offset, right) if kind in self._kinds and right else right

    def _flip(self, offset: int, right: bytes) -> bytes:
        wrong = bytearray(right)
        for _ in range(self._dice.choice((1, 1, 2, 20))):
            wrong[self._dice.randrange(len(wrong))] ^= 1 << self._dice.randrange(8)
        return bytes(wrong)

    def _mix_in_stale(self, offset: int, right: bytes) -> bytes:
        wrong = bytearray(right)
        for start in range(0, len(wrong), GRAIN):
            if self._dice.random() < 0.5:
                wrong[start : start + GRAIN] = self._stale[offset + start : offset + min(start + GRAIN, len(wrong))]
        return bytes(wrong)

    def _swap(self, offset: int, right: bytes) -> bytes:
        pieces = [right[start : start + GRAIN] for start in range(0, len(right), GRAIN)]
        one, two = self._dice.randrange(len(pieces)), self._dice.randrange(len(pieces))
        pieces[one], pieces[two] = pieces[two], pieces[one]
        return b"".join(pieces)

    def _take_elsewhere(self, offset: int, right: bytes) -> bytes:
        other = self._dice.randrange(max(len(self._content) - len(right), 0) // GRAIN + 1) * GRAIN
        return self._content[other : other + len(right)]


class FaultySource:
    """A ``mystfuse.devices.source.Source`` over a ``Liar``.

    An answer with RWF_NOWAIT and one without are lied about separately; so are two reads of one range. Besides changed
    bytes there are errors, short delays, and reads that are not answered before ``release``: their clock is the event
    loop's.

    Args:
        cached: how many of the reads the page cache answers, 0 to 1.
        hangs: how many reads at most are not answered.
    """

    def __init__(self, liar: Liar, size: int, cached: float, hangs: int) -> None:
        self.name = "hostile storage"
        self.size = size
        self.liar = liar
        self._cached = cached
        self.hangs = hangs
        self._released = threading.Event()

    def release(self) -> None:
        """Stop lying, answer the waiting reads, and the rest from the page cache."""
        self.liar.rate = 0.0
        self._cached = 1.0
        self._released.set()

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        kind = self.liar.choose("error") if self.liar.throw(0, 1) < self._cached else "error"
        if kind == "error":
            # The bytes that a kernel may have written before it finds a page missing.
            buffer[: len(buffer) // 2] = b"\xa5" * (len(buffer) // 2)
            return False
        found = self.liar.spoil(kind, offset, len(buffer))
        buffer[: len(found)] = found
        return len(found) == len(buffer)

    def read(self, offset: int, length: int) -> bytes:
        kind = self.liar.choose("error", "slow", "hanging", "late lie")
        match kind:
            case "error":
                raise ImageReadError(f"{self.name}: reading {length} bytes: {os.strerror(self.liar.error())}")
            case "slow":
                time.sleep(self.liar.throw(0, 0.002))
            case "hanging" | "late lie" if self.hangs > 0:
                self.hangs -= 1
                self._released.wait(60)
                if kind == "late lie":
                    kind = "flipped"
        if offset + length > self.size:
            raise ImageReadError(f"{self.name}: truncated")
        return self.liar.spoil(kind, offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        found = self.read(offset, len(buffer))
        if len(found) < len(buffer):
            raise ImageReadError(f"{self.name}: truncated")
        buffer[:] = found

    def close(self) -> None:
        self.release()

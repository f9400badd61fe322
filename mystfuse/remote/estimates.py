"""What is usual of a network, learned from what came: times to the first byte, and bytes a second."""

from __future__ import annotations

import math

_FIRST_ROUND_TRIP = 0.05
_FIRST_THROUGHPUT = 10e6
_SAMPLE_BYTES = 256 << 10
_SAMPLE_SECONDS = 0.25
_MEMORY = 1.0
"""Seconds in which bytes came, after which what was before counts a third."""


class RoundTrips:
    """The time from a request to the first byte of its answer: mean and deviation, as TCP has them (RFC 6298)."""

    def __init__(self) -> None:
        self.mean = _FIRST_ROUND_TRIP
        self.deviation = _FIRST_ROUND_TRIP / 2
        self.samples = 0

    def add(self, seconds: float) -> None:
        """One more time."""
        if not self.samples:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            self.deviation += (abs(seconds - self.mean) - self.deviation) / 4
            self.mean += (seconds - self.mean) / 8
        self.samples += 1


class Throughput:
    """Bytes a second of all bodies together, while any comes; what came lately counts most."""

    def __init__(self) -> None:
        self.value = _FIRST_THROUGHPUT
        self._bodies = 0
        self._since = 0.0
        self._bytes = 0.0
        self._seconds = 0.0
        self._new_bytes = 0
        self._new_seconds = 0.0

    def begin(self, length: int, now: float) -> None:
        """The first bytes of a body have come. How long they took is not known, unless others came meanwhile."""
        self._bodies += 1
        if self._bodies == 1:
            self._since = now
        else:
            self.add(length, now)

    def add(self, length: int, now: float) -> None:
        """More of it has come."""
        self._new_bytes += length
        self._pass(now)
        if self._new_bytes >= _SAMPLE_BYTES or self._new_seconds >= _SAMPLE_SECONDS:
            # Sums, not a mean of rates: bytes come in bursts.
            kept = math.exp(-self._new_seconds / _MEMORY)
            self._bytes = self._bytes * kept + self._new_bytes
            self._seconds = self._seconds * kept + self._new_seconds
            self.value = self._bytes / max(self._seconds, 1e-6)
            self._new_bytes, self._new_seconds = 0, 0.0

    def end(self, now: float) -> None:
        """The body is there, or no more of it comes."""
        self._pass(now)
        self._bodies -= 1

    def _pass(self, now: float) -> None:
        self._new_seconds += now - self._since
        self._since = now

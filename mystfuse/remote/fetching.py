"""What the fetcher asks of ``Transfers``, and how its time-outs and estimates decide about sizes of requests."""

from __future__ import annotations

from typing import Protocol

from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.origin import Opened, Receive

_PIECE_TIME = 0.1
"""Seconds that a request should take: longer ones hold up what is wanted more; shorter ones cost round trips."""
_MIN_PIECE, _MAX_PIECE = 256 << 10, 4 << 20
_MAX_NEAR = 192 << 10
_FAR = 0.003
"""Seconds: a shorter round trip costs less than bytes that nobody wants."""
_MIN_WINDOW, _MAX_WINDOW = 2 << 20, 8 << 20


class Fetches(Protocol):
    """An image that is fetched in spite of what goes wrong (``transfers.Transfers``)."""

    counters: dict[str, int]

    @property
    def round_trip(self) -> float:
        """Seconds, estimated."""
        ...

    @property
    def throughput(self) -> float:
        """Bytes a second, estimated."""
        ...

    async def open(self, tail: int, deadline: float) -> Opened: ...

    async def fetch(
        self, offset: int, length: int, receive: Receive, *, deadline: float, again: bool = False
    ) -> None: ...


def in_flight(transfers: Fetches) -> float:
    """Bytes that are on their way when the network is full: throughput times round trip."""
    return max(0.0, transfers.throughput) * max(0.0, transfers.round_trip)


def piece_size(transfers: Fetches) -> int:
    """Bytes that one request should ask for at most."""
    wanted = max(transfers.throughput * _PIECE_TIME, in_flight(transfers))
    return int(min(max(wanted, _MIN_PIECE), _MAX_PIECE))


def window_size(transfers: Fetches) -> int:
    """Bytes that may be read ahead: enough that the network is never idle."""
    return int(min(max(4 * in_flight(transfers), _MIN_WINDOW), _MAX_WINDOW))


def near_size(transfers: Fetches) -> int:
    """Bytes that are worth fetching along with others: in a round trip, the network would send them anyway."""
    if transfers.round_trip < _FAR:
        return 0
    return int(min(in_flight(transfers), _MAX_NEAR)) // CHUNK * CHUNK

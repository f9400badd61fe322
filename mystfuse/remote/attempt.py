"""One request of a fetch, in limited time; and a race of two, where the first is late."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from mystfuse.remote.estimates import Throughput
from mystfuse.remote.mirror import Mirror
from mystfuse.remote.origin import Failure, FetchError, Opened, Receive
from mystfuse.remote.repeating import FIRST_BYTE, STALL, no_answer, within

_END = 1.0
"""Seconds in which an answer must end after its last byte, so that its connection can be used again."""
SLOWEST = 1024
"""Bytes a second, over STALL seconds: less counts as a stall."""


@dataclass(eq=False)
class Fetch:
    """A range on its way, however many requests it takes."""

    position: int
    """What comes before this has been received."""
    end: int
    receive: Receive
    deadline: float
    again: bool
    started: float
    tries: int = 0
    last_error: FetchError | None = None
    failures: dict[Mirror, int] = field(default_factory=dict)
    """Since bytes last came."""
    renewed: set[Mirror] = field(default_factory=set)
    replaced: set[Mirror] = field(default_factory=set)
    hopeless_since: float = math.inf
    """When all that went wrong became of the kind that seldom passes."""

    @property
    def is_done(self) -> bool:
        return self.position >= self.end


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that failed."""

    mirror: Mirror
    error: FetchError
    renewals: int
    """``Mirror.renewals`` when it began."""


class Race:
    """One or two attempts at the rest of a fetch: the first that has a byte wins, and the other is ended.

    Args:
        opened: the image that was opened first.
    """

    def __init__(self, fetch: Fetch, opened: Opened, throughput: Throughput) -> None:
        self._fetch = fetch
        self._opened = opened
        self._throughput = throughput
        self._scopes: dict[Attempt, trio.CancelScope] = {}
        self.decided = trio.Event()
        """One has won, or none is left."""
        self.winner: Attempt | None = None
        self.failures: list[Failed] = []
        self.crash: Exception | None = None
        """What ``receive`` raised."""

    async def run(self, mirror: Mirror, is_hedge: bool = False) -> None:
        """An attempt at one mirror. Raises nothing but Cancelled; see ``failures`` and ``crash``."""
        attempt = Attempt(self, self._fetch, mirror, self._throughput, is_hedge)
        renewals = mirror.renewals
        with trio.CancelScope() as self._scopes[attempt]:
            try:
                await attempt.run(self._opened)
                mirror.succeeded()
            except FetchError as error:
                if not self._fetch.is_done:
                    mirror.failed(error)
                    self.failures.append(Failed(mirror, error, renewals))
            except Exception as error:
                self.crash = error
                self._end_others(attempt)
        del self._scopes[attempt]
        if not self._scopes:
            self.decided.set()

    def wins(self, attempt: Attempt) -> bool:
        """Whether an attempt that has bytes may deliver them."""
        if self.winner is None:
            self.winner = attempt
            self.decided.set()
            self._end_others(attempt)
        return self.winner is attempt

    def _end_others(self, attempt: Attempt) -> None:
        for other, scope in self._scopes.items():
            if other is not attempt:
                scope.cancel()


class Attempt:
    """One request; ``is_hedge``: the second one of a race."""

    def __init__(self, race: Race, fetch: Fetch, mirror: Mirror, throughput: Throughput, is_hedge: bool) -> None:
        self._race = race
        self._fetch = fetch
        self.mirror = mirror
        self.is_hedge = is_hedge
        self._throughput = throughput
        self._scope = trio.CancelScope()
        self._has_begun = False
        self._asked = 0.0
        self._window = 0.0
        self._window_bytes = 0

    async def run(self, opened: Opened) -> None:
        """Ask for the rest of the fetch.

        Raises:
            FetchError: of the origin; UNREACHABLE: nothing came in time, or too slowly.
        """
        fetch, mirror = self._fetch, self.mirror
        limit = within(FIRST_BYTE, fetch.deadline)
        began = fetch.position
        self._asked = trio.current_time()
        self._scope.deadline = self._asked + limit
        try:
            with self._scope:
                if mirror.opened is None:
                    await mirror.open_like(opened)
                    self._asked = trio.current_time()
                await mirror.origin.fetch(began, fetch.end - began, self._receive, directly=fetch.again)
        finally:
            if self._has_begun:
                self._throughput.end(trio.current_time())
        if fetch.is_done:
            return
        if not self._has_begun:
            raise no_answer(mirror.name, limit)
        if self._scope.cancelled_caught:
            got = fetch.position - began
            raise FetchError(Failure.UNREACHABLE, f"{mirror.name}: the answer stalled after {got} bytes")
        raise FetchError(Failure.UNUSABLE, f"{mirror.name}: the answer ended too early")

    async def _receive(self, offset: int, data: memoryview) -> None:
        fetch, now = self._fetch, trio.current_time()
        if not self._race.wins(self):
            # The other attempt has been a moment faster, and ends this one.
            await trio.sleep_forever()
        if offset != fetch.position or not 0 < len(data) <= fetch.end - offset:
            raise FetchError(Failure.UNUSABLE, f"{self.mirror.name}: other bytes came than were asked for")
        if not self._has_begun:
            self._has_begun = True
            self.mirror.round_trips.add(now - self._asked)
            self._throughput.begin(len(data), now)
            self._window = now
        else:
            self._throughput.add(len(data), now)
        # What is done with the bytes takes time that is not the network's.
        self._scope.deadline = math.inf
        await fetch.receive(offset, data)
        fetch.position += len(data)
        after = trio.current_time()
        self._window += after - now
        self._window_bytes += len(data)
        self._check_speed(after)
        # An answer that does not end is not worth waiting for.
        self._scope.deadline = after + (_END if fetch.is_done else within(STALL, fetch.deadline))

    def _check_speed(self, now: float) -> None:
        """Raises FetchError if the bytes come so slowly that another connection or mirror is worth a try."""
        fetch = self._fetch
        elapsed = now - self._window
        if fetch.is_done or elapsed < within(STALL, fetch.deadline):
            return
        rate = self._window_bytes / elapsed
        is_too_late = rate * (fetch.deadline - now) < fetch.end - fetch.position
        if rate < SLOWEST or (is_too_late and rate < self._throughput.value / 4):
            raise FetchError(Failure.UNREACHABLE, f"{self.mirror.name}: only {rate:.0f} bytes a second come")
        self._window, self._window_bytes = now, 0

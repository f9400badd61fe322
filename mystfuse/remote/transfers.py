"""An image that one or several origins have, fetched in spite of what goes wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import trio

from mystfuse.remote.attempt import Failed, Fetch, Race
from mystfuse.remote.estimates import Throughput
from mystfuse.remote.mirror import Mirror
from mystfuse.remote.opening import Opening
from mystfuse.remote.origin import Failure, FetchError, Opened, Origin, Receive
from mystfuse.remote.repeating import FIRST_BYTE, TOO_LATE, back_off, more_telling, said_how_often, within

HOPELESS = 30.0
"""Seconds for which failures that seldom pass (404, a certificate) are tried again, where there is no other limit."""
_SOONEST_HEDGE = 0.25
_FIRST_HEDGE = 1.0
"""Seconds until a second request, when it is not yet known what is usual."""
_MOST_HEDGES = 4.0
_HEDGES_EARNED = 0.1
"""By each fetch: so hedging adds a tenth to the requests at most, however slow all has become."""
_REMEMBERED = 256
"""Fetches of which it is known who sent them."""


class Transfers:
    """An image that one or several origins have. ``async with``: closes the origins at the end.

    Args:
        origins: in the order in which they are asked; at least one.
        note: gets lines for the log, with their levels, no more than a few a minute.
    """

    def __init__(self, origins: Sequence[Origin], note: Callable[[int, str], None]) -> None:
        self._mirrors = [Mirror(origin, index, note) for index, origin in enumerate(origins)]
        self._note = note
        self._opened: Opened | None = None
        self._first = self._mirrors[0]
        self._throughput = Throughput()
        self._hedges = _MOST_HEDGES
        self._senders: deque[tuple[int, int, Mirror]] = deque(maxlen=_REMEMBERED)
        self.counters = dict.fromkeys(
            ("requests", "bytes_fetched", "retries", "hedged", "hedges_won", "renewed", "failed"), 0
        )
        """By name: requests sent to origins, bytes received, requests that were repetitions, second requests and those
        that were faster, renewed credentials, fetches given up."""

    @property
    def round_trip(self) -> float:
        """Seconds from a request to the first byte of its answer, estimated."""
        return self._first.round_trips.mean

    @property
    def throughput(self) -> float:
        """Bytes a second of all fetches together, estimated."""
        return self._throughput.value

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            for mirror in self._mirrors:
                await mirror.origin.aclose()

    async def open(self, tail: int, deadline: float) -> Opened:
        """Open the image: the first origin that answers says what it is, and the others are compared with that later.

        Args:
            tail: how many of its last bytes to bring along.
            deadline: of ``trio.current_time()``.

        Raises:
            FetchError: none could open it, or not in time.
        """
        opening = Opening(self._mirrors, tail, deadline, self.counters, self._note)
        self._first, self._opened = await opening.run()
        return self._opened

    async def fetch(self, offset: int, length: int, receive: Receive, *, deadline: float, again: bool = False) -> None:
        """Fetch exactly a range, which lies inside the image. ``open`` has been called.

        Args:
            receive: gets the bytes, in order and once each; its exceptions end the fetch.
            deadline: of ``trio.current_time()``; ``math.inf``: none.
            again: the bytes that came last time were wrong: from another mirror, if there is one, and past proxies and
                caches.

        Raises:
            FetchError: it failed until the deadline, or the image has been replaced everywhere. What was received
                until then stands.
        """
        if not length:
            return
        fetch = Fetch(offset, offset + length, receive, deadline, again, trio.current_time())
        sender = self._sender(offset) if again else None
        with trio.CancelScope(deadline=deadline) as scope:
            try:
                await self._run(fetch, sender)
            except FetchError:
                self.counters["failed"] += 1
                raise
            self._hedges = min(_MOST_HEDGES, self._hedges + _HEDGES_EARNED)
        if scope.cancelled_caught and not fetch.is_done:
            self.counters["failed"] += 1
            raise self._given_up(fetch)

    async def _run(self, fetch: Fetch, sender: Mirror | None) -> None:
        while not fetch.is_done:
            mirror = self._choose(fetch, sender)
            await trio.sleep(back_off(fetch.failures.get(mirror, 0), mirror.not_before, fetch.deadline))
            before = fetch.position
            race = await self._race(fetch, mirror)
            self.counters["bytes_fetched"] += fetch.position - before
            if fetch.position > before:
                fetch.failures.clear()
                fetch.hopeless_since = math.inf
            for failed in race.failures:
                await self._consider(fetch, failed)
            if race.winner is not None:
                self._senders.append((before, fetch.position, race.winner.mirror))

    def _choose(self, fetch: Fetch, sender: Mirror | None) -> Mirror:
        """The mirror to ask next; raises FetchError if there is none, or no time."""
        now = trio.current_time()
        usable = [mirror for mirror in self._mirrors if not mirror.left_out and mirror not in fetch.replaced]
        if not usable or now - fetch.hopeless_since > HOPELESS or (fetch.tries and fetch.deadline - now < TOO_LATE):
            raise self._given_up(fetch)
        return min(usable, key=lambda mirror: (
            fetch.failures.get(mirror, 0), mirror is sender, mirror.not_before > now, not mirror.is_well(now),
            mirror is not self._first, mirror.index,
        ))  # fmt: skip

    async def _race(self, fetch: Fetch, mirror: Mirror) -> Race:
        """One attempt, and a second one if the first is late. Raises only what ``receive`` raised."""
        assert self._opened is not None
        race = Race(fetch, self._opened, self._throughput)
        async with mirror.slots, trio.open_nursery() as nursery:
            self._count(fetch)
            nursery.start_soon(race.run, mirror)
            with trio.move_on_after(self._late(mirror)):
                await race.decided.wait()
            if not race.decided.is_set() and self._hedges >= 1:
                self._hedges -= 1
                self.counters["hedged"] += 1
                self._count(fetch)
                other = self._other(fetch, mirror)
                nursery.start_soon(partial(race.run, other, is_hedge=True))
        if race.crash is not None:
            raise race.crash
        if race.winner is not None and race.winner.is_hedge:
            self.counters["hedges_won"] += 1
        return race

    def _count(self, fetch: Fetch) -> None:
        fetch.tries += 1
        self.counters["requests"] += 1
        if fetch.last_error is not None:
            self.counters["retries"] += 1

    def _late(self, mirror: Mirror) -> float:
        """Seconds after which the first byte is much later than usual."""
        usual = mirror.round_trips
        if usual.samples < 3:
            return _FIRST_HEDGE
        return max(_SOONEST_HEDGE, 4 * (usual.mean + usual.deviation))

    def _other(self, fetch: Fetch, mirror: Mirror) -> Mirror:
        """The mirror for a second request: another that works, or the same."""
        now = trio.current_time()
        others = (other for other in self._mirrors if other is not mirror and other.is_well(now))
        return next((other for other in others if not other.left_out and other not in fetch.replaced), mirror)

    async def _consider(self, fetch: Fetch, failed: Failed) -> None:
        """What a failure means for what comes next."""
        mirror, error = failed.mirror, failed.error
        if mirror.left_out:
            # What the others say is of more use.
            fetch.last_error = fetch.last_error or error
            return
        fetch.last_error = more_telling(fetch.last_error, error)
        if error.failure is Failure.REPLACED:
            fetch.replaced.add(mirror)
        if error.failure is Failure.DENIED:
            is_first = mirror not in fetch.renewed
            fetch.renewed.add(mirror)
            if await self._renew(fetch, failed) and is_first:
                return
        if error.failure in (Failure.UNREACHABLE, Failure.BUSY):
            fetch.hopeless_since = math.inf
        else:
            fetch.hopeless_since = min(fetch.hopeless_since, trio.current_time())
        fetch.failures[mirror] = fetch.failures.get(mirror, 0) + 1

    async def _renew(self, fetch: Fetch, failed: Failed) -> bool:
        """Whether there are new credentials; those who give them may be silent, too."""
        with trio.move_on_after(within(FIRST_BYTE, fetch.deadline)):
            if await failed.mirror.renew(failed.renewals):
                self.counters["renewed"] += 1
                return True
        return False

    def _sender(self, offset: int) -> Mirror:
        """Who sent the byte last; if that is not known, who is usually asked."""
        for start, end, mirror in reversed(self._senders):
            if start <= offset < end:
                return mirror
        return self._first

    def _given_up(self, fetch: Fetch) -> FetchError:
        seconds = trio.current_time() - fetch.started
        error = fetch.last_error
        if error is None:
            return FetchError(Failure.UNREACHABLE, f"{self._first.name}: no answer in {seconds:.0f} s")
        return said_how_often(error, fetch.tries, seconds)

"""Opening an image that several origins may have: who answers first says what it is."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence

import trio

from mystfuse.remote.mirror import Mirror, Note
from mystfuse.remote.origin import Failure, FetchError, Opened
from mystfuse.remote.repeating import FIRST_BYTE, TOO_LATE, back_off, more_telling, no_answer, said_how_often, within

STAGGER = 1.0
"""Seconds after which the next mirror is asked as well; twice that for the one after it."""
_SILENCE = 2.0
"""Seconds after which whoever waits is told why."""
_SAID_AGAIN = 60.0
_MOST_TRIES = {Failure.ABSENT: 1, Failure.REPLACED: 2, Failure.DENIED: 2, Failure.UNTRUSTED: 2, Failure.UNUSABLE: 3}
"""Of what seldom passes: whoever mistypes an address need not wait. The rest is tried until the deadline."""


class Opening:
    """One call of ``Transfers.open``.

    Args:
        mirrors: in the order in which they are asked; the next one at once when one fails for good.
        tail: see ``Origin.open``.
        deadline: of ``trio.current_time()``.
        counters: to which this adds.
        note: gets a line for the log when it takes long.
    """

    def __init__(
        self, mirrors: Sequence[Mirror], tail: int, deadline: float, counters: dict[str, int], note: Note
    ) -> None:
        self._mirrors = mirrors
        self._tail = tail
        self._deadline = deadline
        self._counters = counters
        self._note = note
        self._opened: tuple[Mirror, Opened] | None = None
        self._errors: dict[Mirror, FetchError] = {}
        """The last one of each."""
        self._hopeless: set[Mirror] = set()
        self._tries = 0
        self._started = trio.current_time()
        self._failed = trio.Event()

    async def run(self) -> tuple[Mirror, Opened]:
        """Who answered first, and what it said; raises FetchError."""
        with trio.CancelScope(deadline=self._deadline):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._say_why)
                for number, mirror in enumerate(self._mirrors):
                    nursery.start_soon(self._try, mirror, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER * 2**number):
                        await self._failed.wait()
                    self._failed = trio.Event()
                # Once more, on another connection, where a request may have got lost.
                for mirror in self._mirrors:
                    await trio.sleep(STAGGER)
                    if mirror not in self._errors:
                        nursery.start_soon(self._try, mirror, nursery.cancel_scope)
        if self._opened is None:
            raise self._given_up()
        return self._opened

    async def _say_why(self) -> None:
        """Nobody shall wait without a word, nor long for what was a slip of the keyboard."""
        await trio.sleep(_SILENCE)
        while True:
            left = self._deadline - trio.current_time()
            limit = "" if math.isinf(left) else f" for up to {left:.0f} s"
            why = self._errors_said()
            what = f"{why}; trying again" if why else f"{self._mirrors[0].name}: no answer yet; waiting"
            self._note(logging.WARNING, what + limit)
            await trio.sleep(_SAID_AGAIN)

    async def _try(self, mirror: Mirror, scope: trio.CancelScope) -> None:
        """Until it answers, or there is no hope; who answers first, or is the last hope, cancels ``scope``."""
        failures: Counter[Failure] = Counter()
        renewals = mirror.renewals
        while mirror not in self._hopeless:
            started = trio.current_time()
            self._tries += 1
            self._counters["requests"] += 1
            self._counters["retries"] += bool(failures)
            try:
                opened = await self._open(mirror)
            except FetchError as error:
                self._errors[mirror] = more_telling(self._errors.get(mirror), error)
                mirror.failed(error, is_noted=False)
                failures[error.failure] += 1
                if error.failure is Failure.DENIED and failures[error.failure] == 1 and await mirror.renew(renewals):
                    self._counters["renewed"] += 1
                    continue
                is_late = self._deadline - trio.current_time() < TOO_LATE
                if is_late or failures[error.failure] >= _MOST_TRIES.get(error.failure, math.inf):
                    self._hopeless.add(mirror)
                    if len(self._hopeless) == len(self._mirrors):
                        scope.cancel()
                self._failed.set()
                await self._back_off(mirror, failures.total())
                continue
            if self._opened is None:
                mirror.opened = opened
                mirror.round_trips.add(trio.current_time() - started)
                mirror.succeeded()
                self._opened = mirror, opened
            scope.cancel()
            return

    async def _open(self, mirror: Mirror) -> Opened:
        limit = within(FIRST_BYTE, self._deadline)
        with trio.move_on_after(limit):
            return await mirror.origin.open(self._tail)
        raise no_answer(mirror.name, limit)

    async def _back_off(self, mirror: Mirror, failures: int) -> None:
        if mirror not in self._hopeless:
            await trio.sleep(back_off(failures, mirror.not_before, self._deadline))

    def _given_up(self) -> FetchError:
        seconds = trio.current_time() - self._started
        first = next((self._errors[mirror] for mirror in self._mirrors if mirror in self._errors), None)
        if first is None:
            return FetchError(Failure.UNREACHABLE, f"{self._mirrors[0].name}: no answer in {seconds:.0f} s")
        return said_how_often(FetchError(first.failure, self._errors_said(), first.retry_after), self._tries, seconds)

    def _errors_said(self) -> str:
        return "; ".join(str(self._errors[mirror]) for mirror in self._mirrors if mirror in self._errors)

"""How many requests are under way, and which of those that wait comes next: what somebody waits for, before what may be
wanted soon, before what is fetched unasked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum

import trio

AT_ONCE = 8
"""Requests; as many as ``Transfers`` sends to one origin, where they would queue as they come."""
_UNASKED = 6
"""Of these, for what nobody waits for."""


class Purpose(IntEnum):
    """Why chunks are fetched; the lower comes first."""

    WANTED = 0
    AHEAD = 1
    PREFETCH = 2


class Ticket:
    """A request that is under way, or waits for its turn."""

    def __init__(self, purpose: Purpose) -> None:
        self.purpose = purpose
        """May be changed while it waits: somebody has come to want it."""
        self.admitted = trio.Event()
        self.is_unasked = False
        """Whether it has a slot of those."""


class RequestSlots:
    """The slots of one image."""

    def __init__(self) -> None:
        self._free, self._free_unasked = AT_ONCE, _UNASKED
        self._waiting: list[Ticket] = []

    @asynccontextmanager
    async def taken(self, ticket: Ticket) -> AsyncIterator[None]:
        """For the block, have one; waits for it. A ticket may be used again."""
        ticket.admitted = trio.Event()
        self._waiting.append(ticket)
        try:
            self._admit()
            await ticket.admitted.wait()
            yield
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._free += 1
                self._free_unasked += ticket.is_unasked
            self._admit()

    def promote(self, ticket: Ticket) -> None:
        """Somebody waits for it now."""
        if ticket.purpose is not Purpose.WANTED:
            ticket.purpose = Purpose.WANTED
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._free:
            ticket = min(self._waiting, key=lambda ticket: ticket.purpose)
            is_unasked = ticket.purpose is not Purpose.WANTED
            if is_unasked and not self._free_unasked:
                return
            self._waiting.remove(ticket)
            self._free -= 1
            self._free_unasked -= is_unasked
            ticket.is_unasked = is_unasked
            ticket.admitted.set()

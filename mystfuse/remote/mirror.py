"""An origin, and what is remembered of it: whether it has the image, and how it has behaved lately."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.remote.estimates import RoundTrips
from mystfuse.remote.origin import Failure, FetchError, Opened, Origin

REQUESTS = 8
"""Under way at once to one mirror, besides hedged ones."""
_FIRST_PENALTY = 1.0
_LONGEST_PENALTY = 60.0
"""Seconds for which a mirror that fails comes after the others."""
_NOTE_AFTER = 3
"""Failures in a row that are worth a line in the log."""
_NOTE_AGAIN = 60.0
"""Seconds between two such lines."""

Note = Callable[[int, str], None]


class Mirror:
    """One of the places that may have the image."""

    def __init__(self, origin: Origin, index: int, note: Note) -> None:
        self.origin = origin
        self.index = index
        self.opened: Opened | None = None
        self.left_out = False
        """It has another image."""
        self.round_trips = RoundTrips()
        self.slots = trio.CapacityLimiter(REQUESTS)
        self.not_before = 0.0
        """It asked not to be asked earlier."""
        self.failures = 0
        """In a row."""
        self._note = note
        self._failed_until = 0.0
        self._noted = -_NOTE_AGAIN
        self._is_noted = False
        self._renewals = 0
        self._renewing = trio.Lock()
        self._opening = trio.Lock()

    @property
    def name(self) -> str:
        return self.origin.name

    @property
    def renewals(self) -> int:
        """How often its credentials have been renewed: what ``renew`` is told."""
        return self._renewals

    def is_well(self, now: float) -> bool:
        """Whether it has not failed lately, nor asked for a pause."""
        return now >= max(self._failed_until, self.not_before)

    def succeeded(self) -> None:
        """It has sent what it was asked for."""
        if self._is_noted:
            self._is_noted = False
            self._note(logging.INFO, f"{self.name}: answers again")
        self.failures = 0
        self._failed_until = 0.0

    def failed(self, error: FetchError, is_noted: bool = True) -> None:
        """It has not; for a while the others are asked first. ``is_noted``: often enough, it is a line in the log."""
        now = trio.current_time()
        self.failures += 1
        penalty = min(_LONGEST_PENALTY, _FIRST_PENALTY * 2 ** min(self.failures - 1, 10))
        self._failed_until = now + penalty
        if error.retry_after:
            self.not_before = max(self.not_before, now + error.retry_after)
        if is_noted and self.failures >= _NOTE_AFTER and now - self._noted >= _NOTE_AGAIN:
            self._noted, self._is_noted = now, True
            self._note(logging.WARNING, f"{error}; it has failed {self.failures} times in a row")

    async def renew(self, renewals: int) -> bool:
        """Get new credentials, unless it has been done since there were so many renewals. Returns whether it worked."""
        async with self._renewing:
            if self._renewals == renewals:
                try:
                    await self.origin.renew()
                except FetchError:
                    return False
                self._renewals += 1
        return True

    async def open_like(self, first: Opened) -> None:
        """Open it, unless that is done, and compare it with the image that was opened first.

        Raises:
            FetchError: of ``Origin.open``; REPLACED: it has another image, and is left out from now on.
        """
        async with self._opening:
            if self.opened is not None:
                return
            opened = await self.origin.open(len(first.tail))
            if difference := _difference(first, opened):
                self.left_out = True
                text = f"{self.name}: not the same image ({difference}); this mirror is not used"
                self._note(logging.WARNING, text)
                raise FetchError(Failure.REPLACED, text)
            self.opened = opened


def _difference(first: Opened, other: Opened) -> str:
    if first.size != other.size:
        return f"{other.size} bytes, not {first.size}"
    signed = first.tail[-FSSIG_SIZE:]
    if len(signed) == FSSIG_SIZE and has_fssig_magic(signed) and other.tail[-FSSIG_SIZE:] != signed:
        return "its root hash or signature is another"
    return ""

"""When and how often something is tried again."""

from __future__ import annotations

import random

import trio

from mystfuse.remote.origin import Failure, FetchError

FIRST_BYTE = 15.0
"""Seconds until the first byte of an answer."""
STALL = 5.0
"""Seconds without any byte in the middle of an answer."""
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 8.0
"""Seconds, of which a random part is waited: at most the first after one failure, twice that after two."""
TOO_LATE = 0.02
"""Seconds before the deadline in which another attempt is not worth making."""
_SHORTEST = 0.5
"""Seconds that any limit is at least."""


def within(limit: float, deadline: float) -> float:
    """A limit of seconds, or half of what is left, so that there is time for another attempt."""
    return min(limit, max(_SHORTEST, (deadline - trio.current_time()) / 2))


def back_off(failures: int, not_before: float, deadline: float) -> float:
    """Seconds to wait before asking again: at random, longer with each failure, as long as the server asks for; but in
    time for another attempt.

    Args:
        failures: in a row; 0: only the server's wish counts.
        not_before: when the server wants to be asked again, of ``trio.current_time()``.
        deadline: likewise.
    """
    now = trio.current_time()
    left = max(0.0, deadline - now)
    wait = 0.0
    if failures:
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 20))
        wait = min(random.uniform(0, longest), left / 2)  # noqa: S311  # nosec B311
    if not_before > now:
        asked = not_before - now
        # So that not all come back in the same moment.
        asked += random.uniform(0, min(1.0, asked / 4))  # noqa: S311  # nosec B311
        wait = max(wait, min(asked, left * 3 / 4))
    return wait


class CutShortError(FetchError):
    """An attempt that had less than the usual time since the deadline is near: no answer says nothing then."""


def no_answer(name: str, limit: float) -> FetchError:
    """What an attempt of ``limit`` seconds without an answer is."""
    kind = FetchError if limit >= FIRST_BYTE else CutShortError
    return kind(Failure.UNREACHABLE, f"{name}: no answer in {limit:.0f} s")


def more_telling(before: FetchError | None, error: FetchError) -> FetchError:
    """Of two errors in a row, the one to tell: the later one, unless it was cut short."""
    return before if before is not None and isinstance(error, CutShortError) else error


def said_how_often(error: FetchError, tries: int, seconds: float) -> FetchError:
    """The same error, its text with how often and how long it was tried."""
    if tries < 2:
        return error
    return FetchError(error.failure, f"{error}; tried {tries} times in {seconds:.1f} s", error.retry_after)

"""What every kind of storage elsewhere is to the fetcher: an origin of byte ranges. Nothing it says is believed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Failure(Enum):
    """What went wrong, as far as it decides what to do next."""

    UNREACHABLE = "unreachable"
    """No connection, a reset, a time-out, 5xx: the same again, later, may work."""
    BUSY = "busy"
    """429, 503: later; see ``retry_after``."""
    DENIED = "denied"
    """401, 403, or credentials that are refused: new credentials may work, repeating does not."""
    ABSENT = "absent"
    """404, 410, no such bucket, repository or tag."""
    REPLACED = "replaced"
    """Another object has taken its place since it was opened: ETag, version or size are others."""
    UNUSABLE = "unusable"
    """It answers, but without ranges, or with what is no answer to the question."""
    UNTRUSTED = "untrusted"
    """TLS: the certificate is not one that this machine trusts."""


class FetchError(Exception):
    """A fetch that failed: one line, which names the address, what happened, and what to do.

    Args:
        failure: the kind.
        message: for people; without secrets.
        retry_after: seconds that the server asks us to wait, if it does.
    """

    def __init__(self, failure: Failure, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Opened:
    """What an origin says of its object, and its last bytes, which came with that answer: one round trip."""

    size: int
    """Bytes."""
    validator: str
    """Tells versions of the object apart: a strong ETag, a version id, a digest; empty if there is none."""
    tail: bytes
    """The last bytes, as many as ``open`` was asked for (or all of a smaller object)."""
    head: bytes = b""
    """The first bytes, where they came as well (``open`` may ask for both at once); any number."""


Receive = Callable[[int, memoryview], Awaitable[None]]
"""Called with the bytes of a fetch as they come: the offset in the object, and the bytes, which are the callee's only
until it returns. In order, without gaps, never more than was asked for."""


class Origin(Protocol):
    """One place that has the object. Its methods run in trio; several fetches may be under way at once, and any may be
    cancelled at any time, which leaves the origin usable.

    One attempt each: whoever calls repeats, asks other origins, and limits the time.
    """

    name: str
    """For messages, without secrets."""

    async def open(self, tail: int) -> Opened:
        """Ask for the object's size and validator, along with its last ``tail`` bytes.

        Raises:
            FetchError: of any kind.
        """
        ...

    async def fetch(self, offset: int, length: int, receive: Receive, *, directly: bool = False) -> None:
        """Fetch exactly the range, which lies inside the object. ``open`` has been called.

        Args:
            directly: past proxies and caches on the way, where that can be asked for (``Cache-Control: no-cache``, no
                forward proxy if the host can be reached without).

        Raises:
            FetchError: of any kind; what ``receive`` got until then stands.
        """
        ...

    async def renew(self) -> None:
        """Get new credentials, tokens or signed URLs, after DENIED.

        Raises:
            FetchError: there are none.
        """
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...

"""What is pushed, and what has become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class PushedFile(Protocol):
    """A file of this machine; ``devices.source`` has them."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the range; in any thread. Raises ImageReadError."""
        ...


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that is now at its address."""

    address: str
    """Of this image and no other: with its digest, or its version if the bucket has versions."""
    how: str
    """``sent``, ``resumed`` (after it broke off), ``mounted`` (from another repository), or ``present``."""
    bytes_sent: int
    """Of the image, without what was repeated."""
    manifest: str | None = None
    """The digest of the manifest; None in S3."""

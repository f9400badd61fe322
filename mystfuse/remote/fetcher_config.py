"""What the fetcher is told when it starts: one JSON document in a pipe, never in its arguments, which all users see."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

VERSION = 1


@dataclass(frozen=True, slots=True)
class FetcherConfig:
    """What to fetch, how, and where to keep it."""

    addresses: tuple[str, ...]
    """The image's, and those of its mirrors, in the order in which they are tried."""
    cache: str | None = None
    """The absolute path of the cache's directory; None: a cache in memory, for this process alone."""
    cache_size: int | None = None
    """Bytes that the cache may hold; None: see ``cache_limit``."""
    io_timeout: float | None = 30.0
    """Seconds in which a request must be answered; None: no limit."""
    ca_certificates: str | None = None
    """The path of a PEM file with certificate authorities to trust instead of the system's."""
    client_certificate: str | None = None
    """The path of a PEM file with the client's certificate and key."""
    prefetch: tuple[tuple[int, int], ...] = ()
    """Ranges to fetch unasked, in this order: offsets and lengths. ``((0, -1),)`` means everything."""

    @property
    def cache_limit(self) -> int:
        """Bytes that the cache may hold: unless told otherwise, 64 MiB of memory, or 10 GiB in a directory."""
        if self.cache_size is not None:
            return self.cache_size
        return 64 << 20 if self.cache is None else 10 << 30

    def to_json(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> FetcherConfig:
        """Raises ValueError for what is no configuration of this version."""
        document = json.loads(data)
        if not isinstance(document, dict) or document.pop("version", None) != VERSION:
            raise ValueError("not a fetcher's configuration of this version")
        document["addresses"] = tuple(document["addresses"])
        document["prefetch"] = tuple((offset, length) for offset, length in document.get("prefetch", ()))
        return cls(**document)

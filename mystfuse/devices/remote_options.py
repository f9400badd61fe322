"""How images elsewhere are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How images elsewhere are read; paths are relative to the current directory."""

    mirrors: tuple[str, ...] = ()
    """Further addresses of the same image."""
    cache: str | None = None
    """The directory of a cache; None: in memory."""
    cache_size: int | None = None
    """Bytes."""
    prefetch: str | None = None
    """``all``, or the path of a file that ``mystfuse trace`` has written."""
    ca_certificates: str | None = None
    client_certificate: str | None = None
    trusts_cache: bool = True
    """Whether a hash tree will tell right bytes of a cache on disk from wrong ones."""


LOCAL = RemoteOptions()
"""The defaults."""

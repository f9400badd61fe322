"""The limit on opening an encrypted image: time and memory for all of its header together."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_SECONDS = 60.0
DEFAULT_MEMORY = 1 << 30
"""Bytes: as much as cryptsetup takes for a new key slot, at most."""


@dataclass(frozen=True, slots=True)
class KdfLimit:
    """Bounds for the derivations of one header."""

    seconds: float = DEFAULT_SECONDS
    """For all of them together, estimated before and measured meanwhile; infinite for no limit."""
    memory: int = DEFAULT_MEMORY
    """Bytes, for any of them: one runs at a time."""

    def __str__(self) -> str:
        """As ``--kdf-limit`` takes it."""
        seconds = 0 if math.isinf(self.seconds) else self.seconds
        return f"{seconds:g}:{-(-self.memory >> 20)}M"

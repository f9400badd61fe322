"""What opening an encrypted image may cost: time and memory for all of its header together."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

DEFAULT_SECONDS = 60.0
DEFAULT_MEMORY = 1 << 30
"""Bytes: as much as cryptsetup takes for a new key slot, at most."""

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True, slots=True)
class KdfLimit:
    """Bounds for the derivations of one header."""

    seconds: float = DEFAULT_SECONDS
    """For all of them together, estimated before and measured meanwhile; infinite for no limit."""
    memory: int = DEFAULT_MEMORY
    """Bytes, for any of them: one runs at a time."""

    @classmethod
    def parse(cls, text: str) -> KdfLimit:
        """Parse ``SECONDS[:SIZE]``; 0 seconds means no limit of time.

        Raises:
            ValueError: it is not that.
        """
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(?::([0-9]{1,15})([kKmMgGtT]?)(?:i?[bB])?)?", text)
        if match is None:
            raise ValueError(f"{text!r} is not SECONDS or SECONDS:SIZE, as 60:1G")
        memory = DEFAULT_MEMORY if match[2] is None else int(match[2]) << _UNITS[match[3].lower()]
        return cls(float(match[1]) or math.inf, memory)

    def __str__(self) -> str:
        """As ``parse`` takes it."""
        seconds = 0 if math.isinf(self.seconds) else self.seconds
        return f"{seconds:g}:{-(-self.memory >> 20)}M"

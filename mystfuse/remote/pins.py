"""Which versions a worker of a fetcher has opened, for the next one: tags move, and objects are replaced, while a mount
goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from mystfuse.remote.origin import Origin

_MAX_SIZE = 1 << 20


@runtime_checkable
class Pinned(Protocol):
    """An origin whose address can say which version it has opened."""

    @property
    def pinned(self) -> str:
        """The address of that version; empty: it has none, or is not open yet."""
        ...


class Pins:
    """Addresses of versions by the addresses as given, in memory that workers of one supervisor share."""

    def __init__(self) -> None:
        self._file = os.memfd_create("mystfuse-pins")

    def read(self) -> Mapping[str, str]:
        """What the last worker has left."""
        data = os.pread(self._file, _MAX_SIZE, 0)
        try:
            pins = json.loads(data) if data else {}
        except ValueError:
            # It was killed while it wrote.
            return {}
        return {str(address): str(pinned) for address, pinned in pins.items()} if isinstance(pins, dict) else {}

    def write(self, addresses: Iterable[str], origins: Iterable[Origin]) -> None:
        """Leave to the next worker what the origins of these addresses have opened."""
        pins = dict(self.read())
        for address, origin in zip(addresses, origins, strict=True):
            if isinstance(origin, Pinned) and origin.pinned:
                pins[address] = origin.pinned
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(pins).encode(), 0)

"""The one small interface that every layer above the reader has, and that the file system stands on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """A range of bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Device(Protocol):
    """Something that returns exact ranges of bytes, or fails."""

    size: int
    """Bytes."""

    async def read(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return exactly the bytes of each extent, in the order asked for.

        Raises:
            IntegrityError: the bytes are there, but are not what the hash tree says.
            ImageReadError: the bytes cannot be had.
        """
        ...

    def read_now(self, extents: Sequence[Extent]) -> list[memoryview] | None:
        """The same, if it can be had without waiting for anything; else None. Never blocks.

        Raises:
            IntegrityError, ImageReadError: as ``read``.
        """
        ...


def coalesce(extents: Iterable[Extent], max_length: int) -> list[Extent]:
    """Merge extents that touch or overlap, as long as the result is not longer than ``max_length``.

    The result is sorted by offset and every given extent lies within one of its members. An extent that is
    longer than ``max_length`` by itself stays whole.
    """
    merged: list[Extent] = []
    for extent in sorted(extents):
        if merged:
            last = merged[-1]
            end = max(last.end, extent.end)
            if extent.end <= last.end or (extent.offset <= last.end and end - last.offset <= max_length):
                merged[-1] = Extent(last.offset, end - last.offset)
                continue
        merged.append(extent)
    return merged

"""The one interface of every layer above the reader, on which the file system stands."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

_offset = itemgetter(0)


class Extent(NamedTuple):
    """A range of bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


PendingRead = Callable[[], list[memoryview] | None]
"""Ranges of bytes that are still to be taken from the page cache, checked and decrypted. Calling it, once and in any
thread, does that and returns the bytes of each extent; None when storage must be waited for, or the hash tree says
otherwise. It never waits for storage."""


class Device(Protocol):
    """A device returns exact ranges of bytes, or fails."""

    size: int
    """Bytes."""

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """Return exactly the bytes of each extent, in the order asked for.

        Args:
            quietly: damage is an error, but is not counted or logged, and ends no mount, unless the caller calls the
                error's ``report``: these bytes are read-ahead, and will be read again if they are needed, or the caller
                knows what they are for.

        Raises:
            IntegrityError: a data block is corrupted, or a hash block above it; a ``DamagedBlocks`` if it can be
                reported.
            ImageReadError: reading failed.
        """
        ...

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        """The same without waiting for storage, in two steps: here, on the event loop's thread, buffers and hash blocks
        are made ready; the pending read does the rest in any thread. None if the bytes must be waited for, or a hash
        block is not what it should be.

        It does not report damage: the ``read`` that follows does.

        Raises:
            ImageReadError: bytes outside the device.
        """
        ...


def read_now(device: Device, extents: Sequence[Extent]) -> list[memoryview] | None:
    """The result of ``device.read``, if it needs no waiting for storage and is undamaged; else None. Raises as
    ``Device.begin``."""
    pending = device.begin(extents)
    return None if pending is None else pending()


def coalesce(extents: Iterable[Extent], max_length: int) -> list[Extent]:
    """Merge extents that touch or overlap, as long as the result is not longer than ``max_length``.

    The result is sorted by offset and every given extent lies within one of its members. An extent that is
    longer than ``max_length`` by itself stays whole.
    """
    merged: list[Extent] = []
    begin = end = -1
    for offset, length in sorted(extents):
        stop = offset + length
        if stop <= end:
            continue
        if offset <= end and stop - begin <= max_length:
            end = stop
            continue
        if end >= 0:
            merged.append(Extent(begin, end - begin))
        begin, end = offset, stop
    if end >= 0:
        merged.append(Extent(begin, end - begin))
    return merged


def run_of(runs: Sequence[Extent], offset: int) -> int:
    """Which of some runs, in order, byte ``offset`` lies in."""
    return bisect_right(runs, offset, key=_offset) - 1


def cut_runs(extents: Sequence[Extent], runs: list[Extent], verified: Sequence[memoryview]) -> list[memoryview]:
    """The bytes of each extent, out of the runs that they lie in."""
    if len(extents) == 1 and extents[0] == runs[0]:
        return [verified[0]]
    parts: list[memoryview] = []
    for extent in extents:
        index = run_of(runs, extent.offset)
        start, data = runs[index].offset, verified[index]
        part = data[extent.offset - start : extent.end - start]
        # A small part must not keep a long run in memory.
        parts.append(part if 2 * len(part) >= len(data) else memoryview(bytes(part)))
    return parts


def aligned(extent: Extent, block_size: int) -> Extent:
    """The whole blocks that an extent lies in."""
    start = extent.offset // block_size * block_size
    return Extent(start, -(-extent.end // block_size) * block_size - start)

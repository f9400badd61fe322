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


class Batch(Protocol):
    """Ranges of bytes that are still to be taken from the page cache, checked and decrypted."""

    def run(self) -> None:
        """Do that work. It may be done in any thread; errors wait for ``result``. Never waits for storage."""
        ...

    def parts(self) -> list[memoryview] | None:
        """What ``result`` will return. After ``run``, in any thread."""
        ...

    def result(self) -> list[memoryview] | None:
        """The bytes of each extent, when ``run`` has come to its end; on the event loop's thread. None when storage has
        to be waited for, or the bytes are not what the hash tree says: ``read`` waits, and tells."""
        ...


class Complete:
    """A ``Batch`` with nothing left to do."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = parts

    def run(self) -> None:
        pass

    def parts(self) -> list[memoryview]:
        return self._parts

    def result(self) -> list[memoryview]:
        return self._parts


class Device(Protocol):
    """Something that returns exact ranges of bytes, or fails."""

    size: int
    """Bytes."""

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """Return exactly the bytes of each extent, in the order asked for.

        Args:
            quietly: nobody has asked for these bytes yet, and who does asks again: damage is an error as ever, but not
                counted or logged, and ends no mount.

        Raises:
            IntegrityError: the bytes are there, but are not what the hash tree says.
            ImageReadError: the bytes cannot be had.
        """
        ...

    def begin(self, extents: Sequence[Extent]) -> Batch | None:
        """The same in two steps, if the bytes can be had without waiting for storage, and are what they should be; else
        None. Never blocks, and says nothing of damage: whoever needs the bytes asks ``read``, which does.

        Raises:
            ImageReadError: bytes outside the device.
        """
        ...


def read_now(device: Device, extents: Sequence[Extent]) -> list[memoryview] | None:
    """What ``device.read`` returns, if it can be had without waiting for storage, and is whole; else None. Never
    blocks, and says nothing of damage.

    Raises:
        ImageReadError: bytes outside the device.
    """
    batch = device.begin(extents)
    if batch is None:
        return None
    batch.run()
    return batch.result()


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

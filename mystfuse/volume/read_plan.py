"""The places of a range of bytes, piece by piece: every read of file data, and of the merged image, follows such a
plan.

A read locates (``ReadPlan``), fetches (``fetch``, and ``recall`` of the overlay), and joins (``ReadPlan.parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from mystfuse.devices.device import Device, Extent
from mystfuse.errors import MystfuseError
from mystfuse.ext2.block_map import Run
from mystfuse.system.workers import INLINE_BYTES, Workers

Written = Callable[[int], bytes | int | None]
"""A written block by its number: a copy, or its version if it is in the overlay's store; None for one of the image."""
Recalled = Mapping[int, bytes | MystfuseError]
"""Blocks from the overlay's store, by version."""
Part = bytes | memoryview


class Stored(NamedTuple):
    """A part of blocks that are in the overlay's store."""

    versions: Sequence[int]
    """Of the blocks."""
    start: int
    """Byte, within the first of them."""
    length: int
    """Bytes."""


class ReadPlan:
    """The places of bytes ``start`` to ``end`` of a file or image.

    Args:
        runs: its blocks, from the one on that has byte ``start``.
        written: returns the written blocks; None when there are none.
        hole: the number of a run that is all zeros.
    """

    __slots__ = ("extents", "length", "pieces", "versions")

    def __init__(
        self, runs: Iterable[Run], written: Written | None, block_size: int, start: int, end: int, hole: int = 0
    ) -> None:
        self.length = end - start
        """Bytes."""
        self.pieces: list[Extent | Stored | bytes] = []
        """On the device; in the store; or a copy of written bytes, or the zeros of a hole."""
        self.extents: list[Extent] = []
        """The extents to fetch from the device."""
        self.versions: list[int] = []
        """The versions to recall from the overlay's store."""
        stop = start // block_size * block_size
        for run in runs:
            pieces: _Pieces = [(run, bytes(run.length * block_size))] if run.physical == hole else _split(run, written)
            for (first, length), content in pieces:
                begin, stop = stop, stop + length * block_size
                low, high = max(begin, start), min(stop, end)
                if content is None:
                    self._add_extent(first * block_size + low - begin, high - low)
                elif isinstance(content, bytes):
                    self.pieces.append(content if high - low == len(content) else content[low - begin : high - begin])
                else:
                    self.pieces.append(Stored(content, low - begin, high - low))
                    self.versions += content

    @classmethod
    def holding(cls, content: bytes) -> ReadPlan:
        """The plan of a range whose bytes are known."""
        plan = cls([], None, 1, 0, 0)
        plan.length = len(content)
        plan.pieces.append(content)
        return plan

    def _add_extent(self, offset: int, length: int) -> None:
        last = self.pieces[-1] if self.pieces else None
        if isinstance(last, Extent) and last.end == offset:
            self.pieces[-1] = self.extents[-1] = Extent(last.offset, last.length + length)
        else:
            extent = Extent(offset, length)
            self.pieces.append(extent)
            self.extents.append(extent)

    def pick(self, extents: Sequence[Extent], fetched: Sequence[memoryview]) -> list[memoryview] | None:
        """This plan's part of the bytes fetched for another plan's ``extents``; None if some are missing."""
        picked: list[memoryview] = []
        for extent in self.extents:
            for other, data in zip(extents, fetched, strict=True):
                if other.offset <= extent.offset and extent.end <= other.end:
                    picked.append(data[extent.offset - other.offset : extent.end - other.offset])
                    break
            else:
                return None
        return picked

    def parts(self, fetched: Iterable[memoryview], recalled: Recalled) -> list[Part]:
        """The bytes of each piece.

        Args:
            fetched: those of ``extents``.
            recalled: among others, all ``versions``.

        Raises:
            MystfuseError: reading a block from the store failed.
        """
        from_device = iter(fetched)
        parts: list[Part] = []
        for piece in self.pieces:
            if isinstance(piece, Extent):
                parts.append(next(from_device))
            elif isinstance(piece, Stored):
                parts.append(_recall(piece, recalled))
            else:
                parts.append(piece)
        return parts


def _recall(piece: Stored, recalled: Recalled) -> bytes:
    blocks: list[bytes] = []
    for version in piece.versions:
        block = recalled[version]
        if isinstance(block, MystfuseError):
            raise block
        blocks.append(block)
    return b"".join(blocks)[piece.start : piece.start + piece.length]


_Pieces = Sequence[tuple[Run, bytes | list[int] | None]]
"""Each run with its written bytes, with its versions if they are in the store, or with None if it is on the device."""


def _split(run: Run, written: Written | None) -> _Pieces:
    if written is None:
        return [(run, None)]
    pieces: list[tuple[Run, bytes | list[int] | None]] = []
    first = run.physical
    for _, group in groupby(map(written, range(first, first + run.length)), type):
        blocks = list(group)
        versions = [block for block in blocks if isinstance(block, int)]
        contents = [block for block in blocks if block is not None and not isinstance(block, int)]
        pieces.append((Run(first, len(blocks)), b"".join(contents) if contents else versions or None))
        first += len(blocks)
    return pieces


def join(parts: Sequence[Part]) -> Part:
    """Parts as one."""
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def fetch(device: Device, workers: Workers, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
    """The bytes of each extent: from the page cache, without a detour over the reader's task, or from storage.

    Args:
        workers: check and decrypt long ranges.
        quietly: see ``Device.read``.

    Raises:
        IntegrityError, ImageReadError: as ``Device.read``.
    """
    if not extents:
        return []
    pending = device.begin(extents)
    if pending is not None:
        if sum([extent.length for extent in extents]) > INLINE_BYTES:
            fetched = await workers.run(pending)
        else:
            fetched = pending()
        if fetched is not None:
            return fetched
        # It has buffers, and storage may take long.
        del pending
    return await device.read(extents, quietly)

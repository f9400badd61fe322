"""The states of a mount as devices: as it was mounted, and as it is now."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import trio

from mystfuse.devices.device import Extent, PendingRead
from mystfuse.devices.patient_threads import call_patiently
from mystfuse.errors import ImageReadError
from mystfuse.tree.diff.control_files import ControlFiles, Piece


class MountDevice:
    """One state of a mount, see ``devices.device.Device``.

    The mount has verified what it gives; nothing is verified here.

    Args:
        is_base: as it was mounted, without what has been written.
        io_timeout: seconds that the mount gets for each answer.
    """

    def __init__(self, files: ControlFiles, is_base: bool, io_timeout: float) -> None:
        self.size = files.base_size
        """Bytes."""
        self._files = files
        self._is_base = is_base
        self._io_timeout = io_timeout

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        """See ``Device.begin``: what is not in memory is waited for."""
        self._check(extents)
        parts = [list(map(self._files.find, self._pieces(extent))) for extent in extents]
        if any(part is None for some in parts for part in some):
            return None
        return lambda: [_join([part for part in some if part is not None]) for some in parts]

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """See ``Device.read``.

        Raises:
            ImageReadError: reading failed, perhaps for damage, which the mount's log names.
            StorageTimeout
        """
        self._check(extents)
        files = self._files
        plans = [self._pieces(extent) for extent in extents]
        known: dict[Piece, bytes] = {}
        missing: list[Piece] = []
        for piece in {piece for pieces in plans for piece in pieces}:
            found = files.find(piece)
            if found is None:
                missing.append(piece)
            else:
                known[piece] = found
        if not missing:
            await trio.lowlevel.checkpoint()
            return [_join([known[piece] for piece in pieces]) for pieces in plans]
        loads = await call_patiently(lambda: [files.load(piece) for piece in missing], files.name, self._io_timeout)
        for piece, loaded in zip(missing, loads, strict=True):
            known[piece] = loaded.bytes_of(piece)
            files.keep(loaded)
        return [_join([known[piece] for piece in pieces]) for pieces in plans]

    def _check(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            if extent.offset < 0 or extent.length < 0 or extent.end > self.size:
                raise ImageReadError(f"{self._files.name}: {extent.length} bytes at {extent.offset} are outside of it")

    def _pieces(self, extent: Extent) -> list[Piece]:
        """Where the bytes of an extent are, neighbours together."""
        files = self._files
        numbers, size = files.numbers, files.header.block_size
        first, last = extent.offset // size, (extent.end - 1) // size
        if self._is_base or bisect_left(numbers, first) == bisect_left(numbers, last + 1):
            return [Piece(True, extent.offset, extent.length)]
        pieces: list[Piece] = []
        for number in range(first, last + 1):
            low, high = max(number * size, extent.offset), min((number + 1) * size, extent.end)
            place = files.place(number)
            piece = Piece(place < 0, low if place < 0 else place + low - number * size, high - low)
            last_piece = pieces[-1] if pieces else None
            if last_piece and last_piece.is_base == piece.is_base and last_piece.end == piece.offset:
                pieces[-1] = last_piece._replace(length=last_piece.length + piece.length)
            else:
                pieces.append(piece)
        return pieces


def _join(parts: Sequence[bytes]) -> memoryview:
    return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

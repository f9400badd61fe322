"""Reading a damaged file system's blocks: those that the hash tree verifies, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mystfuse.devices.device import Device, Extent, coalesce, read_now
from mystfuse.errors import ImageReadError, IntegrityError, StorageTimeout
from mystfuse.image.damaged_ranges import DamagedRanges

RUN_BYTES = 1 << 20
"""Neighbouring blocks are read together up to here."""
STEP_BYTES = 2 << 20
"""Bytes worth asking for at a time."""


class VerifiedBlocks:
    """The blocks of a file system, by number.

    Args:
        device: verifies, and decrypts where needed.
        damaged: ranges of the device that are not worth trying.
    """

    def __init__(self, device: Device, block_size: int, damaged: DamagedRanges) -> None:
        self.block_size = block_size
        self.at_once = max(STEP_BYTES // block_size, 1)
        """Blocks to ask for at a time."""
        self._device = device
        self._damaged = damaged

    def is_damaged(self, number: int) -> bool:
        """Whether a block is known to be damaged."""
        return self._damaged.touch(number * self.block_size, (number + 1) * self.block_size)

    async def read(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Those of the blocks that are intact and within the device.

        Raises:
            StorageTimeout: storage does not answer.
        """
        size, end = self.block_size, self._device.size
        wanted = [
            Extent(number * size, size)
            for number in set(numbers)
            if (number + 1) * size <= end and not self.is_damaged(number)
        ]
        found: dict[int, bytes] = {}
        runs = coalesce(wanted, RUN_BYTES)
        parts = await self._try(runs)
        if parts is not None:
            _split(runs, parts, size, found)
            return found
        # Storage has changed since, or cannot be read: without this block, but with the others.
        for extent in sorted(wanted):
            parts = await self._try([extent])
            if parts is not None:
                _split([extent], parts, size, found)
        return found

    async def _try(self, extents: Sequence[Extent]) -> list[memoryview] | None:
        if not extents:
            return []
        try:
            return read_now(self._device, extents) or await self._device.read(extents, quietly=True)
        except StorageTimeout:
            raise
        except (IntegrityError, ImageReadError):
            return None


def _split(runs: Sequence[Extent], parts: Sequence[memoryview], size: int, found: dict[int, bytes]) -> None:
    for run, data in zip(runs, parts, strict=True):
        for start in range(0, run.length, size):
            found[(run.offset + start) // size] = bytes(data[start : start + size])

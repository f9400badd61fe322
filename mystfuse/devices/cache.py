"""Recently used metadata blocks of the file system: verified, in memory, bounded, least recently used first out.

File data are not in it: the kernel caches them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mystfuse.devices.device import Device, Extent, coalesce, read_now

METADATA_CACHE_BYTES = 32 << 20
MAX_FETCH = 1 << 20
"""Bytes: neighbouring blocks are fetched together up to here."""


class BlockCache:
    """File-system blocks by number, in front of a device that verifies.

    ``get`` is synchronous and answers from memory alone; ``fetch`` goes to the device.
    """

    def __init__(self, device: Device, block_size: int, capacity: int = METADATA_CACHE_BYTES) -> None:
        self.block_size = block_size
        self.hits = 0
        self.misses = 0
        self._device = device
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._max_blocks = max(capacity // block_size, 1)

    def get(self, number: int) -> bytes | None:
        """The block, if it is in the cache."""
        block = self._blocks.get(number)
        if block is not None:
            self.hits += 1
            self._blocks.move_to_end(number)
        return block

    async def fetch(self, numbers: Iterable[int], quietly: bool = False) -> dict[int, bytes]:
        """Read blocks from the device and keep them.

        Args:
            quietly: see ``Device.read``.

        Raises:
            IntegrityError, ImageReadError: as the device does; then nothing is kept.
        """
        runs = self._runs(numbers)
        return self._keep(runs, await self._device.read(runs, quietly))

    def fetch_now(self, numbers: Iterable[int]) -> dict[int, bytes] | None:
        """The same, if the device has the blocks at once; else None."""
        runs = self._runs(numbers)
        parts = read_now(self._device, runs)
        return None if parts is None else self._keep(runs, parts)

    def _runs(self, numbers: Iterable[int]) -> list[Extent]:
        size = self.block_size
        return coalesce([Extent(number * size, size) for number in set(numbers)], MAX_FETCH)

    def _keep(self, runs: list[Extent], parts: list[memoryview]) -> dict[int, bytes]:
        size = self.block_size
        fetched: dict[int, bytes] = {}
        for run, data in zip(runs, parts, strict=True):
            for start in range(0, run.length, size):
                # A copy: a view would keep the whole run in memory.
                fetched[(run.offset + start) // size] = bytes(data[start : start + size])
        self.misses += len(fetched)
        self._blocks.update(fetched)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)
        return fetched

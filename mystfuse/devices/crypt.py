"""The crypt device: the decrypted payload of a LUKS device, on top of what has been verified."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mystfuse.crypto.sectors import SECTOR_SIZE, SectorCipher
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import ImageReadError

INLINE_BYTES = 128 << 10
"""A request of up to so much is decrypted on the loop's thread: handing it over costs more than it saves."""
_THREADS = 2


class CryptDevice:
    """A range of the device below, decrypted.

    Args:
        verified: the device below.
        payload_offset, size: the range in bytes, of whole sectors.
        sector_size: bytes that are decrypted as one unit.
    """

    def __init__(
        self, verified: Device, cipher: SectorCipher, payload_offset: int, size: int, sector_size: int
    ) -> None:
        self.size = size
        self.bytes_decrypted = 0
        self._verified = verified
        self._cipher = cipher
        self._payload_offset = payload_offset
        self._sector_size = sector_size
        self._threads = trio.CapacityLimiter(_THREADS)

    async def read(self, extents: Sequence[Extent]) -> list[memoryview]:
        """The decrypted bytes of each extent.

        Raises:
            IntegrityError: as the device below does; nothing that has not been verified is decrypted.
            ImageReadError: the bytes cannot be had, or lie outside the payload.
        """
        wanted = self._sectors(extents)
        encrypted = await self._verified.read(wanted)
        if sum(extent.length for extent in wanted) > INLINE_BYTES:
            plain = await trio.to_thread.run_sync(self._decrypt, wanted, encrypted, limiter=self._threads)
        else:
            plain = self._decrypt(wanted, encrypted)
        return self._cut(extents, plain)

    def read_now(self, extents: Sequence[Extent]) -> list[memoryview] | None:
        """The same, if the device below has it at once and decrypting it does not take long; else None."""
        wanted = self._sectors(extents)
        if sum(extent.length for extent in wanted) > INLINE_BYTES:
            return None
        encrypted = self._verified.read_now(wanted)
        return None if encrypted is None else self._cut(extents, self._decrypt(wanted, encrypted))

    def _sectors(self, extents: Sequence[Extent]) -> list[Extent]:
        """The whole sectors that extents lie in, as extents of the device below."""
        wanted: list[Extent] = []
        for extent in extents:
            if extent.offset < 0 or extent.length <= 0 or extent.end > self.size:
                raise ImageReadError(f"crypt: bytes {extent.offset} to {extent.end} are outside the payload")
            start = extent.offset // self._sector_size * self._sector_size
            end = -(-extent.end // self._sector_size) * self._sector_size
            wanted.append(Extent(self._payload_offset + start, end - start))
        return wanted

    def _cut(self, extents: Sequence[Extent], plain: Sequence[bytes | memoryview]) -> list[memoryview]:
        """The bytes of each extent, out of the sectors that they lie in."""
        self.bytes_decrypted += sum(map(len, plain))
        result: list[memoryview] = []
        for extent, part in zip(extents, plain, strict=True):
            start = extent.offset % self._sector_size
            result.append(memoryview(part)[start : start + extent.length])
        return result

    def _decrypt(self, extents: Sequence[Extent], encrypted: Sequence[memoryview]) -> list[bytes | memoryview]:
        return [
            self._cipher.decrypt(data, (extent.offset - self._payload_offset) // SECTOR_SIZE)
            for extent, data in zip(extents, encrypted, strict=True)
        ]

"""The crypt device: the decrypted payload of a LUKS device, on top of what has been verified."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mystfuse.crypto.sectors import SECTOR_SIZE, SectorCipher
from mystfuse.devices.buffers import Buffers
from mystfuse.devices.device import Batch, Complete, Device, Extent
from mystfuse.errors import ImageReadError
from mystfuse.system.threads import call_in_thread
from mystfuse.system.workers import INLINE_BYTES

_THREADS = 2
_PATIENCE = 30.0
"""Seconds until a thread has decrypted 8 MiB at most, the wait for its turn included."""


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
        self._buffers = Buffers()
        self._threads = trio.CapacityLimiter(_THREADS)

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """The decrypted bytes of each extent.

        Raises:
            IntegrityError: as the device below does; nothing that has not been verified is decrypted.
            ImageReadError: the bytes cannot be had, or lie outside the payload.
        """
        wanted = self._sectors(extents)
        decryption = Decryption(self, extents, wanted, Complete(await self._verified.read(wanted, quietly)))
        if sum(extent.length for extent in wanted) > INLINE_BYTES:
            try:
                # Those who wait for their turn wait no longer than those who have it.
                with trio.fail_after(_PATIENCE):
                    async with self._threads:
                        await call_in_thread(decryption.run)
            except RuntimeError:
                # A thread cannot be started, for want of memory or because of a limit on processes.
                decryption.run()
            except trio.TooSlowError:
                raise ImageReadError("crypt: no thread has decrypted, for want of memory perhaps") from None
        else:
            decryption.run()
        plain = decryption.result()
        assert plain is not None
        return plain

    def begin(self, extents: Sequence[Extent]) -> Decryption | None:
        """The same in two steps, if the device below has the bytes at once; else None."""
        wanted = self._sectors(extents)
        batch = self._verified.begin(wanted)
        return None if batch is None else Decryption(self, extents, wanted, batch)

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


class Decryption:
    """A ``Batch`` of sectors, once the device below has checked them.

    Args:
        extents: what is wanted, in bytes of the payload.
        sectors: the whole sectors that each of them lies in, as extents of the device below.
        encrypted: their contents.
    """

    def __init__(
        self, device: CryptDevice, extents: Sequence[Extent], sectors: Sequence[Extent], encrypted: Batch
    ) -> None:
        self._device = device
        self._extents = extents
        self._sectors = sectors
        self._encrypted = encrypted
        self._plain = [device._buffers.take(extent.length) for extent in sectors]
        self._is_decrypted = False

    def run(self) -> None:
        self._encrypted.run()
        verified = self._encrypted.parts()
        if verified is None:
            return
        for sectors, data, plain in zip(self._sectors, verified, self._plain, strict=True):
            number = (sectors.offset - self._device._payload_offset) // SECTOR_SIZE
            self._device._cipher.decrypt_into(data, number, plain)
        self._is_decrypted = True

    def parts(self) -> list[memoryview] | None:
        if not self._is_decrypted:
            return None
        sector_size = self._device._sector_size
        return [
            plain[(start := extent.offset % sector_size) : start + extent.length]
            for extent, plain in zip(self._extents, self._plain, strict=True)
        ]

    def result(self) -> list[memoryview] | None:
        if self._encrypted.result() is None:
            return None
        self._device.bytes_decrypted += sum(map(len, self._plain))
        return self.parts()

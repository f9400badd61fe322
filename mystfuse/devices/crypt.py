"""The crypt device: the decrypted payload of a LUKS device, on top of verified bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock

import trio

from mystfuse.crypto.sector_ciphers import SECTOR_SIZE, SectorCipher
from mystfuse.devices.buffers import Buffers
from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Device, Extent, PendingRead
from mystfuse.errors import ImageReadError
from mystfuse.system.threads import call_in_thread
from mystfuse.system.workers import INLINE_BYTES

_THREADS = 2
_PATIENCE = 30.0
"""Seconds until a thread has decrypted up to 8 MiB, the wait for its turn included."""


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
        self.cipher = cipher
        self.payload_offset = payload_offset
        self.sector_size = sector_size
        self._buffers = Buffers()
        self._threads = trio.CapacityLimiter(_THREADS)
        self._counting = Lock()

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """The decrypted bytes of each extent.

        Raises:
            IntegrityError: as the device below does; it decrypts verified bytes alone.
            ImageReadError: reading failed, or the bytes lie outside the payload.
        """
        sectors = self._sectors(extents)
        try:
            verified = await self._verified.read(sectors, quietly)
        except DamagedBlocks as damage:
            raise damage.moved(self.payload_offset) from damage
        decrypt = partial(self._decrypt, extents, sectors, verified, self._take_buffers(sectors))
        if sum(extent.length for extent in sectors) <= INLINE_BYTES:
            return decrypt()
        try:
            # The time-out begins anew with its turn: waiting work waits no longer than running work.
            with trio.fail_after(_PATIENCE):
                async with self._threads:
                    return await call_in_thread(decrypt)
        except RuntimeError:
            # No thread starts, for want of memory or because of a limit on processes.
            return decrypt()
        except trio.TooSlowError:
            raise ImageReadError("crypt: no thread has decrypted, for want of memory perhaps") from None

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        """See ``Device.begin``."""
        sectors = self._sectors(extents)
        pending = self._verified.begin(sectors)
        return (
            None if pending is None else partial(self._finish, extents, sectors, pending, self._take_buffers(sectors))
        )

    def _finish(
        self, extents: Sequence[Extent], sectors: Sequence[Extent], pending: PendingRead, plaintext: list[memoryview]
    ) -> list[memoryview] | None:
        """Decrypt the result of a pending read of the device below, in any thread."""
        verified = pending()
        return None if verified is None else self._decrypt(extents, sectors, verified, plaintext)

    def _decrypt(
        self,
        extents: Sequence[Extent],
        sectors: Sequence[Extent],
        verified: Sequence[memoryview],
        plaintext: list[memoryview],
    ) -> list[memoryview]:
        """Decrypt ``verified``, the contents of ``sectors``, into ``plaintext``, and return the part of each extent. In
        any thread."""
        for run, data, buffer in zip(sectors, verified, plaintext, strict=True):
            self.cipher.decrypt_into(data, (run.offset - self.payload_offset) // SECTOR_SIZE, buffer)
        with self._counting:
            self.bytes_decrypted += sum(map(len, plaintext))
        return [
            buffer[(start := extent.offset % self.sector_size) : start + extent.length]
            for extent, buffer in zip(extents, plaintext, strict=True)
        ]

    def _take_buffers(self, sectors: Sequence[Extent]) -> list[memoryview]:
        return [self._buffers.take(extent.length) for extent in sectors]

    def _sectors(self, extents: Sequence[Extent]) -> list[Extent]:
        """The whole sectors that extents lie in, as extents of the device below."""
        wanted: list[Extent] = []
        for extent in extents:
            if extent.offset < 0 or extent.length <= 0 or extent.end > self.size:
                raise ImageReadError(f"crypt: bytes {extent.offset} to {extent.end} are outside the payload")
            start = extent.offset // self.sector_size * self.sector_size
            end = -(-extent.end // self.sector_size) * self.sector_size
            wanted.append(Extent(self.payload_offset + start, end - start))
        return wanted

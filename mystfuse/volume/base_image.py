"""The file system as it was mounted, as one run of bytes: verified and decrypted, without what has been written."""

from __future__ import annotations

from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Device, Extent
from mystfuse.system.workers import Workers
from mystfuse.volume.damage_names import DamageNames
from mystfuse.volume.read_plan import fetch


class BaseImage:
    """The image below a volume.

    Args:
        size: bytes of the file system.
        names: report damage.
    """

    def __init__(self, device: Device, size: int, workers: Workers, names: DamageNames) -> None:
        self.size = size
        """Bytes."""
        self._device = device
        self._workers = workers
        self._names = names

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Up to ``length`` bytes from byte ``offset`` on; fewer only at the end.

        Raises:
            IntegrityError, ImageReadError
        """
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        try:
            (data,) = await fetch(self._device, self._workers, [Extent(offset, length)], quietly=True)
        except DamagedBlocks as damage:
            self._names.report_image(damage)
            raise
        return data

    def close(self) -> None:
        """It holds nothing."""

"""Volumes over devices whose reads the test can hold up."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mystfuse.devices.device import Extent
from mystfuse.errors import IntegrityError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import MemoryDevice

ROOT = Caller(0, 0)
LIMIT = 64 << 20


class GatedDevice(MemoryDevice):
    """A device that can fail its nth read, or hold its reads until the test releases them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.failing: int | None = None
        self.has_failed = False
        self.gate: trio.Event | None = None
        self.waiting = trio.Event()

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        if self.failing is not None and self.reads > self.failing:
            self.has_failed = True
            raise IntegrityError("injected")
        return await super().read(extents)


async def open_volume(image: bytes, limit: int = LIMIT) -> tuple[Volume, GatedDevice]:
    device = GatedDevice(image)
    return await Volume.open(device, limit), device


async def find(volume: Volume, name: bytes, parent: int = EXT2_ROOT_INO) -> Inode:
    inode = await volume.lookup(parent, name)
    assert inode is not None, name
    return inode

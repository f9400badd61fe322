"""Removed files on storage that hangs: what that costs those who free them, and others. In virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from ext2_editor import ROOT, MemoryDevice, make_image, merged
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.errors import StorageTimeout
from mystfuse.ext2.allocation import Caller
from mystfuse.volume import Volume

CALLER = Caller(0, 0, frozenset)
FILES = 10
TIMEOUT = 30


class HangingDevice(MemoryDevice):
    """A read takes the whole time-out while it ``hangs``."""

    hangs = False

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        if self.hangs:
            await trio.sleep(TIMEOUT)
            raise StorageTimeout("storage does not answer")
        return await super().read(extents)


@pytest.fixture
def device(tmp_path: Path) -> HangingDevice:
    """An image with ``FILES`` files, each with an indirect block that only freeing it needs."""
    (tmp_path / "tree").mkdir()
    for number in range(FILES):
        (tmp_path / f"tree/{number}").write_bytes(b"x" * 20_000)
    image = make_image(tmp_path / "image", "-b", "1024", tree=tmp_path / "tree", size="2M")
    return HangingDevice(image.read_bytes())


async def remove_all(volume: Volume) -> list[int]:
    return [(await volume.remove(ROOT, b"%d" % number, is_rmdir=False)).ino for number in range(FILES)]


async def test_a_merged_image_waits_for_hung_storage_once(device: HangingDevice, autojump_clock: MockClock) -> None:
    volume = await Volume.open(device, 1 << 20)
    await remove_all(volume)
    device.hangs = True
    started = trio.current_time()
    with pytest.raises(StorageTimeout):
        await volume.open_image()
    assert trio.current_time() - started <= TIMEOUT + 1
    device.hangs = False
    assert len(await merged(volume)) == device.size


async def test_others_get_their_turn_while_a_merged_image_frees_what_is_in_memory(device: HangingDevice) -> None:
    volume = await Volume.open(device, 1 << 20)
    await remove_all(volume)
    await merged(volume)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        (await volume.open_image()).close()
        nursery.cancel_scope.cancel()
    assert turns >= FILES - 2

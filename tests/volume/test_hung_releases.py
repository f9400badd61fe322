"""Removed files on storage that hangs: how long releases and other operations take, in virtual time."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.errors import StorageTimeout
from mystfuse.ext2.caller import Caller
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.operations import Operations
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, MemoryDevice, assert_clean, make_image, merged

CALLER = Caller(0, 0, frozenset)
FILES = 10
TIMEOUT = 30
NO_SPACE = rf"\[Errno {errno.ENOSPC}\]"


class HangingDevice(MemoryDevice):
    """A device whose reads take the whole time-out while it ``hangs``."""

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


async def fill(volume: Volume) -> int:
    """Write until the file system is full; returns the file."""
    inode = await volume.create(ROOT, b"new", 0o100644, CALLER)
    with pytest.raises(OSError, match=NO_SPACE):
        for offset in range(0, volume.superblock.size, 1024):
            await volume.write(inode.ino, offset, b"y" * 1024, CALLER)
    return inode.ino


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_removed_files_on_hung_storage_cost_one_time_out_and_delay_no_writer_without_space(
    device: HangingDevice, autojump_clock: MockClock, tmp_path: Path
) -> None:
    volume = await Volume.open(device, 64 << 10)
    operations = Operations(volume, MountOptions("/mnt", "image"), dict, lambda _: frozenset())
    new = await fill(volume)
    inos = await remove_all(volume)
    device.hangs = True
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.forget, [(ino, 1) for ino in inos])
        await trio.sleep(1)
        with pytest.raises(OSError, match=NO_SPACE):
            await volume.write(new, 1 << 20, b"z" * 20_000, CALLER)
        assert trio.current_time() - started < TIMEOUT / 2
    assert trio.current_time() - started <= TIMEOUT + 1
    assert volume.orphans == set(inos)
    # The first successful release is a reason to try all.
    device.hangs = False
    await volume.release(inos[-1])
    assert not volume.orphans
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_an_orphan_that_is_being_freed_is_not_freed_twice(
    device: HangingDevice, autojump_clock: MockClock
) -> None:
    """By then the number may be another file's."""
    volume = await Volume.open(device, 1 << 20)
    inos = await remove_all(volume)
    device.hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.release, *inos)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await volume.release(*reversed(inos))
        assert trio.current_time() == started
        device.hangs = False
    assert volume.orphans == set(inos)

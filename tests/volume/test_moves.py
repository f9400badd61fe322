"""Renames across directories, several at once, on storage that answers late or not at all."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.inode import Inode
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, MemoryDevice, make_image

ROOT_USER = Caller(0, 0, frozenset)


class SlowDevice(MemoryDevice):
    """A device whose reads take ``delay`` seconds."""

    delay = 0.0

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        await trio.sleep(self.delay)
        return await super().read(extents, quietly)


@pytest.fixture
async def device(tmp_path: Path) -> SlowDevice:
    for name in ("one/below", "two/below", "three", "four"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree/three/file").touch()
    return SlowDevice(make_image(tmp_path / "image", tree=tmp_path / "tree").read_bytes())


async def find(volume: Volume, *names: bytes) -> Inode:
    ino = ROOT
    for name in names:
        inode = await volume.lookup(ino, name)
        assert inode is not None
        ino = inode.ino
    return inode


async def test_a_rename_whose_storage_hangs_holds_up_no_other(device: SlowDevice, autojump_clock: MockClock) -> None:
    volume = await Volume.open(device, 4 << 20)
    three, four = await find(volume, b"three"), await find(volume, b"four")
    one, two = await find(volume, b"one"), await find(volume, b"two")
    for places in ((three, four), (four, three)):
        await volume.rename(places[0].ino, b"file", places[1].ino, b"file", 0, ROOT_USER)
    device.delay = 1000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.rename, one.ino, b"below", two.ino, b"moved", 0, ROOT_USER)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await volume.rename(three.ino, b"file", four.ino, b"file", 0, ROOT_USER)
    assert await find(volume, b"two", b"moved") and await find(volume, b"four", b"file")


async def test_directories_that_are_moved_into_each_other_at_once_stay_in_the_tree(
    device: SlowDevice, autojump_clock: MockClock
) -> None:
    device.delay = 1
    volume = await Volume.open(device, 4 << 20)
    one, two = await find(volume, b"one"), await find(volume, b"two")
    below = (await find(volume, b"one", b"below")).ino, (await find(volume, b"two", b"below")).ino
    volume.cache._blocks.clear()
    refused: list[int | None] = []

    async def move(name: bytes, ino: int) -> None:
        try:
            await volume.rename(ROOT, name, ino, name, 0, ROOT_USER)
        except OSError as error:
            refused.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move, b"one", below[1])
        nursery.start_soon(move, b"two", below[0])
    assert refused == [errno.EINVAL]
    names = [name for name in (b"one", b"two") if await volume.lookup(ROOT, name)]
    assert len(names) == 1
    assert {one.ino, two.ino} == {
        (await find(volume, names[0])).ino,
        (await find(volume, names[0], b"below", b"two" if names == [b"one"] else b"one")).ino,
    }

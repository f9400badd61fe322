"""The orphan file is worked off where we write, as the kernel does at mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, at, make_image, merged
from tests.support.journals import loop_device

LIMIT = 32 << 20
PLAIN = "has_journal,orphan_file,^metadata_csum,^extent,^64bit,^dir_nlink"


def crashed(image: Path, mountpoint: Path) -> bytes:
    """The image as a crash leaves it while removed files are open."""
    mountpoint.mkdir()
    with loop_device(image) as device:
        run("mount", "-t", "ext4", "-o", "commit=1", device, mountpoint)
        try:
            held = [os.open(mountpoint / f"gone {number}", os.O_CREAT | os.O_RDWR) for number in range(20)]
            for number, descriptor in enumerate(held):
                os.write(descriptor, os.urandom(5000 * number))
                os.unlink(mountpoint / f"gone {number}")
            run("sync", "--file-system", mountpoint)
            data = image.read_bytes()
            for descriptor in held:
                os.close(descriptor)
        finally:
            run("umount", mountpoint)
    return data


@pytest.fixture(params=[("-O", PLAIN), ("-O", PLAIN, "-b", "1024")], ids=["4096", "1024"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "stays").write_bytes(b"stays" * 10_000)
    return make_image(tmp_path / "image", "-t", "ext4", *request.param, size="16M", tree=tree)


async def test_listed_orphans_are_freed(image: Path, tmp_path: Path) -> None:
    data = crashed(image, tmp_path / "mount")
    clean = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    volume = await Volume.open(MemoryDevice(data), LIMIT)
    assert "orphan_present" in volume.superblock.features and volume.orphans == set()
    assert await volume.statistics() == await clean.statistics()
    assert bytes(await volume.read((await at(volume, "stays")).ino, 0, 100_000)) == b"stays" * 10_000
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_the_file_is_left_to_the_kernel_where_nothing_is_written(image: Path, tmp_path: Path) -> None:
    volume = await Volume.open(MemoryDevice(crashed(image, tmp_path / "mount")))
    assert bytes(await volume.read((await at(volume, "stays")).ino, 0, 100_000)) == b"stays" * 10_000


def blocks_of_the_file(data: bytearray) -> list[range]:
    """Where the orphan file's blocks are in an image."""
    size, tail = 1024 << int.from_bytes(data[1048:1052], "little"), (0x0B10CA04).to_bytes(4, "little")
    ends = [end for end in range(size, len(data) + 1, size) if data[end - 8 : end - 4] == tail]
    assert ends
    return [range(end - size, end) for end in ends]


async def test_an_inode_that_is_listed_everywhere_is_dealt_with_once(image: Path, tmp_path: Path) -> None:
    """A regression: a transaction each, a minute for 2 MiB."""
    data = bytearray(image.read_bytes())
    ino = (await at(await Volume.open(MemoryDevice(data)), "stays")).ino
    data[1024 + 102] |= 1  # orphan_present
    for block in blocks_of_the_file(data):
        entries = (len(block) - 8) // 4
        data[block.start : block.start + 4 * entries] = ino.to_bytes(4, "little") * entries
    volume = await Volume.open(MemoryDevice(data), LIMIT)
    assert volume._runner.commits <= len(blocks_of_the_file(data)) + 2
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.logs("the orphan list is not worked off: .*")
@pytest.mark.parametrize(("place", "value"), [(0, b"\x01\0\0\0"), (0, b"\xff\xff\xff\xff"), (-8, b"magi")])
async def test_a_broken_file_is_left(image: Path, tmp_path: Path, place: int, value: bytes) -> None:
    data = bytearray(crashed(image, tmp_path / "mount"))
    for block in blocks_of_the_file(data):
        start = (block.start if place == 0 else block.stop) + place
        data[start : start + 4] = value
    volume = await Volume.open(MemoryDevice(data), LIMIT)
    assert bytes(await volume.read((await at(volume, "stays")).ino, 0, 100_000)) == b"stays" * 10_000

"""Metadata whose checksum does not match is refused, with its name, and nothing else is."""

from __future__ import annotations

import errno
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.checksum import MetadataChecksums
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, MemoryDevice, at, kernel_mount, listing, make_image, walk

MUTANTS = 150


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small ext4 with one of everything."""
    directory = tmp_path_factory.mktemp("ext4")
    image = make_image(
        directory / "image",
        "-t",
        "ext4",
        "-b",
        "1024",
        "-N",
        "400",
        "-O",
        "^has_journal,ea_inode",
        "-m",
        "0",
        size="24M",
    )
    with kernel_mount(image, directory / "kernel", "rw") as mount:
        (mount / "long").mkdir()
        for number in range(120):
            (mount / f"long/{number:03} {'n' * 90}").symlink_to("t")
        with (mount / "pieces").open("wb") as file:
            for number in range(200):
                file.seek(number * 4096)
                file.write(b"piece")
        (mount / "file").write_bytes(b"contents")
        os.setxattr(mount / "file", "user.test", b"x" * 400)
        os.setxattr(mount / "long", "user.large", b"y" * 5000)
    return image.read_bytes()


def debugfs(data: bytes, path: Path, command: str) -> str:
    path.write_bytes(data)
    return run("debugfs", "-R", command, path).stdout


def inode_position(data: bytes, path: Path, name: str) -> int:
    """The byte offset of an inode."""
    words = debugfs(data, path, f"imap {name}").split("located at block ")[1].split()
    return int(words[0].rstrip(",")) * 1024 + int(words[2], 16)


def damaged(data: bytes, position: int) -> bytes:
    assert data[position] ^ 0x40 != data[position]
    return data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :]


async def refused(data: bytes, pattern: str, work: Callable[[Volume], object]) -> None:
    volume = await Volume.open(MemoryDevice(data))
    with pytest.raises(CorruptFilesystem, match=pattern) as caught:
        await work(volume)  # type: ignore[misc]
    assert caught.value.errno == errno.EUCLEAN


async def test_a_superblock_is_refused(pristine: bytes) -> None:
    await Volume.open(MemoryDevice(pristine))
    with pytest.raises(CorruptFilesystem, match="superblock: its checksum"):
        # s_mnt_count, which nothing else reads.
        await Volume.open(MemoryDevice(damaged(pristine, 1024 + 52)))
    with pytest.raises(CorruptFilesystem, match="s_checksum_type"):
        await Volume.open(MemoryDevice(damaged(pristine, 1024 + 0x175)))


async def test_a_group_descriptor_is_refused(pristine: bytes) -> None:
    async def root(volume: Volume) -> None:
        await volume.inode(ROOT)

    await refused(damaged(pristine, 2048 + 16), "group 0: the checksum of its descriptor", root)
    await refused(damaged(pristine, 2048 + 60), "group 0: the checksum of its descriptor", root)


async def test_an_inode_is_refused(pristine: bytes, tmp_path: Path) -> None:
    position = inode_position(pristine, tmp_path / "image", "/file")

    async def file(volume: Volume) -> None:
        await at(volume, "file")

    for byte in (24, 100, 0x7C, 0x82, 200, 255):
        await refused(damaged(pristine, position + byte), "inode [0-9]+: its checksum", file)
    volume = await Volume.open(MemoryDevice(damaged(pristine, position + 24)))
    assert b"file" in await listing(volume, ROOT)
    assert len(await listing(volume, (await at(volume, "long")).ino)) == 120


async def test_a_directory_is_refused(pristine: bytes, tmp_path: Path) -> None:
    numbers = [int(word) for word in debugfs(pristine, tmp_path / "image", "blocks /long").split()]
    assert len(numbers) > 10

    async def names(volume: Volume) -> None:
        await listing(volume, (await at(volume, "long")).ino)

    pristine_volume = await Volume.open(MemoryDevice(pristine))
    every = await listing(pristine_volume, (await at(pristine_volume, "long")).ino)

    async def absent(volume: Volume) -> None:
        await volume.lookup((await at(volume, "long")).ino, b"no such name")

    async def each(volume: Volume) -> None:
        # Each name is looked for in one leaf alone.
        for name in every:
            assert await volume.lookup((await at(volume, "long")).ino, name)

    for place, byte in ((0, 30), (0, 44), (3, 20), (len(numbers) - 1, 1020)):
        for work in (names, each if place else absent):
            await refused(damaged(pristine, numbers[place] * 1024 + byte), f"block {place} does not match", work)
    # What lies behind the entries of the index is not covered.
    volume = await Volume.open(MemoryDevice(damaged(pristine, numbers[0] * 1024 + 1000)))
    assert len(await listing(volume, (await at(volume, "long")).ino)) == 120


async def test_an_extent_block_is_refused(pristine: bytes, tmp_path: Path) -> None:
    said = debugfs(pristine, tmp_path / "image", "stat /pieces")
    number = int(said.split("(ETB0):", 1)[1].split(",")[0].split()[0])

    async def pieces(volume: Volume) -> None:
        await volume.read((await at(volume, "pieces")).ino, 4096, 10)

    for byte in (8, 700, 1020):
        await refused(damaged(pristine, number * 1024 + byte), f"extent block {number}", pieces)


async def test_attributes_are_refused(pristine: bytes, tmp_path: Path) -> None:
    (number,) = [
        int(line.split(":")[1].split()[0])
        for line in debugfs(pristine, tmp_path / "image", "stat /file").splitlines()
        if line.startswith("File ACL:")
    ]

    async def xattrs(volume: Volume) -> None:
        await volume.xattrs((await at(volume, "file")).ino)

    for byte in (12, 16, 500, 1000):
        await refused(damaged(pristine, number * 1024 + byte), f"attribute block {number}", xattrs)


async def test_a_value_in_an_inode_is_refused(pristine: bytes) -> None:
    position = pristine.index(b"y" * 1024) + 3

    async def xattrs(volume: Volume) -> None:
        await volume.xattrs((await at(volume, "long")).ino)

    await refused(damaged(pristine, position), "extended attribute in it does not match", xattrs)


async def test_a_bitmap_is_refused(pristine: bytes) -> None:
    volume = await Volume.open(MemoryDevice(pristine))
    places = await volume.run(lambda filesystem, blocks: filesystem.groups.places(blocks, 0))
    broken = await Volume.open(MemoryDevice(damaged(pristine, places.bg_block_bitmap * 1024 + 7)))
    with pytest.raises(CorruptFilesystem, match="group 0: the checksum of its block bitmap"):
        await broken.run(lambda filesystem, blocks: filesystem.groups.block_bitmap(blocks, 0))


@pytest.mark.logs(r"^mystfuse\.")
async def test_random_damage_behind_good_checksums_gives_errors_of_ours(
    pristine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if whoever damaged it had put the checksums right."""
    for name in ("check_descriptor", "check_inode", "check_extents", "check_directory", "check_xattrs"):
        monkeypatch.setattr(MetadataChecksums, name, lambda *arguments: None)
    volume = await Volume.open(MemoryDevice(pristine))
    places = await volume.run(lambda filesystem, blocks: filesystem.groups.places(blocks, 0))
    table = places.bg_inode_table * 1024
    metadata = [range(2048, 2048 + 192), range(table, table + 40 * 256)]
    for name in ("long", "pieces"):
        inode = await at(volume, name)
        # The number of the first block, of the tree or of the directory.
        (number,) = struct.unpack_from("<I", inode.i_block, 16 if inode.i_block[6] else 20)
        metadata.append(range(number * 1024, number * 1024 + 1024))
    failed = 0
    for seed in range(MUTANTS):
        source = random.Random(seed)
        data = bytearray(pristine)
        for _ in range(source.choice((1, 2, 4, 16))):
            position = source.choice(source.choice(metadata))
            data[position] = source.choice((0, 0xFF, data[position] ^ 1 << source.randrange(8), source.randrange(256)))
        started = time.process_time()
        try:
            mutant = await Volume.open(MemoryDevice(bytes(data)))
            _, failures = await walk(mutant)
            failed += failures > 0
            await mutant.statistics()
        except (MystfuseError, OSError):
            failed += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        assert time.process_time() - started < 5, f"seed {seed}"
    assert failed > MUTANTS // 4


async def test_a_checksum_of_descriptors_alone_is_verified(tmp_path: Path) -> None:
    image = make_image(
        tmp_path / "image", "-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit", "-b", "1024", size="8M"
    )
    data = image.read_bytes()
    await (await Volume.open(MemoryDevice(data))).inode(ROOT)

    async def root(volume: Volume) -> None:
        await volume.inode(ROOT)

    await refused(damaged(data, 2048 + 14), "group 0: the checksum of its descriptor", root)


async def test_contents_are_not_covered(pristine: bytes) -> None:
    volume = await Volume.open(MemoryDevice(pristine.replace(b"contents", b"CONTENTS")))
    assert bytes(await volume.read((await at(volume, "file")).ino, 0, 100)) == b"CONTENTS"


def test_the_judge_agrees(pristine: bytes, tmp_path: Path) -> None:
    """What is refused here, e2fsck finds broken."""
    image = tmp_path / "image"
    image.write_bytes(pristine)
    assert run("e2fsck", "-fn", image, check=False).returncode == 0
    position = inode_position(pristine, image, "/file")
    image.write_bytes(damaged(pristine, position + 24))
    result = run("e2fsck", "-fn", image, check=False)
    assert result.returncode and "checksum does not match" in result.stdout


def test_a_tree_block_that_has_become_contents_gets_no_checksum() -> None:
    """A hostile file has a block of its own tree as contents; then it is written to."""
    with pytest.raises(CorruptFilesystem, match="inode 12: a block of its extent tree"):
        MetadataChecksums(0).set_extents(12, 0, bytearray(b"\xff" * 1024))

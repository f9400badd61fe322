"""Writing at the limits: nearly full, in many groups, in huge directories, with damaged bitmaps; in process."""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from mystfuse.devices.device import Extent
from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2 import name_indexes
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.lookup_counts import OwnLookupCounts
from mystfuse.volume import runner
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import Editor, MemoryDevice, assert_clean, kernel_mount, merged

ROOT = Caller(0, 0)
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def make_image(directory: Path, size: str, *options: str, source: Path | None = None) -> bytes:
    path = directory / "image"
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-F", "-t", "ext2", *options, *(["-d", source] if source else []), path, size)
    return path.read_bytes()


async def fill(volume: Volume, ino: int, left: int = 0) -> int:
    """Write to a file until only ``left`` blocks are free; returns its size."""
    block_size = volume.superblock.block_size
    size = 0
    while (free := (await volume.statistics()).free_blocks) > left:
        try:
            size += await volume.write(ino, size, os.urandom(min(free - left, 256) * block_size), ROOT)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            break
    return size


async def test_releases_at_the_same_time_free_each_inode_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A regression: a release freed an inode that another release had freed, and that had been allocated since."""
    volume = await Volume.open(MemoryDevice(make_image(tmp_path, "64M", "-b", "1024")), 128 << 20)
    before = await volume.statistics()
    orphans = []
    for number in range(6):
        inode = await volume.create(EXT2_ROOT_INO, b"f%d" % number, FILE, ROOT)
        await volume.write(inode.ino, 0, bytes(1 << 20), ROOT)
        for megabyte in range(1, 3 * (number % 3) + 1):
            await volume.write(inode.ino, megabyte << 20, bytes(1 << 20), ROOT)
        await volume.remove(EXT2_ROOT_INO, b"f%d" % number, False)
        orphans.append(inode.ino)
    kept: list[int] = []

    async def use_again() -> None:
        for number in range(20):
            inode = await volume.create(EXT2_ROOT_INO, b"new%d" % number, FILE, ROOT)
            await volume.write(inode.ino, 0, b"content", ROOT)
            await volume.remove(EXT2_ROOT_INO, b"new%d" % number, False)
            kept.append(inode.ino)
            await trio.lowlevel.checkpoint()

    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            for ino in orphans:
                nursery.start_soon(volume.release, ino)
            nursery.start_soon(use_again)
    assert not caplog.records
    for ino in kept:
        assert bytes(await volume.read(ino, 0, 100)) == b"content"
    for ino in kept:
        await volume.release(ino)
    assert await volume.statistics() == before


async def test_a_scattered_file_is_written_and_removed_across_many_groups(tmp_path: Path) -> None:
    """A regression: the bitmaps of over 40 groups, missed one by one, looked like an endless operation."""
    image = make_image(tmp_path, "64M", "-b", "1024", "-g", "1024", "-m", "0", "-N", "1024")
    volume = await Volume.open(MemoryDevice(image), 128 << 20)
    filler = await volume.create(EXT2_ROOT_INO, b"filler", FILE, ROOT)
    size = await fill(volume, filler.ino)
    assert volume.superblock.groups_count > 60
    # Leave four free blocks in each group, then let one file take them all.
    data = bytearray(await merged(volume))
    block_size = volume.superblock.block_size
    freed = 0
    for group in range(volume.superblock.groups_count - 1):
        bitmap = struct.unpack_from("<I", data, 2048 + 32 * group)[0] * block_size
        data[bitmap + 126 : bitmap + 127] = b"\x0f"
        struct.pack_into("<H", data, 2048 + 32 * group + 12, 4)
        freed += 4
    struct.pack_into("<I", data, 1024 + 12, freed)
    volume = await Volume.open(MemoryDevice(bytes(data)), 128 << 20)
    await volume.set_attributes(filler.ino, AttributeChanges(mode=0o600), ROOT)
    inode = await volume.lookup(EXT2_ROOT_INO, b"filler")
    assert inode is not None and inode.size == size
    other = await volume.create(EXT2_ROOT_INO, b"other", FILE, ROOT)
    written = await volume.write(other.ino, 0, bytes(200 * block_size), ROOT)
    assert written == 200 * block_size
    # A volume that has read none of the groups yet.
    volume = await Volume.open(MemoryDevice(await merged(volume)), 128 << 20)
    await volume.remove(EXT2_ROOT_INO, b"other", False)
    await volume.release(other.ino)
    assert not volume.orphans and (await volume.statistics()).free_blocks == freed


@pytest.mark.parametrize("with_snapshot", [False, True])
@pytest.mark.parametrize("start", [0, 40, 99])
async def test_writes_that_fit_in_part_are_written_in_part_over_every_kind_of_block(
    tmp_path: Path, with_snapshot: bool, start: int
) -> None:
    """A range of blocks: of the image, written ones, and new ones; a snapshot keeps all of them."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"o" * 100 * 1024)
    image = make_image(tmp_path, "16M", "-b", "1024", source=source)
    for room in (6, 12, 30, 60, 110):
        volume = await Volume.open(MemoryDevice(image), (room + 16) * (1024 + 128))
        assert volume.overlay is not None
        inode = await volume.lookup(EXT2_ROOT_INO, b"file")
        assert inode is not None
        await volume.write(inode.ino, 30 * 1024, b"w" * 1024, ROOT)
        snapshot = await volume.open_image() if with_snapshot else None
        written = 0
        try:
            while written < 300 * 1024:
                count = await volume.write(inode.ino, start * 1024 + written, b"n" * (300 * 1024 - written), ROOT)
                assert count
                written += count
        except OSError as error:
            assert error.errno == errno.ENOSPC
        assert written < 300 * 1024 and volume.overlay.used <= volume.overlay.limit
        # At most the metadata that a write needs besides its data is left over.
        assert volume.overlay.room <= 8
        assert written or room <= 12
        content = bytes(await volume.read(inode.ino, 0, 1 << 20))
        assert content[start * 1024 : start * 1024 + written] == b"n" * written
        if snapshot is not None:
            snapshot.close()


@pytest.mark.parametrize("which", [0, 4])
async def test_a_damaged_bitmap_costs_its_group_and_no_other(tmp_path: Path, which: int) -> None:
    """``which``: the block bitmap of group 0, or its inode bitmap."""
    image = make_image(tmp_path, "32M", "-b", "1024")
    number = struct.unpack_from("<I", image, 2048 + which)[0]
    volume = await Volume.open(MemoryDevice(image, [range(number * 1024, number * 1024 + 1024)]), 64 << 20)
    assert volume.superblock.groups_count > 2
    for index in range(10):
        inode = await volume.create(EXT2_ROOT_INO, b"f%d" % index, FILE, ROOT)
        assert await volume.write(inode.ino, 0, b"x" * 100_000, ROOT) == 100_000
        assert bytes(await volume.read(inode.ino, 0, 200_000)) == b"x" * 100_000


async def test_a_large_empty_directory_is_removed_and_a_large_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: more blocks than an operation may miss; it now goes in steps. EXT2 never shrinks a directory."""
    monkeypatch.setattr(runner, "MAX_RUNS", 10)
    make_image(tmp_path, "32M", "-b", "1024", "-N", "14000")
    with kernel_mount(tmp_path / "image", tmp_path / "kernel", "rw") as kernel:
        for name in ("empty", "full"):
            (kernel / name).mkdir()
        for number in range(12_000):
            (kernel / f"empty/{number:0240}").touch()
        for number in range(12_000):
            target = kernel / f"full/{number:0240}" if number == 11_000 else None
            path = kernel / f"empty/{number:0240}"
            path.rename(target) if target else path.unlink()
    volume = await Volume.open(MemoryDevice((tmp_path / "image").read_bytes()), 128 << 20)
    empty = await volume.lookup(EXT2_ROOT_INO, b"empty")
    assert empty is not None and empty.size > 3_000 * 1024
    removed = await volume.remove(EXT2_ROOT_INO, b"empty", True)
    assert removed.ino in volume.orphans
    await volume.release(removed.ino)
    assert not volume.orphans
    with pytest.raises(OSError, match="not empty") as caught:
        await volume.remove(EXT2_ROOT_INO, b"full", True)
    assert caught.value.errno == errno.ENOTEMPTY
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_rename_between_directories_too_large_to_index_together_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: each of the two indexes evicted the other, for ever."""
    monkeypatch.setattr(name_indexes, "MAX_INDEXED_NAMES", 3000)
    source = tmp_path / "source"
    for name in ("one", "two", "three"):
        (source / name).mkdir(parents=True)
        for number in range(2500):
            (source / f"{name}/a-rather-long-name-so-that-there-are-blocks-{number:060}").touch()
    volume = await Volume.open(
        MemoryDevice(make_image(tmp_path, "32M", "-b", "1024", "-N", "9000", source=source)), 64 << 20
    )
    directories = [await volume.lookup(EXT2_ROOT_INO, name) for name in (b"one", b"two", b"three")]
    with trio.fail_after(60):
        for number in range(30):
            old, new = random.Random(number).sample([entry.ino for entry in directories if entry], 2)
            (entry, _), *_ = (await volume.entries(old, 0, 100))[0]
            await volume.rename(old, entry.name, new, b"moved-%d" % number, 0, ROOT)
    assert_clean(await merged(volume), tmp_path / "merged")


def test_references_take_no_more_memory_than_inodes_that_are_known() -> None:
    references = OwnLookupCounts()
    for ino in range(1, 200_000, 7):
        references.known(ino)
        references.known(ino)
    assert references.has(8) and not references.has(9)
    for ino in range(1, 200_000, 7):
        references.forgotten(ino, 1)
        assert references.has(ino)
        references.forgotten(ino, 5)
        assert not references.has(ino)
    assert not references._pages and not references._in_page
    references.forgotten(3_000_000_000, 1)
    assert not references.has(3_000_000_000)


class SlowDevice(MemoryDevice):
    """A device that lets other tasks run within every read."""

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return await super().read(extents)


async def test_many_tasks_at_once_over_a_slow_image(tmp_path: Path) -> None:
    """Eight tasks restart each other's transactions; the file system stays sound."""
    source = tmp_path / "source"
    for number in range(4):
        (source / f"d{number}").mkdir(parents=True)
        for file in range(60):
            (source / f"d{number}/f{file}").write_bytes(b"%d" % file * 3000)
    volume = await Volume.open(SlowDevice(make_image(tmp_path, "24M", "-b", "1024", source=source)), 64 << 20)
    directories = [await volume.lookup(EXT2_ROOT_INO, b"d%d" % number) for number in range(4)]
    inos = [inode.ino for inode in directories if inode]

    async def work(seed: int) -> None:
        chance = random.Random(seed)
        for step in range(60):
            old, new = chance.choice(inos), chance.choice(inos)
            name, second = b"f%d" % chance.randrange(60), b"f%d" % chance.randrange(80)
            try:
                match chance.randrange(5):
                    case 0:
                        await volume.rename(old, name, new, second, 0, ROOT)
                    case 1:
                        inode = await volume.remove(old, name, False)
                        if inode.ino in volume.orphans:
                            await volume.release(inode.ino)
                    case 2:
                        inode = await volume.create(old, second, FILE, ROOT)
                        await volume.write(inode.ino, chance.randrange(40_000), bytes([seed]) * 5000, ROOT)
                    case 3:
                        found = await volume.lookup(old, name)
                        if found:
                            await volume.set_attributes(found.ino, AttributeChanges(size=step * 100), ROOT)
                            await volume.set_xattr(found.ino, b"user.x", bytes(step * 5), ROOT)
                    case 4:
                        await volume.create(old, b"sub%d-%d" % (seed, step), DIRECTORY, ROOT)
            except OSError as error:
                # EISDIR: no task holds the inode here, and its number may have become a directory's meanwhile.
                assert error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EISDIR), error
            except CorruptFilesystem as error:
                # Another task has removed and released the inode between two steps of this one.
                assert "is not in use" in str(error)

    async with trio.open_nursery() as nursery:
        for seed in range(8):
            nursery.start_soon(work, seed)
    for orphan in list(volume.orphans):
        await volume.release(orphan)
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("stride", [256 << 10, 64 << 20])
async def test_a_file_with_a_block_here_and_there_is_cut_and_removed(tmp_path: Path, stride: int) -> None:
    """A regression: an indirect block for each data block, each fetched by itself, exceeded the misses that an
    operation may have."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "file").open("wb") as file:
        for number in range(240):
            file.seek(number * stride)
            file.write(b"x")
    image = make_image(tmp_path, "4M", "-b", "1024", source=source)
    for size in (0, 5, 200 * stride):
        volume = await Volume.open(MemoryDevice(image), 16 << 20)
        inode = await volume.lookup(EXT2_ROOT_INO, b"file")
        assert inode is not None
        await volume.set_attributes(inode.ino, AttributeChanges(size=size), ROOT)
        cut = await volume.inode(inode.ino)
        assert cut.size == size and (size or not cut.i_blocks)
        assert_clean(await merged(volume), tmp_path / "merged")
        removed = await volume.remove(EXT2_ROOT_INO, b"file", False)
        assert_clean(await merged(volume), tmp_path / "merged")
        await volume.release(removed.ino)
        assert not volume.orphans
        assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_file_that_is_scattered_over_all_groups_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: the descriptor of each group was a miss of its own."""
    monkeypatch.setattr(runner, "MAX_RUNS", 20)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"f" * 60 * 1024)
    image = Editor(
        make_image(
            tmp_path, "200M", "-b", "1024", "-g", "256", "-N", "6400", "-O", "^resize_inode,^meta_bg", source=source
        )
    )
    _, ino = image.find(EXT2_ROOT_INO, b"file")
    # One descriptor block describes 32 groups.
    pointers = [1 + 256 * group + 200 for group in range(0, 800, 32)]
    image.put(f"<{len(pointers)}I", image.block(ino, 12), *pointers)
    volume = await Volume.open(MemoryDevice(image.data), 16 << 20)
    assert await volume.write(ino, 12 * 1024, b"w" * len(pointers) * 1024, ROOT) == len(pointers) * 1024
    assert bytes(await volume.read(ino, 12 * 1024 - 1, 10)) == b"f" + b"w" * 9

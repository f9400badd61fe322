"""Volumes whose written blocks are on disk: metadata, data and snapshots read as written."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from mystfuse.errors import IntegrityError
from mystfuse.ext2 import name_index
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.overlay import spill
from mystfuse.overlay.encrypted_store import OverlayStore, open_store_file
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, merged

ROOT = Caller(0, 0)
FILE = stat.S_IFREG | 0o644


def make_image(directory: Path, size: str, *options: str) -> bytes:
    path = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", *options, path, size)
    return path.read_bytes()


async def open_volume(image: bytes, limit: int, directory: Path, io_timeout: float = 30.0) -> Volume:
    return await Volume.open(
        MemoryDevice(image), limit, store_file=open_store_file(str(directory)), io_timeout=io_timeout
    )


@pytest.mark.parametrize("block_size", ["1024", "4096"])
async def test_metadata_and_data_that_are_always_on_disk_are_what_was_written(
    block_size: str, tmp_path: Path, eager: None
) -> None:
    """Readers, writers and removers at the same time; every block is evicted as soon as it is written."""
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "32M", "-b", block_size), 1 << 20, directory)
    before = await volume.statistics()
    contents: dict[bytes, bytearray] = {}

    async def work(number: int) -> None:
        chance = random.Random(number)
        mine: dict[bytes, tuple[int, bytearray]] = {}
        for step in range(60):
            action = chance.random()
            if action < 0.35 or not mine:
                name = b"%d-%d-" % (number, step) + b"n" * chance.randrange(200)
                inode = await volume.create(EXT2_ROOT_INO, name, FILE, ROOT)
                mine[name] = inode.ino, bytearray()
                contents[name] = mine[name][1]
            name, (ino, content) = chance.choice(list(mine.items()))
            if action < 0.6:
                offset, data = chance.randrange(100_000), chance.randbytes(chance.randrange(1, 30_000))
                assert await volume.write(ino, offset, data, ROOT) == len(data)
                content.extend(bytes(max(offset + len(data) - len(content), 0)))
                content[offset : offset + len(data)] = data
            elif action < 0.7:
                await volume.remove(EXT2_ROOT_INO, name, False)
                await volume.release(ino)
                del mine[name], contents[name]
            else:
                offset, length = chance.randrange(100_000), chance.randrange(60_000)
                assert bytes(await volume.read(ino, offset, length)) == content[offset : offset + length]

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(work, number)
    assert volume.overlay is not None and volume.overlay.store_used > 0
    image = await merged(volume)
    assert_clean(image, tmp_path / "merged")
    again = await Volume.open(MemoryDevice(image), 1 << 20)
    for name, content in contents.items():
        for view in (volume, again):
            inode = await view.lookup(EXT2_ROOT_INO, name)
            assert inode is not None and bytes(await view.read(inode.ino, 0, 1 << 20)) == content
    for name in contents:
        removed = await volume.remove(EXT2_ROOT_INO, name, False)
        await volume.release(removed.ino)
    after = await volume.statistics()
    # The directory keeps the blocks that it grew by.
    assert after.free_inodes == before.free_inodes and before.free_blocks - after.free_blocks < 40


async def test_a_long_directory_that_is_always_on_disk(tmp_path: Path, eager: None) -> None:
    """A regression: each block that was fetched to look for room made another one be looked at, until that was too
    many."""
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "16M", "-b", "1024", "-O", "^dir_index"), 1 << 20, directory)
    parent = (await volume.create(EXT2_ROOT_INO, b"long", stat.S_IFDIR | 0o755, ROOT)).ino
    names = [b"%04d" % number + b"n" * 246 for number in range(400)]
    for name in names:
        await volume.create(parent, name, FILE, ROOT)
        # Until what was written is on disk alone.
        await trio.testing.wait_all_tasks_blocked(0.001)
    found: list[bytes] = []
    size, offset = (await volume.inode(parent)).size, 0
    while offset < size:
        entries, offset = await volume.entries(parent, offset, 1000)
        found += [entry.name for entry, _ in entries]
    assert found == names
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_write_that_must_be_whole_writes_nothing_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    volume = await open_volume(make_image(tmp_path, "4M", "-b", "1024"), 2 << 20, tmp_path / "store")
    file = (await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)).ino
    filler = (await volume.create(EXT2_ROOT_INO, b"filler", FILE, ROOT)).ino
    room = (await volume.statistics()).free_blocks - 24
    for start in range(0, room, 64):
        length = min(64, room - start) << 10
        assert await volume.write(filler, start << 10, bytes([1]) * length, ROOT) == length
    with pytest.raises(OSError, match=r"full|no block|room") as caught:
        await volume.write(file, 8192, b"x" * 65536, ROOT, whole=True)
    assert caught.value.errno == errno.ENOSPC
    assert (await volume.inode(file)).size == 0
    assert 0 < await volume.write(file, 8192, b"x" * 65536, ROOT) < 65536


@pytest.mark.logs(r"^mystfuse\.overlay.*: full, says the test")
async def test_a_writer_has_room_again_when_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    monkeypatch.setattr(spill, "_RETRY", 0.05)
    block, written = bytes(4096), 0
    with pytest.MonkeyPatch.context() as full:

        def fail(*arguments: object) -> list[bytes]:
            raise OSError(errno.ENOSPC, "full, says the test")

        full.setattr(OverlayStore, "write", fail)
        full.setattr(OverlayStore, "free_blocks", lambda store: 0)
        volume = await open_volume(make_image(tmp_path, "16M", "-b", "4096"), 1 << 20, directory)
        file = (await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)).ino
        for _ in range(3):
            with pytest.raises(OSError, match=r"full|no free block") as caught:
                while True:
                    written += await volume.write(file, written, block, ROOT)
            assert caught.value.errno == errno.ENOSPC
            await trio.sleep(0.1)
    # No other operation has to come first.
    for _ in range(300):
        written += await volume.write(file, written, block, ROOT)
    assert bytes(await volume.read(file, 0, written)) == bytes(written)


async def test_the_merged_image_is_of_its_moment_wherever_its_blocks_are(tmp_path: Path, eager: None) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "16M", "-b", "1024"), 1 << 20, directory)
    inode = await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)
    content = os.urandom(2 << 20)
    assert await volume.write(inode.ino, 0, content, ROOT) == len(content)
    gone = await volume.create(EXT2_ROOT_INO, b"gone", FILE, ROOT)
    await volume.write(gone.ino, 0, bytes(100_000), ROOT)
    await volume.remove(EXT2_ROOT_INO, b"gone", False)
    snapshot = await volume.open_image()
    assert await volume.write(inode.ino, 0, os.urandom(1 << 20), ROOT) == 1 << 20
    image = await snapshot.read(0, snapshot.size)
    snapshot.close()
    assert_clean(image, tmp_path / "merged")
    old = await Volume.open(MemoryDevice(image))
    assert bytes(await old.read(inode.ino, 0, 4 << 20)) == content


@pytest.mark.logs(r"^mystfuse\.overlay")
async def test_damage_is_met_where_it_is_and_nowhere_else(tmp_path: Path, eager: None) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    volume = await open_volume(make_image(tmp_path, "16M", "-b", "1024"), 1 << 20, directory)
    files = {}
    for number in range(20):
        inode = await volume.create(EXT2_ROOT_INO, b"f%d" % number, FILE, ROOT)
        files[inode.ino] = os.urandom(20_000)
        await volume.write(inode.ino, 0, files[inode.ino], ROOT)
    overlay = volume.overlay
    assert overlay is not None and overlay._spill is not None
    with trio.fail_after(10):
        while overlay._arenas.used:
            await trio.sleep(0.001)
    descriptor = overlay._spill._store._descriptor
    rotten = set(random.Random(1).sample(range(os.fstat(descriptor).st_size // 1024), 30))
    for slot in rotten:
        os.pwrite(descriptor, os.urandom(8), slot * 1024 + 99)
    failed = read = 0
    for ino, content in files.items():
        for offset in range(0, 20_000, 1000):
            try:
                assert bytes(await volume.read(ino, offset, 1000)) == content[offset : offset + 1000]
                read += 1
            except IntegrityError:
                failed += 1
    assert failed and read


async def test_a_name_that_comes_and_goes_is_found_to_be_gone_however_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """A regression: each block that had contained the name was a miss of its own, and so many misses looked like a
    loop."""
    monkeypatch.setattr(name_index, "_RECENT", 1)
    volume = await open_volume(make_image(tmp_path, "16M", "-O", "^dir_index"), 1 << 20, tmp_path)
    directory = (await volume.create(EXT2_ROOT_INO, b"d", stat.S_IFDIR | 0o755, ROOT)).ino
    lock = b"lock" * 55
    for number in range(200):
        await volume.create(directory, lock, FILE, ROOT)
        await volume.remove(directory, lock, False)
        for part in range(4):
            await volume.create(directory, b"%0240d-%d" % (number, part), FILE, ROOT)
        await trio.sleep(0)
    candidates = list(volume._filesystem.name_indexes._indexes[directory].candidates(lock))
    assert len(candidates) > 50
    assert await volume.lookup(directory, lock) is None

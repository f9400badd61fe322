"""Readers beside writers: the old or the new bytes, snapshots, and removed files that are open."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.setattr import AttributeChanges
from tests.support.ext2_editor import assert_clean, merged
from tests.support.gated_volumes import ROOT, find, open_volume


async def test_a_read_that_races_with_writes_gives_the_old_or_the_new_bytes(image: bytes) -> None:
    volume, device = await open_volume(image)
    inode = await find(volume, b"large")
    old = await volume.read(inode.ino, 0, 65536)
    device.gate = trio.Event()
    results: list[bytes] = []

    async def read() -> None:
        results.append(bytes(await volume.read(inode.ino, 0, 65536)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await device.waiting.wait()
        gate, device.gate = device.gate, None
        await volume.write(inode.ino, 4096, b"n" * 8192, ROOT)
        gate.set()
    assert results == [bytes(old[:4096]) + b"n" * 8192 + bytes(old[12288:])]


async def test_a_read_whose_blocks_are_freed_and_used_again_gives_no_bytes_of_the_other_file(image: bytes) -> None:
    volume, device = await open_volume(image)
    inode = await find(volume, b"large")
    device.gate = trio.Event()
    results: list[bytes] = []

    async def read() -> None:
        results.append(bytes(await volume.read(inode.ino, 0, 65536)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await device.waiting.wait()
        gate, device.gate = device.gate, None
        await volume.set_attributes(inode.ino, AttributeChanges(size=0), ROOT)
        other = await volume.create(EXT2_ROOT_INO, b"other", stat.S_IFREG | 0o600, ROOT)
        await volume.write(other.ino, 0, b"secret" * 200_000, ROOT)
        await volume.write(inode.ino, 60_000, b"end", ROOT)
        gate.set()
    assert results == [bytes(60_000) + b"end"]


async def test_a_reader_is_not_starved_by_a_writer(image: bytes) -> None:
    """Each attempt to read finds the block map changed; the third makes the writer wait."""
    volume, _ = await open_volume(image)
    inode = await find(volume, b"large")
    size = inode.size
    stop = False

    async def keep_truncating() -> None:
        while not stop:
            await volume.set_attributes(inode.ino, AttributeChanges(size=size // 2), ROOT)
            await volume.set_attributes(inode.ino, AttributeChanges(size=size), ROOT)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_truncating)
        for _ in range(50):
            with trio.fail_after(10):
                assert len(await volume.read(inode.ino, 0, 65536)) == 65536
        stop = True


async def test_removed_files_live_until_they_are_released_and_their_numbers_come_back_changed(
    image: bytes, tmp_path: Path
) -> None:
    volume, _ = await open_volume(image)
    before = await volume.statistics()
    inode = await find(volume, b"large")
    content = bytes(await volume.read(inode.ino, 0, 100_000))
    await volume.remove(EXT2_ROOT_INO, b"large", False)
    assert volume.orphans == {inode.ino}
    assert bytes(await volume.read(inode.ino, 0, 100_000)) == content
    await volume.write(inode.ino, 0, b"still written to", ROOT)
    assert (await volume.inode(inode.ino)).i_links_count == 0
    with pytest.raises(OSError, match="removed") as caught:
        await volume.link(inode.ino, EXT2_ROOT_INO, b"again", ROOT)
    assert caught.value.errno == errno.ENOENT
    assert_clean(await merged(volume), tmp_path / "merged")
    await volume.release(inode.ino)
    assert not volume.orphans
    after = await volume.statistics()
    assert after.free_inodes == before.free_inodes + 1
    assert after.free_blocks >= before.free_blocks + inode.size // volume.superblock.block_size
    with pytest.raises(CorruptFilesystem):
        await volume.inode(inode.ino)
    again = await volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT)
    assert again.ino == inode.ino and again.i_generation != inode.i_generation
    assert bytes(await volume.read(again.ino, 0, 100)) == b""


async def test_a_snapshot_is_as_of_its_opening(image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each snapshot releases the files that were removed, and sets the time.
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    volume, _ = await open_volume(image)
    large = await find(volume, b"large")
    await volume.remove(EXT2_ROOT_INO, b"large", False)
    before = await merged(volume)
    snapshot = await volume.open_image()
    await volume.release(large.ino)
    for number in range(50):
        new = await volume.create(EXT2_ROOT_INO, b"n%d" % number, stat.S_IFREG | 0o644, ROOT)
        await volume.write(new.ino, 0, b"x" * 20_000, ROOT)
    assert await snapshot.read(0, snapshot.size) == before
    assert_clean(before, tmp_path / "merged")
    pieces = [await snapshot.read(position, 777) for position in range(0, 100_000, 777)]
    assert b"".join(pieces)[:100_000] == before[:100_000]
    assert await snapshot.read(snapshot.size - 5, 100) == before[-5:] and await snapshot.read(snapshot.size, 1) == b""
    snapshot.close()
    assert await merged(volume) != before
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_free_blocks_read_as_zeros_in_the_merged_image(image: bytes) -> None:
    volume, _ = await open_volume(image)
    superblock = volume.superblock
    data = bytearray(image)
    # The last blocks of the last group are free: garbage there must not show.
    last = (superblock.s_blocks_count - 3) * superblock.block_size
    data[last : last + superblock.block_size] = b"garbage!" * (superblock.block_size // 8)
    volume, _ = await open_volume(bytes(data))
    assert await merged(volume) == image
    # Nor after a file gets the block and only half of it is written.
    filler = await volume.create(EXT2_ROOT_INO, b"filler", stat.S_IFREG | 0o644, ROOT)
    position = 0
    while (await volume.statistics()).free_blocks > 4:
        position += await volume.write(filler.ino, position + superblock.block_size - 1, b"x", ROOT)
        position += superblock.block_size - 1
    for start in range(0, position, 1 << 20):
        assert b"garbage" not in bytes(await volume.read(filler.ino, start, 1 << 20))

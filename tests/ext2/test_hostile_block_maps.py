"""Hostile block maps: pointers outside the file system and maps that point to themselves are errors, and end."""

from __future__ import annotations

import time

import pytest

from mystfuse.errors import CorruptFilesystem, IntegrityError
from tests.support.ext2_editor import Editor, listing
from tests.support.hostile_ext2 import assert_corrupt, number_of


@pytest.mark.parametrize("pointer", [1, 1024, 1025, 0x7FFFFFFF, 0xFFFFFFFF])
async def test_a_block_pointer_outside_the_file_system_is_reported(image: Editor, pointer: int) -> None:
    file, directory, slow = (number_of(image, name) for name in (b"file", b"dir", b"slow"))
    assert image.blocks_count == 1024
    for ino in (file, directory, slow):
        image.put("<I", image.pointer(ino, 0), pointer)
    volume = await image.open()
    await assert_corrupt(volume.read(file, 0, 10), "pointer")
    await assert_corrupt(volume.entries(directory, 0, 10), "pointer")
    await assert_corrupt(volume.lookup(directory, b"first"), "pointer")
    await assert_corrupt(volume.target(slow), "pointer")
    assert bytes(await volume.read(file, 1024, 4)) == b"\0\1\2\3"


@pytest.mark.parametrize("pointer", [1, 1024, 0xFFFFFFFF])
async def test_an_indirect_block_outside_the_file_system_is_reported(image: Editor, pointer: int) -> None:
    ino = number_of(image, b"large")
    image.put("<I", image.pointer(ino, 12), pointer)
    image.put("<I", image.pointer(ino, 13), pointer)
    volume = await image.open()
    await assert_corrupt(volume.read(ino, 12 * 1024, 10), "pointer")
    await assert_corrupt(volume.read(ino, (12 + 256) * 1024, 10), "pointer")
    assert bytes(await volume.read(ino, 0, 4)) == b"LLLL"


async def test_an_indirect_block_with_a_pointer_outside_is_reported_for_that_block_alone(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.block(ino, 12) + 4, 5000)
    volume = await image.open()
    await assert_corrupt(volume.read(ino, 13 * 1024, 10), "5000")
    assert bytes(await volume.read(ino, 12 * 1024, 4)) == b"\0\1\2\3"
    assert bytes(await volume.read(ino, 14 * 1024, 4)) == b"\0\1\2\3"


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_an_indirect_block_that_points_to_itself_ends(image: Editor, depth: int) -> None:
    ino = number_of(image, b"large")
    block = image.block(ino, 12)
    number = block // 1024
    image.put("<256I", block, *[number] * 256)
    for index in range(12, 15):
        image.put("<I", image.pointer(ino, index), number)
    first = 12 + sum(256**level for level in range(1, depth))
    image.put("<I", image.inode(ino) + 4, (first + 200) * 1024)
    volume = await image.open()
    started = time.process_time()
    data = await volume.read(ino, first * 1024, 100 * 1024)
    assert time.process_time() - started < 2
    assert bytes(data) == bytes(image.data[block : block + 1024]) * 100


async def test_a_directory_whose_indirect_block_points_to_itself_ends(image: Editor) -> None:
    ino = number_of(image, b"many")
    other = number_of(image, b"large")
    block = image.block(other, 12)
    image.put("<256I", block, *[block // 1024] * 256)
    image.put("<I", image.pointer(ino, 12), block // 1024)
    image.put("<I", image.inode(ino) + 4, 200 * 1024)
    volume = await image.open()
    started = time.process_time()
    with pytest.raises(CorruptFilesystem):
        await listing(volume, ino)
    with pytest.raises(CorruptFilesystem):
        await volume.lookup(ino, b"missing")
    assert time.process_time() - started < 2


async def test_a_file_larger_than_its_map_can_hold_is_reported_only_there(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.inode(ino) + 108, 0x7FFFFFFF)
    volume = await image.open()
    assert bytes(await volume.read(ino, 0, 4)) == b"\0\1\2\3"
    await assert_corrupt(volume.read(ino, (12 + 256 + 256**2 + 256**3) * 1024, 10), "past")
    await assert_corrupt(volume.read(ino, 1 << 62, 10), "past")


async def test_a_negative_file_size_is_reported(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.inode(ino) + 108, 0x80000000)
    volume = await image.open()
    await assert_corrupt(volume.inode(ino), "size")


async def test_two_files_may_share_a_block(image: Editor) -> None:
    file, large = number_of(image, b"file"), number_of(image, b"large")
    image.put("<I", image.pointer(large, 1), image.get("<I", image.pointer(file, 0)))
    volume = await image.open()
    data = bytes(await volume.read(large, 1020, 1032))
    assert data == b"LLLL" + bytes(range(256)) * 4 + b"LLLL"


async def test_a_directory_that_has_a_block_many_times_over_is_refused(image: Editor) -> None:
    """A few blocks could claim to be a directory of half a gigabyte."""
    ino = number_of(image, b"many")
    block = image.get("<I", image.pointer(ino, 1))
    image.put("<12I", image.pointer(ino, 0), *[block] * 12)
    image.put("<I", image.inode(ino) + 4, 12 * 1024)
    volume = await image.open()
    with pytest.raises(CorruptFilesystem, match="twice"):
        await listing(volume, ino)
    for _ in range(2):
        with pytest.raises(CorruptFilesystem, match="twice"):
            await volume.lookup(ino, b"missing")


async def test_a_damaged_indirect_block_fails_only_what_is_behind_it(image: Editor) -> None:
    ino = number_of(image, b"large")
    position = image.block(ino, 12)
    volume = await image.open([range(position, position + 1024)])
    assert bytes(await volume.read(ino, 0, 12 * 1024)) == b"L" * 12 * 1024
    with pytest.raises(IntegrityError):
        await volume.read(ino, 12 * 1024, 1)
    assert bytes(await volume.read(ino, (12 + 256) * 1024, 1024)) == b"L" * 1024

"""Hostile inodes: impossible sizes, types and flags are errors of that inode."""

from __future__ import annotations

import pytest

from mystfuse.errors import IntegrityError, UnsupportedFeature
from tests.support.ext2_editor import ROOT, Editor, listed
from tests.support.hostile_ext2 import assert_corrupt, number_of


@pytest.mark.parametrize(
    ("name", "size"),
    [(b"fast", 0), (b"fast", 60), (b"fast", 1 << 31), (b"slow", 0), (b"slow", 1024), (b"slow", 0xFFFFFFFF)],
)
async def test_a_symlink_of_impossible_size_is_reported(image: Editor, name: bytes, size: int) -> None:
    ino = number_of(image, name)
    image.put("<I", image.inode(ino) + 4, size)
    volume = await image.open()
    await assert_corrupt(volume.target(ino), "target")


async def test_a_slow_symlink_in_a_hole_is_reported(image: Editor) -> None:
    ino = number_of(image, b"slow")
    image.put("<I", image.pointer(ino, 0), 0)
    volume = await image.open()
    await assert_corrupt(volume.target(ino), "hole")


@pytest.mark.parametrize("size", [129, 132, 30, 0xFFFC, 0xFFFF])
async def test_an_i_extra_isize_that_does_not_fit_is_reported(image: Editor, size: int) -> None:
    ino = number_of(image, b"file")
    image.put("<H", image.inode(ino) + 128, size)
    volume = await image.open()
    await assert_corrupt(volume.inode(ino), "i_extra_isize")
    assert dict(await listed(volume, ROOT))[b"file"] is None


@pytest.mark.parametrize("size", [0, 4, 128])
async def test_an_i_extra_isize_at_its_borders_is_taken(image: Editor, size: int) -> None:
    ino = number_of(image, b"large")
    image.put("<H", image.inode(ino) + 128, size)
    volume = await image.open()
    inode = await volume.inode(ino)
    assert inode.size == 400_000
    assert inode.mtime_ns % 1_000_000_000 == 0 or size == 128


@pytest.mark.parametrize("table", [0, 1, 1020, 1024, 0xFFFFFFFF, 0xFFFFFFF0])
async def test_an_inode_table_outside_the_file_system_is_reported(image: Editor, table: int) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.descriptor() + 8, table)
    volume = await image.open()
    await assert_corrupt(volume.inode(ROOT), "bg_inode_table")
    await assert_corrupt(volume.inode(ino), "bg_inode_table")


@pytest.mark.parametrize("file_type", [0, 0x3000, 0x5000, 0x7000, 0xF000])
async def test_an_unknown_file_type_is_reported_and_does_not_hide_the_others(image: Editor, file_type: int) -> None:
    ino = number_of(image, b"file")
    image.put("<H", image.inode(ino), file_type | 0o644)
    volume = await image.open()
    await assert_corrupt(volume.inode(ino), "type")
    found = dict(await listed(volume, ROOT))
    assert found[b"file"] is None
    assert found[b"large"] is not None


@pytest.mark.parametrize(
    ("flag", "name"), [(0x800, "encrypt"), (0x80000, "extent"), (0x200000, "ea_inode"), (0x10000000, "inline_data")]
)
async def test_an_inode_whose_flag_needs_a_feature_is_refused_by_name(image: Editor, flag: int, name: str) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.inode(ino) + 32, flag)
    volume = await image.open()
    with pytest.raises(UnsupportedFeature, match=name):
        await volume.inode(ino)


async def test_a_root_that_is_no_directory_is_reported(image: Editor) -> None:
    image.put("<H", image.inode(ROOT), 0o100644)
    volume = await image.open()
    with pytest.raises(NotADirectoryError):
        await volume.entries(ROOT, 0, 10)
    with pytest.raises(NotADirectoryError):
        await volume.lookup(ROOT, b"file")


async def test_the_content_of_what_is_no_file_is_not_read(image: Editor) -> None:
    volume = await image.open()
    for name in (b"dir", b"slow"):
        with pytest.raises(IsADirectoryError):
            await volume.read(number_of(image, name), 0, 10)


async def test_reading_what_is_no_file_is_refused_also_behind_its_end(image: Editor) -> None:
    volume = await image.open()
    for name, offset in ((b"fifo", 0), (b"dir", 1024), (b"slow", 5000)):
        with pytest.raises(IsADirectoryError):
            await volume.read(number_of(image, name), offset, 10)


async def test_a_damaged_inode_table_block_leaves_the_names_and_the_other_inodes(image: Editor) -> None:
    names = dict(await listed(await image.open(), ROOT))
    position = image.inode(number_of(image, b"file")) // 1024 * 1024
    volume = await image.open([range(position, position + 1024)])
    found = dict(await listed(volume, ROOT))
    assert list(found) == list(names)
    for name, inode in names.items():
        assert inode is not None
        if position <= image.inode(inode.ino) < position + 1024:
            assert found[name] is None
            with pytest.raises(IntegrityError):
                await volume.lookup(ROOT, name)
        else:
            assert found[name] == inode

"""Hostile extended attributes and ACLs are errors of that attribute, and are decoded in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem
from tests.support.ext2_editor import ROOT, Editor, make_image
from tests.support.hostile_ext2 import assert_corrupt, number_of


def body_xattr(image: Editor, ino: int) -> int:
    """The byte offset of the first attribute entry in an inode's body."""
    start = image.inode(ino) + 128 + image.get("<H", image.inode(ino) + 128)
    assert image.get("<I", start) == 0xEA020000
    return start + 4


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0, "<B", 255),  # e_name_len
        (2, "<H", 0xFFFF),  # e_value_offs
        (2, "<H", 200),
        (4, "<I", 7),  # e_value_inum
        (8, "<I", 0xFFFFFFFF),  # e_value_size
        (8, "<I", 300),
    ],
)
async def test_an_attribute_outside_the_body_is_reported(image: Editor, offset: int, layout: str, value: int) -> None:
    ino = number_of(image, b"file")
    image.put(layout, body_xattr(image, ino) + offset, value)
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))
    assert (await volume.inode(ino)).size == 51200


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0, "<I", 0xEA020001),  # h_magic
        (0, "<I", 0),
        (8, "<I", 2),  # h_blocks
        (32 + 2, "<H", 1000),
        (32 + 4, "<I", 12),
        (32 + 8, "<I", 1025),
    ],
)
async def test_an_attribute_block_that_is_none_is_reported(image: Editor, offset: int, layout: str, value: int) -> None:
    ino = number_of(image, b"large")
    block = image.get("<I", image.inode(ino) + 104)
    assert block
    image.put(layout, block * 1024 + offset, value)
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))


@pytest.mark.parametrize("block", [1, 1024, 0xFFFFFFFF])
async def test_an_attribute_block_outside_the_file_system_is_reported(image: Editor, block: int) -> None:
    ino = number_of(image, b"large")
    image.put("<I", image.inode(ino) + 104, block)
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino), "i_file_acl")


async def test_attribute_entries_without_an_end_stop_at_the_end_of_the_block(image: Editor) -> None:
    ino = number_of(image, b"large")
    block = image.get("<I", image.inode(ino) + 104) * 1024
    for position in range(block + 32, block + 1024 - 12, 20):
        image.put("<BBHIIIc3x", position, 1, 1, 0, 0, 4, 0, b"n")
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))


@pytest.mark.logs(r"^mystfuse\.ext2")
async def test_an_attribute_of_unknown_namespace_or_without_a_name_is_left_out(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<B", body_xattr(image, ino) + 1, 99)
    assert await (await image.open()).xattrs(ino) == {}
    image.put("<BB", body_xattr(image, ino), 0, 1)
    # Without its name, the next entry is read from the name's bytes: it is an error or left out, never believed.
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))


@pytest.mark.parametrize("acl", [b"\2\0\0\0", b"\1\0\0", b"\1\0\0\0\2\0\7\0", b"\1\0\0\0\xff\0\7\0", b"\1\0\0\0\1\0"])
async def test_an_impossible_acl_is_reported(image: Editor, acl: bytes) -> None:
    ino = number_of(image, b"large")
    block = image.get("<I", image.inode(ino) + 104) * 1024
    image.data[block + 32 : block + 1024] = bytes(1024 - 32)
    image.put("<BBHIII", block + 32, 0, 2, 1024 - len(acl), 0, len(acl), 0)
    image.data[block + 1024 - len(acl) : block + 1024] = acl
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino), "ACL")


async def test_an_acl_named_thousands_of_times_is_decoded_in_bounded_time(tmp_path: Path) -> None:
    size = 65536
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    path = make_image(tmp_path / "image", "-b", str(size), "-N", "64", size="8M", tree=tree)
    image = Editor(path.read_bytes())
    _, ino = image.find(ROOT, b"file")
    block = image.blocks_count - 2
    image.put("<I", image.inode(ino) + 104, block)
    start, half = block * size, size // 2
    image.put("<III", start, 0xEA020000, 1, 1)
    acl = b"\1\0\0\0" + b"\1\0\7\0" * (half // 4 - 1)
    image.data[start + half : start + size] = acl
    for position in range(start + 32, start + half - 16, 16):
        image.put("<BBHIII", position, 0, 2, half, 0, len(acl), 0)
    image.put("<I", start + half - 16, 0)
    volume = await image.open()
    started = time.process_time()
    try:
        attributes = await volume.xattrs(ino)
    except CorruptFilesystem:
        attributes = {}
    assert time.process_time() - started < 1
    assert set(attributes) <= {b"system.posix_acl_access"}

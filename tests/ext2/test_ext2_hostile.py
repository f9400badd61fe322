"""Images that a signer vouched for and that are broken or malicious all the same: each is told, none is believed."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import CorruptFilesystem, FormatError, IntegrityError, MystfuseError, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, listed, listing, make_image, walk

FUZZ_MUTANTS = 500
FUZZ_SECONDS = 25.0
MANY = 150


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system with 1 KiB blocks and one of everything that has metadata."""
    directory = tmp_path_factory.mktemp("hostile")
    tree = directory / "tree"
    (tree / "dir").mkdir(parents=True)
    for name in ("first", "second", "third"):
        (tree / "dir" / name).write_text(name)
    (tree / "many").mkdir()
    for number in range(MANY):
        os.link(tree / "dir/first", tree / "many" / f"{number:04}-{'x' * 40}")
    (tree / "file").write_bytes(bytes(range(256)) * 200)
    (tree / "large").write_bytes(b"L" * 400_000)
    (tree / "fast").symlink_to("dir/first")
    (tree / "slow").symlink_to("/" + "s" * 100)
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "file", "user.body", b"in the body")
    os.setxattr(tree / "large", "user.block", b"b" * 500)
    os.setxattr(tree / "dir/second", "user.one", b"1")
    return make_image(directory / "image", "-b", "1024", "-I", "256", "-N", "64", size="1M", tree=tree).read_bytes()


@pytest.fixture
def image(pristine: bytes) -> Editor:
    return Editor(pristine)


def number_of(image: Editor, *names: bytes) -> int:
    """The inode number at a path, found without the code under test."""
    ino = ROOT
    for name in names:
        _, ino = image.find(ino, name)
    return ino


async def assert_corrupt(operation: Awaitable[Any], match: str | None = None) -> None:
    with pytest.raises(CorruptFilesystem, match=match) as caught:
        await operation
    assert caught.value.errno == errno.EUCLEAN


async def test_the_unedited_image_is_read_without_a_failure(image: Editor) -> None:
    volume = await image.open()
    seen, failures = await walk(volume)
    assert seen == len({b"/", b"lost+found", b"dir", b"many", b"file", b"large", b"fast", b"slow", b"fifo"}) + 3
    assert failures == 0
    assert await listing(volume, number_of(image, b"dir")) == [b"first", b"second", b"third"]
    assert len(set(await listing(volume, number_of(image, b"many")))) == MANY


@pytest.mark.parametrize("name", [b"", b"a/b", b"/", b"nul\0nul", b"\0", b".", b"..", b"../../etc"])
async def test_an_entry_with_an_impossible_name_is_skipped_and_the_rest_listed(image: Editor, name: bytes) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (first, b"one"), (first, name), (first, b"two")])
    volume = await image.open()
    assert await listing(volume, ino) == [b"one", b"two"]
    assert await listing(volume, ino, step=1) == [b"one", b"two"]
    assert await volume.lookup(ino, b"two") is not None
    found = await volume.lookup(ino, name)
    assert found is None or (name, found.ino) in ((b".", ino), (b"..", ROOT))


async def test_dot_entries_that_come_first_but_lie_are_not_followed_for_dot(image: Editor) -> None:
    ino, file = number_of(image, b"dir"), number_of(image, b"file")
    image.write_entries(image.block(ino), [(file, b"."), (file, b".."), (file, b"one")])
    volume = await image.open()
    here = await volume.lookup(ino, b".")
    assert here is not None and here.ino == ino
    with pytest.raises(NotADirectoryError):
        await volume.lookup(ino, b"..")
    assert await listing(volume, ino) == [b"one"]


@pytest.mark.parametrize("second", [b".", b"x", b"..."])
async def test_a_directory_without_dot_dot_in_its_place_has_no_parent(image: Editor, second: bytes) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    image.write_entries(image.block(ino), [(ino, b"."), (ROOT, second), (first, b".."), (first, b"one")])
    volume = await image.open()
    await assert_corrupt(volume.lookup(ino, b".."), r"\.\.")
    assert b"one" in await listing(volume, ino)


@pytest.mark.parametrize("rec_len", [0, 1, 4, 8, 11, 13, 14, 15, 1024, 4096, 65532, 65535])
async def test_an_impossible_rec_len_ends_the_listing_in_front_of_it(image: Editor, rec_len: int) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    entries = [(ino, b"."), (ROOT, b".."), (first, b"one"), (first, b"two"), (first, b"six")]
    position = image.write_entries(image.block(ino), entries)[3]
    image.put("<H", position + 4, rec_len)
    volume = await image.open()
    got, following = await volume.entries(ino, 0, 100)
    assert [entry.name for entry, _ in got] == [b"one"]
    await assert_corrupt(volume.entries(ino, following, 100), "rec_len")
    assert await volume.lookup(ino, b"one") is not None
    await assert_corrupt(volume.lookup(ino, b"six"), "rec_len")


async def test_an_entry_that_leaves_no_room_for_the_next_header_is_told(image: Editor) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    position = image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (first, b"one")])[2]
    image.put("<H", position + 4, image.block_size - 24 - 8)
    volume = await image.open()
    got, following = await volume.entries(ino, 0, 100)
    assert [entry.name for entry, _ in got] == [b"one"]
    await assert_corrupt(volume.entries(ino, following, 100))


async def test_a_name_longer_than_its_entry_is_told(image: Editor) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    position = image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (first, b"one"), (first, b"two")])[2]
    image.put("<B", position + 6, 5)
    volume = await image.open()
    await assert_corrupt(volume.entries(ino, 0, 100), "name_len")


async def test_a_name_over_the_end_of_the_block_is_told(image: Editor) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    filler = [(first, b"%04d" % number + b"f" * 236) for number in range(3)]
    position = image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), *filler, (first, b"end")])[-1]
    image.put("<B", position + 6, 255)
    volume = await image.open()
    got, following = await volume.entries(ino, 0, 100)
    assert len(got) == 3
    await assert_corrupt(volume.entries(ino, following, 100), "name_len")


@pytest.mark.parametrize("target", [1, 2, 3, 10, 60, 65, 10_000, 0xFFFFFFFF])
async def test_an_entry_to_an_inode_that_no_name_may_refer_to(image: Editor, target: int) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    assert image.inodes_count == 64
    image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (target, b"bad"), (first, b"good")])
    volume = await image.open()
    await assert_corrupt(volume.lookup(ino, b"bad"))
    found = dict(await listed(volume, ino))
    assert found[b"bad"] is None
    good = found[b"good"]
    assert good is not None and good.ino == first


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 1 << 30, (1 << 30) + 1, (1 << 32) - 1024, (1 << 32) - 1])
async def test_a_directory_of_impossible_size_is_told(image: Editor, size: int) -> None:
    ino = number_of(image, b"dir")
    image.put("<I", image.inode(ino) + 4, size)
    volume = await image.open()
    await assert_corrupt(volume.entries(ino, 0, 100), "size")
    await assert_corrupt(volume.lookup(ino, b"first"), "size")


async def test_a_directory_that_ends_in_unmapped_blocks_finds_its_names_and_tells_the_hole(image: Editor) -> None:
    ino = number_of(image, b"dir")
    image.put("<I", image.inode(ino) + 4, 512 * 1024)
    volume = await image.open()
    assert await volume.lookup(ino, b"second") is not None
    await assert_corrupt(volume.lookup(ino, b"missing"), "hole")
    got, following = await volume.entries(ino, 0, 100)
    assert [entry.name for entry, _ in got] == [b"first", b"second", b"third"]
    await assert_corrupt(volume.entries(ino, following, 100), "hole")


async def test_a_directory_with_a_hole_in_the_middle(image: Editor) -> None:
    ino = number_of(image, b"many")
    lost = image.data[image.block(ino, 2) + 8 :][:45]
    kept = image.data[image.block(ino, 3) + 8 :][:45]
    image.put("<I", image.pointer(ino, 2), 0)
    volume = await image.open()
    await assert_corrupt(volume.lookup(ino, bytes(lost)), "hole")
    child = await volume.lookup(ino, bytes(kept))
    assert child is not None
    await assert_corrupt(listing(volume, ino), "hole")


@pytest.mark.parametrize("pointer", [1, 1024, 1025, 0x7FFFFFFF, 0xFFFFFFFF])
async def test_a_block_pointer_outside_the_file_system_is_told(image: Editor, pointer: int) -> None:
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
async def test_an_indirect_block_outside_the_file_system_is_told(image: Editor, pointer: int) -> None:
    ino = number_of(image, b"large")
    image.put("<I", image.pointer(ino, 12), pointer)
    image.put("<I", image.pointer(ino, 13), pointer)
    volume = await image.open()
    await assert_corrupt(volume.read(ino, 12 * 1024, 10), "pointer")
    await assert_corrupt(volume.read(ino, (12 + 256) * 1024, 10), "pointer")
    assert bytes(await volume.read(ino, 0, 4)) == b"LLLL"


async def test_an_indirect_block_with_a_pointer_outside_is_told_for_that_block_alone(image: Editor) -> None:
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


async def test_a_file_larger_than_its_map_can_hold_is_told_only_there(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.inode(ino) + 108, 0x7FFFFFFF)
    volume = await image.open()
    assert bytes(await volume.read(ino, 0, 4)) == b"\0\1\2\3"
    await assert_corrupt(volume.read(ino, (12 + 256 + 256**2 + 256**3) * 1024, 10), "past")
    await assert_corrupt(volume.read(ino, 1 << 62, 10), "past")


async def test_a_negative_file_size_is_told(image: Editor) -> None:
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


async def test_a_loop_of_directories_can_be_looked_into_step_by_step(image: Editor) -> None:
    ino = number_of(image, b"dir")
    image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (ino, b"again")])
    volume = await image.open()
    assert (await at(volume, "dir", "again", "again", "again")).ino == ino
    assert await walk(volume) != (0, 0)


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
async def test_an_attribute_outside_the_body_is_told(image: Editor, offset: int, layout: str, value: int) -> None:
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
async def test_an_attribute_block_that_is_none_is_told(image: Editor, offset: int, layout: str, value: int) -> None:
    ino = number_of(image, b"large")
    block = image.get("<I", image.inode(ino) + 104)
    assert block
    image.put(layout, block * 1024 + offset, value)
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))


@pytest.mark.parametrize("block", [1, 1024, 0xFFFFFFFF])
async def test_an_attribute_block_outside_the_file_system_is_told(image: Editor, block: int) -> None:
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


async def test_an_attribute_of_unknown_namespace_or_without_a_name_is_left_out(image: Editor) -> None:
    ino = number_of(image, b"file")
    image.put("<B", body_xattr(image, ino) + 1, 99)
    assert await (await image.open()).xattrs(ino) == {}
    image.put("<BB", body_xattr(image, ino), 0, 1)
    # Without its name, what follows is read from the name's bytes: told or left out, never believed.
    volume = await image.open()
    await assert_corrupt(volume.xattrs(ino))


@pytest.mark.parametrize("acl", [b"\2\0\0\0", b"\1\0\0", b"\1\0\0\0\2\0\7\0", b"\1\0\0\0\xff\0\7\0", b"\1\0\0\0\1\0"])
async def test_an_impossible_acl_is_told(image: Editor, acl: bytes) -> None:
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


@pytest.mark.parametrize(
    ("name", "size"),
    [(b"fast", 0), (b"fast", 60), (b"fast", 1 << 31), (b"slow", 0), (b"slow", 1024), (b"slow", 0xFFFFFFFF)],
)
async def test_a_symlink_of_impossible_size_is_told(image: Editor, name: bytes, size: int) -> None:
    ino = number_of(image, name)
    image.put("<I", image.inode(ino) + 4, size)
    volume = await image.open()
    await assert_corrupt(volume.target(ino), "target")


async def test_a_slow_symlink_in_a_hole_is_told(image: Editor) -> None:
    ino = number_of(image, b"slow")
    image.put("<I", image.pointer(ino, 0), 0)
    volume = await image.open()
    await assert_corrupt(volume.target(ino), "hole")


@pytest.mark.parametrize("size", [129, 132, 30, 0xFFFC, 0xFFFF])
async def test_an_i_extra_isize_that_does_not_fit_is_told(image: Editor, size: int) -> None:
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
async def test_an_inode_table_outside_the_file_system_is_told(image: Editor, table: int) -> None:
    ino = number_of(image, b"file")
    image.put("<I", image.descriptor() + 8, table)
    volume = await image.open()
    await assert_corrupt(volume.inode(ROOT), "bg_inode_table")
    await assert_corrupt(volume.inode(ino), "bg_inode_table")


@pytest.mark.parametrize("file_type", [0, 0x3000, 0x5000, 0x7000, 0xF000])
async def test_an_unknown_file_type_is_told_and_does_not_hide_the_others(image: Editor, file_type: int) -> None:
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


async def test_a_root_that_is_no_directory_is_told(image: Editor) -> None:
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


async def test_a_damaged_directory_block_hides_no_name_in_other_blocks(image: Editor) -> None:
    ino = number_of(image, b"many")
    names = await listing(await image.open(), ino)
    position = image.block(ino, 3)
    lost = [name for name in names if name in image.data[position : position + 1024]]
    assert 0 < len(lost) < len(names) == MANY
    volume = await image.open([range(position, position + 1024)])
    for name in names:
        if name in lost:
            with pytest.raises(IntegrityError):
                await volume.lookup(ino, name)
        else:
            assert await volume.lookup(ino, name) is not None
    with pytest.raises(IntegrityError):
        await volume.lookup(ino, b"missing")


async def test_a_damaged_directory_block_ends_a_listing_behind_what_is_in_front_of_it(image: Editor) -> None:
    ino = number_of(image, b"many")
    names = await listing(await image.open(), ino)
    position = image.block(ino, 3)
    lost = [name for name in names if name in image.data[position : position + 1024]]
    volume = await image.open([range(position, position + 1024)])
    shown: list[bytes] = []
    offset = 0
    with pytest.raises(IntegrityError):
        for _ in range(100):
            got, offset = await volume.entries(ino, offset, 5)
            shown += [entry.name for entry, _ in got]
    assert shown == names[: names.index(lost[0])]
    # Whoever goes on behind the damage gets the rest.
    rest: list[bytes] = []
    offset = 4 * 1024
    while offset < (await volume.inode(ino)).size:
        got, offset = await volume.entries(ino, offset, 5)
        rest += [entry.name for entry, _ in got]
    assert rest == names[names.index(lost[-1]) + 1 :]


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


async def test_a_damaged_indirect_block_fails_only_what_is_behind_it(image: Editor) -> None:
    ino = number_of(image, b"large")
    position = image.block(ino, 12)
    volume = await image.open([range(position, position + 1024)])
    assert bytes(await volume.read(ino, 0, 12 * 1024)) == b"L" * 12 * 1024
    with pytest.raises(IntegrityError):
        await volume.read(ino, 12 * 1024, 1)
    assert bytes(await volume.read(ino, (12 + 256) * 1024, 1024)) == b"L" * 1024


async def test_a_damaged_superblock_is_told_on_opening(image: Editor) -> None:
    with pytest.raises(IntegrityError):
        await image.open([range(1024, 2048)])


@pytest.mark.parametrize("sparse", [True, False])
def test_copies_of_the_superblock_are_counted_as_if_one_by_one(image: Editor, sparse: bool) -> None:
    superblock = Superblock.parse(image.data[1024:2048])
    features = superblock.features if sparse else superblock.features - {"sparse_super"}
    for groups in (1, 2, 3, 4, 8, 9, 10, 25, 26, 27, 28, 49, 50, 343, 344, 5000):
        counted = replace(superblock, features=features, s_blocks_count=1 + groups * superblock.s_blocks_per_group)
        assert counted.groups_count == groups
        assert counted.superblock_copies == sum(map(counted.group_has_superblock, range(groups)))


def test_hundreds_of_millions_of_groups_take_no_time(image: Editor) -> None:
    """A sparse file can be as large as it likes."""
    image.put("<I", 1024 + 4, (1 << 32) - 1)
    image.put("<I", 1024 + 32, 8)
    image.put("<I", 1024 + 40, 4)
    groups = -(-((1 << 32) - 2) // 8)
    image.put("<I", 1024, groups * 4)
    superblock = Superblock.parse(image.data[1024:2048])
    started = time.thread_time()
    statistics = FileSystem(superblock).statistics(Blocks(lambda number: bytes(image.data[1024 * number :][:1024])))
    assert time.thread_time() - started < 1
    assert superblock.groups_count == groups and 0 < statistics.blocks < 1 << 32
    with pytest.raises(UnsupportedFeature, match=f"has {groups} groups"):
        FileSystem(superblock).groups.counts(Blocks(lambda number: bytes(1024)))


def test_groups_too_small_for_their_own_metadata_are_refused(image: Editor) -> None:
    table_blocks = Superblock.parse(image.data[1024:2048]).table_blocks
    per_group = table_blocks + 3
    groups = -(-(image.blocks_count - 1) // per_group)
    image.put("<I", 1024 + 32, per_group)
    image.put("<I", 1024, groups * image.inodes_per_group)
    with pytest.raises(CorruptFilesystem, match=f"groups of {per_group} blocks"):
        Superblock.parse(image.data[1024:2048])


def metadata_ranges(image: Editor) -> list[range]:
    """Where the metadata is, the important bytes of each by themselves."""
    ranges = [range(1024, 1024 + 104), range(1024, 2048), range(image.descriptor(), image.descriptor() + 32)]
    inodes = [ROOT, *(number_of(image, name) for name in (b"dir", b"many", b"file", b"large", b"fast", b"slow"))]
    ranges += [range(image.inode(ino), image.inode(ino) + 256) for ino in inodes]
    for ino in (ROOT, number_of(image, b"dir"), number_of(image, b"many")):
        ranges.append(range(image.block(ino), image.block(ino) + 200))
    for ino in (number_of(image, b"file"), number_of(image, b"large")):
        ranges.append(range(image.block(ino, 12), image.block(ino, 12) + 160))
    ranges.append(range(image.block(number_of(image, b"large"), 13), image.block(number_of(image, b"large"), 13) + 16))
    acl = image.get("<I", image.inode(number_of(image, b"large")) + 104) * 1024
    ranges.append(range(acl, acl + 64))
    ranges.append(range(image.inode(11), image.inode(11) + 30 * 256))
    return ranges


async def test_no_random_damage_gets_out_anything_but_an_error_of_ours(pristine: bytes) -> None:
    ranges = metadata_ranges(Editor(pristine))
    started = time.process_time()
    failed = opened = 0
    for seed in range(FUZZ_MUTANTS):
        source = random.Random(seed)
        data = bytearray(pristine)
        for _ in range(source.choice((1, 1, 2, 4, 16))):
            position = source.choice(source.choice(ranges))
            data[position] = source.choice((0, 0xFF, data[position] ^ 1 << source.randrange(8), source.randrange(256)))
        mutant_started = time.process_time()
        try:
            volume = await Volume.open(MemoryDevice(data))
        except MystfuseError as error:
            assert isinstance(error, FormatError)
        else:
            opened += 1
            try:
                _, failures = await walk(volume)
                await volume.statistics()
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
            failed += bool(failures)
        assert time.process_time() - mutant_started < 5, f"seed {seed} takes too long"
    assert time.process_time() - started < FUZZ_SECONDS
    assert opened > FUZZ_MUTANTS // 4, "the mutants were too broken to show anything"
    assert failed > FUZZ_MUTANTS // 10, "the mutants were not broken enough to show anything"

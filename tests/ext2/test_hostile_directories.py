"""Hostile directories: impossible entries are skipped or end the listing, and nothing loops."""

from __future__ import annotations

import pytest

from mystfuse.errors import IntegrityError
from tests.support.ext2_editor import ROOT, Editor, at, listed, listing, walk
from tests.support.hostile_ext2 import MANY, assert_corrupt, number_of


@pytest.mark.logs(r"^mystfuse\.ext2")
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


@pytest.mark.logs(r"^mystfuse\.ext2")
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


async def test_an_entry_that_leaves_no_room_for_the_next_header_is_reported(image: Editor) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    position = image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (first, b"one")])[2]
    image.put("<H", position + 4, image.block_size - 24 - 8)
    volume = await image.open()
    got, following = await volume.entries(ino, 0, 100)
    assert [entry.name for entry, _ in got] == [b"one"]
    await assert_corrupt(volume.entries(ino, following, 100))


async def test_a_name_longer_than_its_entry_is_reported(image: Editor) -> None:
    ino = number_of(image, b"dir")
    first = number_of(image, b"dir", b"first")
    position = image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (first, b"one"), (first, b"two")])[2]
    image.put("<B", position + 6, 5)
    volume = await image.open()
    await assert_corrupt(volume.entries(ino, 0, 100), "name_len")


async def test_a_name_over_the_end_of_the_block_is_reported(image: Editor) -> None:
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
async def test_a_directory_of_impossible_size_is_reported(image: Editor, size: int) -> None:
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


async def test_a_loop_of_directories_can_be_looked_into_step_by_step(image: Editor) -> None:
    ino = number_of(image, b"dir")
    image.write_entries(image.block(ino), [(ino, b"."), (ROOT, b".."), (ino, b"again")])
    volume = await image.open()
    assert (await at(volume, "dir", "again", "again", "again")).ino == ino
    assert await walk(volume) != (0, 0)


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
    # A reader who goes on behind the damage gets the rest.
    rest: list[bytes] = []
    offset = 4 * 1024
    while offset < (await volume.inode(ino)).size:
        got, offset = await volume.entries(ino, offset, 5)
        rest += [entry.name for entry, _ in got]
    assert rest == names[names.index(lost[-1]) + 1 :]

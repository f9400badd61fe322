"""Names: lookups and listings find every name of a large directory, whatever bytes it has."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.ext2_editor import (
    ROOT,
    Editor,
    at,
    kernel_mount,
    listed,
    listing,
    make_image,
    open_image,
    walk,
)

MANY = 3000


def long_names() -> list[bytes]:
    return [b"%04d-" % number + b"n" * (number * 7 % 90) for number in range(MANY)]


@pytest.fixture(scope="module", params=["linear", "indexed"])
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An image with a directory of many names, written by mke2fs and indexed by e2fsck."""
    directory = tmp_path_factory.mktemp("crowded")
    crowd = directory / "tree/crowd"
    crowd.mkdir(parents=True)
    names = [os.fsdecode(name) for name in long_names()]
    (directory / "tree/original").touch()
    for name in names:
        os.link(directory / "tree/original", crowd / name)
    image = make_image(directory / "image", "-b", "1024", "-O", "dir_index", size="4M", tree=directory / "tree")
    if request.param == "indexed":
        run("e2fsck", "-fyD", image, check=False)
        assert "nothing" not in run("e2fsck", "-fn", image).stdout
    yield image


def is_indexed(image: Path) -> bool:
    editor = Editor(image.read_bytes())
    _, ino = editor.find(ROOT, b"crowd")
    return bool(editor.get("<I", editor.inode(ino) + 32) & 0x1000)


async def test_every_name_of_a_large_directory_is_found(crowded: Path, request: pytest.FixtureRequest) -> None:
    assert is_indexed(crowded) == ("indexed" in request.node.name)
    volume = await open_image(crowded)
    crowd = await at(volume, "crowd")
    original = await at(volume, "original")
    for name in long_names():
        found = await volume.lookup(crowd.ino, name)
        assert found is not None and found.ino == original.ino
    for name in (b"", b"x", b"0000", b"0001-", b"9999-", b"n" * 255, b"n" * 300, b"0000-x", b"a/b", b"\0"):
        assert await volume.lookup(crowd.ino, name) is None or name in long_names(), name
    parent = await volume.lookup(crowd.ino, b"..")
    assert parent is not None and parent.ino == ROOT


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
async def test_a_listing_of_a_large_directory_is_complete_in_steps_of_any_size(crowded: Path, step: int) -> None:
    volume = await open_image(crowded)
    crowd = await at(volume, "crowd")
    entries = await listed(volume, crowd.ino, step)
    assert sorted(name for name, _ in entries) == sorted(long_names())
    original = await at(volume, "original")
    assert all(inode == original for _, inode in entries)


async def test_a_listing_goes_on_from_every_offset_that_it_gave(crowded: Path) -> None:
    volume = await open_image(crowded)
    crowd = await at(volume, "crowd")
    offset = 0
    names: list[bytes] = []
    continuations: list[tuple[int, int]] = []
    while offset < crowd.size:
        entries, offset = await volume.entries(crowd.ino, offset, 1000)
        for entry, _ in entries:
            names.append(entry.name)
            continuations.append((entry.next_offset, len(names)))
    for position, index in random.Random(3).sample(continuations, 500) + continuations[-3:]:
        found: list[bytes] = []
        while not found and position < crowd.size:
            entries, position = await volume.entries(crowd.ino, position, 7)
            found = [entry.name for entry, _ in entries]
        assert found == names[index : index + len(found)]
        assert found or index == len(names)


async def test_a_listing_from_the_end_or_behind_it_is_empty(crowded: Path) -> None:
    volume = await open_image(crowded)
    crowd = await at(volume, "crowd")
    for offset in (crowd.size, crowd.size + 1, crowd.size + 100_000, 1 << 62):
        entries, following = await volume.entries(crowd.ino, offset, 10)
        assert entries == []
        assert following >= crowd.size


async def test_names_of_deleted_files_are_gone(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "1024")
    with kernel_mount(image, tmp_path / "mnt", "rw") as mount:
        for number in range(100):
            (mount / f"file-{number}").touch()
        for number in range(0, 100, 2):
            (mount / f"file-{number}").unlink()
        (mount / "gone").mkdir()
        (mount / "gone").rmdir()
    volume = await open_image(image)
    expected = {b"lost+found", *(b"file-%d" % number for number in range(1, 100, 2))}
    assert set(await listing(volume, ROOT)) == expected
    assert await volume.lookup(ROOT, b"file-2") is None
    assert await volume.lookup(ROOT, b"gone") is None
    assert (await walk(volume))[1] == 0


async def test_names_are_bytes_of_any_kind_up_to_255(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    names = [b"\xff" * 255, b"\x01", b"\n", b"latin-\xe9", b" ", b"...", b"..a", "日本語".encode(), b"\xe9" * 254]
    names += [bytes(value for value in range(1, 256) if value != 0x2F)]
    for name in names:
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(name)
    volume = await open_image(make_image(tmp_path / "image", tree=tree))
    assert sorted(await listing(volume, ROOT)) == sorted([*names, b"lost+found"])
    for name in names:
        assert bytes(await volume.read((await at(volume, name)).ino, 0, 300)) == name

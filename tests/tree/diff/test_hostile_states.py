"""States of broken file systems: an error or an answer, soon."""

from __future__ import annotations

import random
from pathlib import Path
from struct import pack_into

import pytest
import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.written_changes import MountStates
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT as ROOT_INO
from tests.support.ext2_editor import Editor, MemoryDevice, make_image
from tests.support.gated_volumes import ROOT, find
from tests.support.state_comparisons import states_of

PATIENCE = 60
"""Seconds."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("hostile")
    tree = directory / "tree"
    for name in ("a/b/c", "d/e"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file").write_bytes(random.Random(1).randbytes(40_000))
        (tree / name / "other").write_text("other")
        (tree / name / "third").write_text("third")
    (tree / "d/link").hardlink_to(tree / "a/b/c/file")
    (tree / "d/symlink").symlink_to("nowhere" * 30)
    return make_image(directory / "image", "-b", "1024", "-N", "64", size="400K", tree=tree).read_bytes()


async def states(old: bytes, new: bytes) -> MountStates:
    numbers = [
        number for number in range(len(old) // 1024) if old[number * 1024 :][:1024] != new[number * 1024 :][:1024]
    ]
    before, after = await Volume.open(MemoryDevice(old)), await Volume.open(MemoryDevice(new))
    return MountStates(ImageView(before, "old"), ImageView(after, "new"), numbers)


@pytest.mark.logs("skipped impossible")
@pytest.mark.parametrize("seed", range(150))
async def test_random_damage(image: bytes, seed: int) -> None:
    """Bytes of metadata changed at random: before and after, or only after."""
    chance = random.Random(seed)
    editor = Editor(image)
    places = [editor.inode(ino) + offset for ino in (2, 11, *range(12, 26)) for offset in range(128)]
    places += [editor.block(ino) + offset for ino in (2, 12, 13, 14) for offset in range(100)]
    old, new = bytearray(image), bytearray(image)
    for _ in range(chance.choice([1, 3, 10, 50])):
        place, value = chance.choice(places), chance.choice([0, 1, 2, 12, 13, 14, 0x41, 0x81, chance.randrange(256)])
        new[place] = value
        if chance.random() < 0.5:
            old[place] = value
    with trio.fail_after(PATIENCE):
        try:
            await (await states(bytes(old), bytes(new))).changes()
        except MystfuseError as error:
            assert "\n" not in str(error)


async def touched(image: bytes, *names: bytes) -> MountStates:
    """The states of a volume on whose image the inode at a path has been touched."""
    volume = await Volume.open(MemoryDevice(image), 1 << 20)
    ino = ROOT_INO
    for name in names:
        ino = (await find(volume, name, ino)).ino
    await volume.set_attributes(ino, AttributeChanges(mtime_ns=10**18), ROOT)
    return await states_of(volume, image)


async def test_a_directory_above_itself(image: bytes) -> None:
    editor = Editor(image)
    _, a = editor.find(ROOT_INO, b"a")
    _, b = editor.find(a, b"b")
    _, c = editor.find(b, b"c")
    # The parent of "a" is its own grandchild.
    pack_into("<I", editor.data, editor.block(a) + 12, c)
    position, _ = editor.find(c, b"other")
    pack_into("<I", editor.data, position, a)
    with trio.fail_after(PATIENCE), pytest.raises(CorruptFilesystem, match="above itself"):
        await (await touched(bytes(editor.data), b"a", b"b", b"c", b"third")).changes()


async def test_a_directory_in_two_places_that_is_listed(image: bytes) -> None:
    editor = Editor(image)
    _, d = editor.find(ROOT_INO, b"d")
    _, e = editor.find(d, b"e")
    position, other = editor.find(e, b"other")
    pack_into("<I", editor.data, position, e)
    old = bytes(editor.data)
    # "d" is gone with all that is in it.
    position, _ = editor.find(ROOT_INO, b"d")
    pack_into("<I", editor.data, position, 0)
    gone = [d, e, other, *(editor.find(*place)[1] for place in ((d, b"symlink"), (e, b"file"), (e, b"third")))]
    for ino in gone:
        pack_into("<H", editor.data, editor.inode(ino) + 26, 0)
    pack_into("<I", editor.data, editor.inode(ROOT_INO) + 16, 7)
    with trio.fail_after(PATIENCE), pytest.raises(CorruptFilesystem, match="more than one place"):
        await (await states(old, bytes(editor.data))).changes()


async def test_blocks_in_a_circle_are_no_endless_content(image: bytes) -> None:
    """A few indirect blocks that lead to each other map terabytes."""
    editor = Editor(image)
    _, a = editor.find(ROOT_INO, b"a")
    _, b = editor.find(a, b"b")
    _, c = editor.find(b, b"c")
    _, ino = editor.find(c, b"file")
    block = editor.get("<I", editor.pointer(ino, 12))
    for index in range(256):
        pack_into("<I", editor.data, block * 1024 + 4 * index, block)
    for index in (12, 13, 14):
        pack_into("<I", editor.data, editor.pointer(ino, index), block)
    pack_into("<I", editor.data, editor.inode(ino) + 4, (1 << 32) - 1)
    pack_into("<I", editor.data, editor.inode(ino) + 108, 3)
    with trio.fail_after(PATIENCE), pytest.raises(CorruptFilesystem, match="more blocks"):
        await (await touched(bytes(editor.data), b"a", b"b", b"c", b"file")).changes()


async def test_a_changed_inode_without_a_name(image: bytes) -> None:
    editor = Editor(image)
    _, d = editor.find(ROOT_INO, b"d")
    _, e = editor.find(d, b"e")
    position, ino = editor.find(e, b"other")
    pack_into("<I", editor.data, position, 0)
    old = bytes(editor.data)
    pack_into("<I", editor.data, editor.inode(ino) + 16, 7)
    with pytest.raises(CorruptFilesystem, match="no directory names it"):
        await (await states(old, bytes(editor.data))).changes()


async def test_states_of_two_file_systems(image: bytes, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other", "-b", "1024", "-N", "128", size="400K").read_bytes()
    with pytest.raises(CorruptFilesystem, match="two file systems"):
        await (await states(image, other)).changes()

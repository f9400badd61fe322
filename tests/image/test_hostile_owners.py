"""Naming damage in file systems that are broken on purpose ends soon, in little memory, and with no error of ours."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from mystfuse.cli.damage_report import DamageReport
from mystfuse.errors import FormatError
from mystfuse.image.block_owners import BlockOwners
from mystfuse.image.damage import Damage, find_superblock
from mystfuse.image.damaged_ranges import DamagedRanges
from mystfuse.image.lost_names import LostNames
from mystfuse.image.verified_blocks import VerifiedBlocks
from mystfuse.system.number_set import NumberSet
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, debugfs, make_image

SIZE = 1024


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("hostile-owners")
    tree = directory / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "large").write_bytes(os.urandom(700 << 10))
    for number in range(100):
        (tree / f"a/b/file-{number:03}-{'n' * 30}").write_bytes(b"x" * 2000)
    os.symlink("t" * 100, tree / "a/link")
    return make_image(directory / "image", "-b", "1024", "-I", "128", "-N", "256", size="3M", tree=tree).read_bytes()


@pytest.fixture
def editor(original: bytes) -> Editor:
    return Editor(original)


async def report_on(data: bytes | bytearray, *numbers: int) -> tuple[Damage, list[str]]:
    """What is said about damaged blocks."""
    damage = Damage()
    for number in sorted(set(numbers)):
        damage.data.add(number * SIZE, (number + 1) * SIZE)
    device = MemoryDevice(data, [range(part.start, part.end) for part in damage.data])
    superblock = await find_superblock(device)
    if superblock is None:
        raise FormatError("no superblock")
    blocks = VerifiedBlocks(device, superblock.block_size, damage.data)
    damage.owners = BlockOwners(superblock, blocks, damage.data)
    await damage.owners.find(lambda count: None)
    damage.names = LostNames(damage.owners, blocks)
    await damage.names.find(lambda count: None)
    report = DamageReport(damage)
    report.document()
    return damage, list(report.lines())


def inode_of(editor: Editor, *path: bytes) -> int:
    ino = ROOT
    for name in path:
        _, ino = editor.find(ino, name)
    return ino


async def test_indirect_blocks_in_circles_are_walked_once(editor: Editor) -> None:
    """A triple-indirect block that leads to itself only: a billion blocks, if one follows it."""
    large = inode_of(editor, b"large")
    block = editor.block(large, 13)
    for index in range(SIZE // 4):
        editor.put("<I", block + 4 * index, block // SIZE)
    editor.put("<I", editor.pointer(large, 14), block // SIZE)
    editor.put("<I", editor.inode(large) + 108, 0x7F)
    began = time.monotonic()
    _, said = await report_on(editor.data, editor.block(large, 3) // SIZE)
    assert time.monotonic() - began < 5
    assert said[0] == f"damaged: /large (inode {large}): bytes 3072-4095"


async def test_many_inodes_with_the_same_blocks(editor: Editor) -> None:
    large = inode_of(editor, b"large")
    map_of_large = editor.data[editor.pointer(large, 0) :][:60]
    others = [inode_of(editor, b"a", b"b", name) for name in names(editor)]
    for ino in others:
        editor.data[editor.pointer(ino, 0) : editor.pointer(ino, 0) + 60] = map_of_large
    _, said = await report_on(editor.data, editor.block(large, 1) // SIZE)
    assert len(said) == len(others) + 2 and f"damaged: /large (inode {large}): bytes 1024-2047" in said


async def test_blocks_of_directories_are_read_once(editor: Editor) -> None:
    """However many directories lead to them."""
    b = inode_of(editor, b"a", b"b")
    map_of_b = editor.data[editor.pointer(b, 0) :][:60]
    others = [inode_of(editor, b"a", b"b", name) for name in names(editor)]
    for ino in others:
        editor.data[editor.inode(ino) : editor.inode(ino) + 2] = editor.data[editor.inode(b) : editor.inode(b) + 2]
        editor.data[editor.pointer(ino, 0) : editor.pointer(ino, 0) + 60] = map_of_b
    damage, _ = await report_on(editor.data, editor.block(inode_of(editor, b"large"), 1) // SIZE)
    assert damage.owners is not None
    numbers = list(damage.owners.directory_blocks[0])
    assert len(damage.owners.directory_inodes) > len(others) and len(numbers) == len(set(numbers)) < 30


async def test_names_of_inodes_that_cannot_be_are_no_names(editor: Editor) -> None:
    block = editor.block(inode_of(editor, b"a", b"b", b"c"))
    editor.put("<H", block + 12 + 4, 12)
    for index in range(80):
        editor.put("<IHBB1s", block + 24 + 12 * index, 100_000 * (index + 1), 12, 1, 1, b"x")
    editor.put("<H", block + 24 + 12 * 79 + 4, SIZE - 24 - 12 * 79)
    sets: list[NumberSet] = []

    class Seen(NumberSet):
        def __init__(self) -> None:
            super().__init__()
            sets.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mystfuse.image.lost_names.NumberSet", Seen)
        await report_on(editor.data, editor.block(inode_of(editor, b"large"), 1) // SIZE)
    (named,) = sets
    assert max(named) <= 256


def names(editor: Editor) -> list[bytes]:
    return [b"file-%03d-" % number + b"n" * 30 for number in range(100)]


async def test_directories_in_circles_have_paths(editor: Editor) -> None:
    """The root's name for ``a`` leads to ``large`` instead, and ``c`` has a name for ``a``."""
    a, b, c = (inode_of(editor, *path) for path in ((b"a",), (b"a", b"b"), (b"a", b"b", b"c")))
    file = inode_of(editor, b"a", b"b", names(editor)[0])
    block = editor.block(c)
    # ".", "..", and the rest of the block for "a".
    editor.put("<H", block + 12 + 4, 12)
    editor.put("<IHBB1s", block + 24, a, SIZE - 24, 1, 2, b"a")
    position, _ = editor.find(ROOT, b"a")
    editor.put("<I", position, inode_of(editor, b"large"))
    _, said = await report_on(editor.data, editor.block(file) // SIZE)
    circle = {a: f"<inode {a}>/b", b: f"<inode {b}>", c: f"<inode {c}>/a/b"}
    assert any(said[0].startswith(f"damaged: {way}") and f"(inode {file})" in said[0] for way in circle.values()), said


async def test_a_path_that_is_too_long_begins_in_the_middle(tmp_path: Path) -> None:
    data = make_deep(tmp_path)
    damaged = data.index(b"contents of the file") // SIZE
    _, said = await report_on(data, damaged)
    assert said[0].startswith("damaged: <inode ") and said[0].count("/") < 20 and "/file (inode " in said[0]


def make_deep(directory: Path) -> bytes:
    """Thirty directories in each other, by debugfs."""
    (directory / "contents").write_bytes(b"contents of the file")
    image = make_image(directory / "deep", "-b", "1024", "-N", "64", size="1M")
    commands = []
    for _ in range(30):
        commands += [f"mkdir {'d' * 250}", f"cd {'d' * 250}"]
    debugfs(image, *commands, f"write {directory / 'contents'} file")
    return image.read_bytes()


async def test_a_directory_that_claims_to_be_huge(editor: Editor) -> None:
    a = inode_of(editor, b"a")
    editor.put("<I", editor.inode(a) + 4, 0xFFFFFC00)
    link = inode_of(editor, b"a", b"link")
    _, said = await report_on(editor.data, editor.block(link) // SIZE)
    assert said[0].startswith("damaged: /a/link (symbolic link")


@pytest.mark.parametrize("seed", range(8))
async def test_any_broken_structure_is_survived(seed: int, original: bytes) -> None:
    """Bytes of inodes, descriptors, directories and indirect blocks changed at random, and any blocks damaged."""
    dice = random.Random(seed)
    for _ in range(15):
        editor = Editor(original)
        large = inode_of(editor, b"large")
        places = [
            editor.descriptor(), *(editor.inode(ino) for ino in range(1, 120)), editor.block(ROOT),
            editor.block(inode_of(editor, b"a", b"b")), editor.block(large, 12), editor.block(large, 13), 1024,
        ]  # fmt: skip
        for _ in range(dice.choice((1, 5, 50))):
            position = dice.choice(places) + dice.randrange(128)
            value = dice.choice((0, 0xFF, dice.randrange(256)))
            editor.data[position] = value
        wanted = dice.sample(range(1, len(original) // SIZE), dice.choice((1, 20, 1000)))
        tracemalloc.start()
        began = time.monotonic()
        try:
            await report_on(editor.data, *wanted)
        except FormatError:
            continue
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert time.monotonic() - began < 20
        assert peak < 64 << 20


async def test_many_damaged_ranges_are_counted_beyond_the_bound(
    original: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mystfuse.image import affected, damaged_ranges

    monkeypatch.setattr(damaged_ranges, "MAX_RANGES", 10)
    ranges = DamagedRanges()
    for number in range(100):
        ranges.add(number * 2048, number * 2048 + 1024)
    assert len(ranges) == 10 and ranges.left_out == 90 * 1024
    monkeypatch.undo()
    monkeypatch.setattr(affected, "MAX_INODES", 5)
    damage, said = await report_on(original, *range(150, 600))
    assert damage.owners and len(damage.owners.affected.recorded) == 5
    assert damage.owners.affected.left_out and "other inodes" in said[-1]


EXTENTS = b"\x0a\xf3\x04\0\x04\0\0\0\0\0\0\0"
"""The header of a root with four extents."""


@pytest.fixture(scope="module")
def with_extents(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four thousand directories, in an ext4 file system without checksums."""
    directory = tmp_path_factory.mktemp("hostile-extents")
    tree = directory / "tree"
    for number in range(4000):
        (tree / str(number)).mkdir(parents=True)
    options = ("-t", "ext4", "-b", "1024", "-I", "128", "-N", "4096", "-O", "^metadata_csum,^has_journal,^64bit")
    image = make_image(directory / "image", *options, size="40M", tree=tree)
    return image.read_bytes()


async def test_extents_of_many_directories_over_the_same_blocks(
    with_extents: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the file system, four times for each of them: half a billion blocks, if one looks at each."""
    monkeypatch.setattr("mystfuse.image.block_owners.MAX_STEPS", 200_000)
    editor = Editor(with_extents)
    root = EXTENTS + b"".join(struct.pack("<IHHI", number * 32768, 32768, 0, 2) for number in range(4))
    for ino in range(12, 4000):
        editor.put("<I", editor.inode(ino) + 4, 4 * 32768 * SIZE)
        editor.data[editor.pointer(ino, 0) : editor.pointer(ino, 0) + 60] = root
    tracemalloc.start()
    began = time.monotonic()
    damage, _ = await report_on(editor.data, *range(20_000, 22_000, 2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert damage.owners is not None and not damage.owners.is_complete
    assert time.monotonic() - began < 30 and peak < 256 << 20


async def test_extent_blocks_in_circles_are_walked_once(with_extents: bytes) -> None:
    """Each entry of an index block leads to the block itself, as far as its depth lets it."""
    editor = Editor(with_extents)
    block = len(with_extents) // SIZE - 2
    node = struct.pack("<HHHHI", 0xF30A, 84, 84, 1, 0)
    node += b"".join(struct.pack("<IIHH", number, block, 0, 0) for number in range(84))
    editor.data[block * SIZE : (block + 1) * SIZE] = node.ljust(SIZE, b"\0")
    root = struct.pack("<HHHHI", 0xF30A, 1, 4, 2, 0) + struct.pack("<IIHH", 0, block, 0, 0)
    for ino in range(12, 4000):
        editor.data[editor.pointer(ino, 0) : editor.pointer(ino, 0) + 60] = root.ljust(60, b"\0")
    began = time.monotonic()
    damage, _ = await report_on(editor.data, len(with_extents) // SIZE - 1)
    assert damage.owners is not None and time.monotonic() - began < 20

"""Writing to files with extents, in process: against an array of bytes, with e2fsck and debugfs as judges.

The free blocks of the images are full of old contents, which must never show.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, at, merged

ADMIN = Caller(0, 0)
LIMIT = 256 << 20
OLD = b"old contents "


def make_image(directory: Path, block_size: int, size: int, *options: str) -> bytes:
    """A file system with an empty file, whose free blocks are full of old contents."""
    tree, image = directory / "tree", directory / "image"
    tree.mkdir(exist_ok=True)
    (tree / "file").touch()
    image.write_bytes((OLD * (size // len(OLD) + 1))[:size])
    arguments = ("-E", "nodiscard,lazy_itable_init=0", "-b", str(block_size), "-d", tree)
    run("mke2fs", "-q", "-F", "-t", "ext4", *arguments, *options, image)
    return image.read_bytes()


class File:
    """The file of a volume, and what it should contain."""

    def __init__(self, volume: Volume, ino: int, path: Path) -> None:
        self.volume = volume
        self.ino = ino
        self.content = bytearray()
        self.refused = 0
        """Operations for which there was no room."""
        self._path = path

    @classmethod
    async def open(cls, image: bytes, path: Path) -> File:
        volume = await Volume.open(MemoryDevice(image), LIMIT)
        assert volume.overlay is not None
        return cls(volume, (await at(volume, "file")).ino, path)

    def _grow(self, size: int) -> None:
        self.content.extend(bytes(max(size - len(self.content), 0)))

    async def write(self, offset: int, data: bytes) -> None:
        written = await self.volume.write(self.ino, offset, data, ADMIN)
        self._grow(offset + written)
        self.content[offset : offset + written] = data[:written]

    async def truncate(self, size: int) -> None:
        await self.volume.set_attributes(self.ino, AttributeChanges(size=size), ADMIN)
        del self.content[size:]
        self._grow(size)

    async def punch(self, offset: int, length: int) -> None:
        await file_space.punch(self.volume, self.ino, offset, length, ADMIN)
        self._zero(offset, length)

    async def allocate(self, offset: int, length: int, keeps_size: bool = False, zeroes: bool = False) -> None:
        await file_space.allocate(self.volume, self.ino, offset, length, keeps_size, zeroes, ADMIN)
        if not keeps_size:
            self._grow(offset + length)
        if zeroes:
            self._zero(offset, length)

    def _zero(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.content))
        if offset < end:
            self.content[offset:end] = bytes(end - offset)

    async def check_content(self) -> None:
        assert (await self.volume.inode(self.ino)).size == len(self.content)
        step = 1 << 20
        for start in range(0, len(self.content), step):
            data = bytes(await self.volume.read(self.ino, start, step))
            if data != self.content[start : start + step]:
                pairs = zip(data, self.content[start : start + step], strict=False)
                wrong = next((index for index, (one, other) in enumerate(pairs) if one != other), len(data))
                pytest.fail(f"byte {start + wrong} is wrong")

    async def check(self) -> str:
        """Check contents and file system; returns what debugfs tells of the file."""
        await self.check_content()
        assert_clean(await merged(self.volume), self._path)
        return run("debugfs", "-R", f"stat <{self.ino}>", self._path).stdout

    async def levels(self) -> int:
        """The depth of the tree."""
        await self.check()
        shown = run("debugfs", "-R", f"ex <{self.ino}>", self._path).stdout
        return max((int(depth) for depth in re.findall(r"^ *\d+/ *(\d+) ", shown, re.MULTILINE)), default=0)

    async def step(self, dice: random.Random, block_size: int, reach: int, cuts: bool = True) -> None:
        """A random operation; with ``cuts`` perhaps one that gives back most of the file."""
        offset, end = dice.randrange(reach), len(self.content)
        length = dice.choice((1, block_size // 2, block_size, 2 * block_size, 5 * block_size + 3, 40 * block_size))
        kinds = ("write",) * 6 + ("block",) * 4 + ("append", "punch", "punch", "fill", "keep", "zero")
        kind = dice.choice((*kinds, "cut") if cuts else kinds)
        try:
            if kind == "write":
                await self.write(offset, dice.randbytes(length))
            elif kind == "block":
                await self.write(offset // block_size * block_size, dice.randbytes(block_size))
            elif kind == "append":
                await self.write(end, dice.randbytes(length))
            elif kind == "punch":
                await self.punch(offset, length)
            elif kind == "cut":
                await self.truncate(dice.choice((offset, end, max(end - length, 0))))
            elif kind == "zero":
                await self.allocate(offset, length, keeps_size=dice.random() < 0.5, zeroes=True)
            else:
                await self.allocate(offset, length, keeps_size=kind == "keep")
        except OSError as error:
            assert error.errno == errno.ENOSPC and kind != "cut"
            self.refused += 1


def scattered(count: int, dice: random.Random) -> Iterator[int]:
    """Every other number up to twice ``count``, in random order."""
    numbers = list(range(0, 2 * count, 2))
    dice.shuffle(numbers)
    return iter(numbers)


@pytest.mark.parametrize("block_size", [1024, 4096])
@pytest.mark.parametrize("seed", range(2))
async def test_random_operations(tmp_path: Path, block_size: int, seed: int) -> None:
    image = make_image(tmp_path, block_size, 32 << 20)
    file, dice = await File.open(image, tmp_path / "merged"), random.Random(seed)
    for number in range(240):
        await file.step(dice, block_size, 600 * block_size)
        if number % 10 == 9:
            await file.check_content()
        if number % 40 == 39:
            await file.check()
    assert not file.refused


@pytest.mark.parametrize("seed", range(2))
async def test_a_full_file_system_stays_whole(tmp_path: Path, seed: int) -> None:
    image = make_image(tmp_path, 1024, 2 << 20, "-m", "0")
    file, dice = await File.open(image, tmp_path / "merged"), random.Random(seed)
    for number in range(300):
        await file.step(dice, 1024, 3000 * 1024, cuts=False)
        if number % 50 == 49:
            await file.check()
    assert file.refused > 20
    await file.truncate(0)
    assert "Blockcount: 0" in await file.check()


async def test_thousands_of_extents(tmp_path: Path) -> None:
    """Splits of nodes on two levels, in random order; holes punched until the tree is in the inode again."""
    image = make_image(tmp_path, 1024, 16 << 20)
    file, dice = await File.open(image, tmp_path / "merged"), random.Random(1)
    for number in scattered(3000, dice):
        await file.write(number * 1024, bytes([number % 251]) * 1024)
    assert await file.levels() == 2
    for number in scattered(3000, dice):
        if number % 12:
            await file.punch(number * 1024, 1024)
    await file.check()
    for start in range(0, 6000, 100):
        await file.punch(start * 1024 + 5, 97 * 1024)
    await file.check()
    await file.truncate(2 * 1024)
    assert await file.levels() <= 1
    await file.truncate(0)
    assert await file.levels() == 0 and "Blockcount: 0" in await file.check()


@pytest.mark.slow
async def test_a_tree_of_three_levels(tmp_path: Path) -> None:
    image = make_image(tmp_path, 1024, 96 << 20)
    file, dice = await File.open(image, tmp_path / "merged"), random.Random(1)
    for number in scattered(30_000, dice):
        await file.write(number * 1024, bytes([number % 251]) * 1024)
    assert await file.levels() == 3
    for number in scattered(30_000, dice):
        await file.write((number + 1) * 1024, bytes([number % 251]) * 1024)
    await file.check()
    await file.truncate(40_000 * 1024)
    await file.check()
    await file.truncate(0)
    assert "Blockcount: 0" in await file.check()


async def test_holes_of_a_file_that_is_in_many_groups_take_few_misses(tmp_path: Path) -> None:
    """A regression: each hole is filled behind the block in front of it, and each group's bitmap was a miss."""
    pieces = 100
    groups = ("-O", "^has_journal,^resize_inode", "-g", "1024", "-N", "1024")
    volume = await Volume.open(MemoryDevice(make_image(tmp_path, 1024, 110 << 20, *groups)), LIMIT)
    ino = (await at(volume, "file")).ino
    for piece in reversed(range(pieces)):
        volume._filesystem.set_goal(ino, 2 * piece, 1024 * (piece + 2) + 600)
        await volume.write(ino, 2 * piece * 1024, bytes([piece]) * 1024, ADMIN)
    scattered = await merged(volume)
    runs = await volume.file_runs(ino, 0, 2 * pieces - 1)
    assert len({run.physical // 1024 for run in runs if run.physical}) == pieces
    for number in range(2):
        file = await File.open(scattered, tmp_path / "image")
        file.content = bytearray(b"".join(bytes([piece]) * 1024 + bytes(1024) for piece in range(pieces)))[:-1024]
        if number:
            await file.write(0, b"new" * 1024 * pieces)
        else:
            await file.allocate(0, 2 * pieces * 1024)
        await file.check()

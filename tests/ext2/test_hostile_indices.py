"""Hostile indices of directories: whatever they hold, every name is found, and none is lost when others are added."""

from __future__ import annotations

import random
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_INDEX_FL
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.volume.runner import MAX_RUNS
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import MemoryDevice, assert_clean, listing, merged
from tests.support.gated_volumes import ROOT as CALLER
from tests.support.indexed_directories import LIMIT, SETS, Directory, open_new

NAMES = 700
SIZE = 1024
ROOT_START, NODE_START = 32, 8


class Indexed:
    """An image with blocks of 1 KiB, and a directory whose index has two levels."""

    def __init__(self, data: bytes | bytearray, ino: int, names: list[bytes], numbers: list[int]) -> None:
        self.data = bytearray(data)
        self.ino = ino
        self.names = names
        self.numbers = numbers
        """The blocks of the directory."""

    def copy(self) -> Indexed:
        return Indexed(self.data, self.ino, self.names, self.numbers)

    def get(self, logical: int, offset: int, layout: str = "<I") -> int:
        """A number in a block of the directory."""
        value: int = struct.unpack_from(layout, self.data, self.numbers[logical] * SIZE + offset)[0]
        return value

    def put(self, logical: int, offset: int, value: int, layout: str = "<I") -> None:
        """Change a number in a block of the directory."""
        struct.pack_into(layout, self.data, self.numbers[logical] * SIZE + offset, value)

    @property
    def node(self) -> int:
        """The first index block below the root."""
        return self.get(0, ROOT_START + 4)

    async def open(self) -> Volume:
        return await Volume.open(MemoryDevice(self.data), LIMIT)


def numbers_of(filesystem: FileSystem, blocks: Blocks, ino: int) -> list[int]:
    inode = filesystem.inode(blocks, ino)
    return map_blocks(filesystem.superblock, blocks, inode, 0, inode.size // SIZE)


async def make(path: Path, *options: str) -> Indexed:
    volume = await open_new(path, *options)
    directory = await Directory.make(volume, b"d", 1)
    for number in range(NAMES):
        await directory.add(b"%0230d" % number)
    data = await merged(volume)
    assert_clean(data, path)
    indexed = Indexed(data, directory.ino, list(directory.names), await volume.run(numbers_of, directory.ino))
    assert indexed.get(0, 30, "B") == 1, "two levels"
    return indexed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    return trio.run(make, tmp_path_factory.mktemp("plain") / "image", *SETS["ext2, 1 KiB"])


def everywhere(value: int, layout: str = "<I") -> Callable[[Indexed], None]:
    """Have all entries of the first index block below the root lead to one block."""

    def change(image: Indexed) -> None:
        for slot in range(image.get(image.node, NODE_START + 2, "<H")):
            image.put(image.node, NODE_START + slot * 8 + 4, value, layout)

    return change


def one_hash(image: Indexed) -> None:
    """Have all leaves continue one and the same hash."""
    for slot in range(1, image.get(image.node, NODE_START + 2, "<H")):
        image.put(image.node, NODE_START + slot * 8, 1)


UNUSABLE: dict[str, Callable[[Indexed], None]] = {
    "hash version 5": lambda image: image.put(0, 28, 5, "B"),
    "SipHash": lambda image: image.put(0, 28, 6, "B"),
    "info_length 0": lambda image: image.put(0, 29, 0, "B"),
    "info_length 255": lambda image: image.put(0, 29, 255, "B"),
    "three levels": lambda image: image.put(0, 30, 2, "B"),
    "255 levels": lambda image: image.put(0, 30, 255, "B"),
    "flags": lambda image: image.put(0, 31, 1, "B"),
    "limit 0": lambda image: image.put(0, ROOT_START, 0, "<H"),
    "limit too high": lambda image: image.put(0, ROOT_START, 125, "<H"),
    "no entries": lambda image: image.put(0, ROOT_START + 2, 0, "<H"),
    "more entries than the limit": lambda image: image.put(0, ROOT_START + 2, 125, "<H"),
    "the root below itself": lambda image: image.put(0, ROOT_START + 4, 0),
    "a node's limit": lambda image: image.put(image.node, NODE_START, 124, "<H"),
    "a node without entries": lambda image: image.put(image.node, NODE_START + 2, 0, "<H"),
    "a node with too many": lambda image: image.put(image.node, NODE_START + 2, 65535, "<H"),
    "a node below itself": lambda image: everywhere(image.node)(image),
    "the root below a node": everywhere(0),
}
BROKEN: dict[str, Callable[[Indexed], None]] = {
    "a node that is a leaf": lambda image: image.put(0, ROOT_START + 4, image.get(image.node, NODE_START + 4)),
    "a node behind the end": lambda image: image.put(0, ROOT_START + 4, 0x0FFFFFFF),
    "leaves behind the end": everywhere(0x0FFFFFFF),
}
MISLEADING: dict[str, Callable[[Indexed], None]] = {
    "as many levels as there are not": lambda image: image.put(0, 30, 0, "B"),
    "one hash": one_hash,
}


@pytest.mark.parametrize("damage", [*UNUSABLE.values(), *BROKEN.values()], ids=[*UNUSABLE, *BROKEN])
async def test_every_name_is_found(plain: Indexed, damage: Callable[[Indexed], None]) -> None:
    image = plain.copy()
    damage(image)
    volume = await image.open()
    assert sorted(await listing(volume, image.ino)) == sorted(image.names)
    for name in image.names[::7]:
        assert await volume.lookup(image.ino, name)
    assert not await volume.lookup(image.ino, b"no such name")


async def test_a_hash_that_goes_on_for_ever_takes_few_misses(plain: Indexed) -> None:
    """A regression: each leaf that is said to have the hash was a miss of its own."""
    name, image = b"no such name", plain.copy()
    name_hash = (await image.open()).superblock.name_hash
    assert name_hash is not None
    image.put(0, ROOT_START + 2, 1, "<H")
    slots = range(1, image.get(image.node, NODE_START + 2, "<H"))
    assert len(slots) > MAX_RUNS
    for slot in slots:
        image.put(image.node, NODE_START + slot * 8, name_hash.of(name_hash.default_version, name) | 1)
    assert await (await image.open()).lookup(image.ino, name) is None
    volume = await image.open()
    inode = await volume.create(image.ino, name, stat.S_IFREG | 0o644, CALLER)
    assert await volume.lookup(image.ino, name) == inode


@pytest.mark.parametrize("damage", UNUSABLE.values(), ids=UNUSABLE)
async def test_an_index_that_the_kernel_does_not_use_is_given_up(
    plain: Indexed, tmp_path: Path, damage: Callable[[Indexed], None]
) -> None:
    image = plain.copy()
    damage(image)
    volume = await image.open()
    # In any case one that the damage is on the way to.
    for number in range(20):
        await volume.create(image.ino, b"new-%d" % number, stat.S_IFREG | 0o644, CALLER)
    names = [*image.names, *(b"new-%d" % number for number in range(20))]
    assert not (await volume.inode(image.ino)).i_flags & EXT2_INDEX_FL
    assert sorted(await listing(volume, image.ino)) == sorted(names)
    for name in names[::7]:
        assert await volume.lookup(image.ino, name)


async def test_with_checksums_a_broken_index_is_an_error(tmp_path: Path) -> None:
    """The kernel's driver does not give it up there: the checksum says that it is an index."""
    image = await make(tmp_path / "image", *SETS["checksums"])
    image.put(image.node, NODE_START + 2, 3, "<H")
    volume = await image.open()
    for name in image.names:
        assert await volume.lookup(image.ino, name)
    failed = 0
    for number in range(20):
        try:
            await volume.create(image.ino, b"new-%d" % number, stat.S_IFREG | 0o644, CALLER)
        except CorruptFilesystem:
            failed += 1
    assert failed
    assert (await volume.inode(image.ino)).i_flags & EXT2_INDEX_FL


@pytest.mark.parametrize("seed", range(30))
async def test_no_name_is_lost(plain: Indexed, seed: int) -> None:
    """Numbers in index blocks at random, and names added, removed and renamed."""
    chance = random.Random(seed)
    image = plain.copy()
    if seed < len(MISLEADING):
        list(MISLEADING.values())[seed](image)
    else:
        index_blocks = 0, image.node, image.get(0, ROOT_START + 12)
        for _ in range(chance.randrange(1, 6)):
            logical = chance.choice(index_blocks)
            offset = chance.choice((24, 28, 29, 30, 32, 34, 36, 8, 10, 12, chance.randrange(8, SIZE)))
            value = chance.choice((0, 1, 2, 0xFF, 0xFFFF, chance.randrange(len(image.numbers)), chance.getrandbits(32)))
            # The dots in front of the root's entries are for the listing.
            image.put(logical, min(max(offset, 24), SIZE - 4) if logical == 0 else min(offset, SIZE - 4), value)
    volume = await image.open()
    names = set(image.names)
    for number in range(60):
        with suppress(MystfuseError, OSError):
            if number % 3 == 2:
                gone = chance.choice(image.names)
                await volume.rename(
                    image.ino, gone, image.ino, b"renamed-%0*d" % (chance.randrange(200), number), 0, CALLER
                )
                names.discard(gone)
            else:
                await volume.create(image.ino, b"new-%0*d" % (chance.randrange(200), number), stat.S_IFREG, CALLER)
    listed = await listing(volume, image.ino)
    assert names <= set(listed)
    assert len(listed) == len(set(listed))
    for name in chance.sample(listed, 50):
        with suppress(MystfuseError):
            await volume.lookup(image.ino, name)

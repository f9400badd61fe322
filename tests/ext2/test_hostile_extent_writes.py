"""Writing to files whose extent trees are broken or malicious, in process: one of our errors in bounded time, and the
file system's own blocks stay what they are."""

from __future__ import annotations

import errno
import random
import struct
import time
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, merged

pytestmark = pytest.mark.logs(r"^mystfuse\.(ext2|volume)")

ADMIN = Caller(0, 0)
BLOCK = 1024
MUTANTS = 120
STEPS = 12
GROUPS = 2
ROOT_NODE = 0
INO = 12
UNWRITTEN = 32768


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file in 300 pieces, whose tree has leaves of its own, and another one."""
    directory = tmp_path_factory.mktemp("hostile-extents")
    tree = directory / "tree"
    tree.mkdir()
    with (tree / "file").open("wb") as file:
        for number in range(300):
            file.seek(2 * number * BLOCK)
            file.write(bytes([number % 256]) * BLOCK)
    (tree / "other").write_bytes(b"other" * 1000)
    image = directory / "image"
    options = ("-b", BLOCK, "-g", 8192, "-N", 64, "-O", "^metadata_csum,^dir_nlink,^64bit,^has_journal")
    run("mke2fs", "-q", "-F", "-t", "ext4", *map(str, options), "-d", tree, image, "10M")
    return image.read_bytes()


class Tree:
    """The tree of a file in an image, to be broken."""

    def __init__(self, image: bytes) -> None:
        self.image = Editor(image)
        self.ino = INO
        self.root = self.image.inode(self.ino) + 40
        _, count, _, depth, _ = struct.unpack_from("<HHHHI", self.image.data, self.root)
        assert (count, depth) == (4, 1)
        self.leaves = [self.image.get("<I", self.root + 12 + 12 * index + 4) for index in range(count)]
        self.own_blocks = [1, 2, *self._own(0), *self._own(1)]

    def _own(self, group: int) -> list[int]:
        return list(struct.unpack_from("<III", self.image.data, self.image.descriptor(group)))

    def put_header(self, number: int, entries: int, most: int, depth: int, magic: int = 0xF30A) -> None:
        self.image.put("<HHHH", self.at(number), magic, entries, most, depth)

    def put_extent(self, number: int, index: int, logical: int, ee_len: int, physical: int) -> None:
        self.image.put("<IHHI", self.at(number) + 12 + 12 * index, logical, ee_len, physical >> 32, physical)

    def put_index(self, number: int, index: int, logical: int, child: int) -> None:
        self.image.put("<IIHH", self.at(number) + 12 + 12 * index, logical, child, 0, 0)

    def at(self, number: int) -> int:
        return number * BLOCK if number else self.root

    def mutate(self, dice: random.Random) -> None:
        number = dice.choice([ROOT_NODE, *self.leaves])
        where = self.at(number)
        kind = dice.randrange(4)
        if kind == 0:
            field = dice.randrange(4)
            self.image.put("<H", where + 2 * field, dice.choice((0, 1, 2, 3, 4, 5, 84, 85, 0xF30A, 0xFFFF)))
            return
        entry = where + 12 + 12 * dice.randrange(4 if number == ROOT_NODE else 84)
        numbers = [*self.own_blocks, *self.leaves, 0, self.image.blocks_count, 0xFFFFFFFF, self.image.blocks_count - 1]
        if kind == 1:
            self.image.put("<I", entry, dice.choice((0, 1, 100, 599, 600, 0xFFFFFFFF, dice.randrange(700))))
        elif kind == 2:
            self.image.put("<I", entry + (4 if number == ROOT_NODE else 8), dice.choice(numbers))
        else:
            self.image.put("<H", entry + 4, dice.choice((0, 2, 5, 300, 32768, 32769, 32770, 0xFFFF)))

    async def open(self) -> Volume:
        volume = await Volume.open(MemoryDevice(bytes(self.image.data)), 32 << 20)
        assert volume.overlay is not None
        return volume

    async def check(self, volume: Volume, what: object) -> None:
        """Other inodes are what they were, and the counts of free blocks as right as before."""
        before, now = self.image, Editor(await merged(volume))
        assert differences(now) == differences(before), what
        for ino in range(1, before.inodes_count + 1):
            if ino not in (self.ino, ROOT):
                start = before.inode(ino)
                assert now.inode(ino) == start
                size = before.inode_size
                assert now.data[start : start + size] == before.data[start : start + size], (what, ino)
        assert now.data[1024 + 24 : 1024 + 48] == before.data[1024 + 24 : 1024 + 48], what


def differences(image: Editor) -> list[int]:
    """How many more blocks are free by each group's bitmap than by its count."""
    found: list[int] = []
    for group in range(GROUPS):
        (bitmap,) = struct.unpack_from("<I", image.data, image.descriptor(group))
        (count,) = struct.unpack_from("<H", image.data, image.descriptor(group) + 12)
        (flags,) = struct.unpack_from("<H", image.data, image.descriptor(group) + 18)
        size = min(8192, image.blocks_count - image.first_data_block - 8192 * group)
        bits = int.from_bytes(image.data[bitmap * BLOCK : bitmap * BLOCK + size // 8 + 1], "little") % (1 << size)
        found.append(0 if flags & 2 else size - bits.bit_count() - count)
    return found


async def outcome(volume: Volume, ino: int, dice: random.Random) -> str:
    """A random operation: ``done``, or its error, and then nothing has changed."""
    offset, length = dice.randrange(700 * BLOCK), dice.choice((1, BLOCK, 3 * BLOCK, 50 * BLOCK))
    operation = dice.choice(
        (
            lambda: volume.write(ino, offset, bytes(length), ADMIN),
            lambda: volume.write(ino, offset // BLOCK * BLOCK, bytes(BLOCK), ADMIN),
            lambda: volume.set_attributes(ino, AttributeChanges(size=offset), ADMIN),
            lambda: file_space.punch(volume, ino, offset, length, ADMIN),
            lambda: file_space.allocate(volume, ino, offset, length, False, False, ADMIN),
            lambda: file_space.allocate(volume, ino, offset, length, True, True, ADMIN),
        )
    )
    try:
        await operation()
    except CorruptFilesystem:
        return "EUCLEAN"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


async def test_mutated_trees(pristine: bytes) -> None:
    counts: dict[str, int] = {}
    began = time.monotonic()
    for seed in range(MUTANTS):
        dice, tree = random.Random(seed), Tree(pristine)
        for _ in range(dice.choice((1, 1, 2, 5))):
            tree.mutate(dice)
        volume = await tree.open()
        for _ in range(STEPS):
            result = await outcome(volume, tree.ino, dice)
            counts[result] = counts.get(result, 0) + 1
        await volume.remove(ROOT, b"file", False)
        await volume.release(tree.ino)
        await tree.check(volume, seed)
    assert counts.keys() <= {"done", "EUCLEAN", "ENOSPC"}
    assert min(counts["done"], counts["EUCLEAN"]) > MUTANTS
    assert time.monotonic() - began < 60


async def assert_corrupt(tree: Tree, *blocks: int, unwritten: bool = False) -> None:
    """These blocks of the file are not written, zeroed, punched or freed."""
    volume = await tree.open()
    before = volume.changes
    for block in blocks:
        for number, write in enumerate(
            (
                volume.write(tree.ino, block * BLOCK, b"x", ADMIN),
                volume.write(tree.ino, block * BLOCK, bytes(2 * BLOCK), ADMIN),
                file_space.punch(volume, tree.ino, block * BLOCK, BLOCK, ADMIN),
                volume.set_attributes(tree.ino, AttributeChanges(size=block * BLOCK), ADMIN),
                file_space.allocate(volume, tree.ino, block * BLOCK, BLOCK, True, True, ADMIN),
            )
        ):
            if number == 4 and unwritten:
                # They count as zeros already.
                await write
                continue
            with pytest.raises(CorruptFilesystem):
                await write
        if unwritten:
            before = volume.changes
    assert volume.changes == before
    await tree.check(volume, blocks)


async def test_extents_of_metadata_are_neither_written_through_nor_freed(pristine: bytes) -> None:
    for number in Tree(pristine).own_blocks[1:]:
        for unwritten in (0, UNWRITTEN):
            tree = Tree(pristine)
            tree.put_header(ROOT_NODE, 1, 4, 0)
            tree.put_extent(ROOT_NODE, 0, 0, 1 + unwritten, number)
            await assert_corrupt(tree, 0, unwritten=bool(unwritten))


async def test_nodes_that_are_metadata_are_not_changed(pristine: bytes) -> None:
    """A node in a bitmap: its bytes make a leaf."""
    tree = Tree(pristine)
    (bitmap,) = struct.unpack_from("<I", tree.image.data, tree.image.descriptor(0))
    tree.put_header(bitmap, 1, 84, 0)
    tree.put_extent(bitmap, 0, 0, 3, 9000)
    tree.put_header(ROOT_NODE, 1, 4, 1)
    tree.put_index(ROOT_NODE, 0, 0, bitmap)
    volume = await tree.open()
    for operation in (
        volume.write(tree.ino, 0, b"x", ADMIN),
        volume.write(tree.ino, 100 * BLOCK, b"x", ADMIN),
        file_space.punch(volume, tree.ino, 0, BLOCK, ADMIN),
        volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN),
    ):
        with pytest.raises(CorruptFilesystem):
            await operation


async def test_loops_and_nodes_of_the_wrong_depth_end(pristine: bytes) -> None:
    for depth, child_depth in ((1, 1), (2, 1), (5, 5), (6, 0), (1, 5)):
        tree = Tree(pristine)
        loop = tree.leaves[0]
        tree.put_header(ROOT_NODE, 1, 4, depth)
        tree.put_index(ROOT_NODE, 0, 0, loop)
        tree.put_header(loop, 1, 84, child_depth)
        tree.put_index(loop, 0, 0, loop)
        await assert_corrupt(tree, 0, 200)


async def test_a_leaf_that_the_tree_has_twice_is_freed_once(pristine: bytes) -> None:
    tree = Tree(pristine)
    tree.put_header(ROOT_NODE, 2, 4, 1)
    tree.put_index(ROOT_NODE, 1, 1000, tree.leaves[0])
    volume = await tree.open()
    with pytest.raises(CorruptFilesystem):
        await volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN)
    assert not volume.changes


async def test_blocks_that_the_file_has_twice_are_not_freed(pristine: bytes) -> None:
    tree = Tree(pristine)
    tree.put_header(ROOT_NODE, 2, 4, 0)
    for index in range(2):
        tree.put_extent(ROOT_NODE, index, 5 * index, 5, 9000)
    volume = await tree.open()
    for operation in (
        volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN),
        file_space.punch(volume, tree.ino, 0, 20 * BLOCK, ADMIN),
    ):
        with pytest.raises(CorruptFilesystem):
            await operation
    assert not volume.changes


async def test_extents_that_overlap(pristine: bytes) -> None:
    tree = Tree(pristine)
    tree.put_header(ROOT_NODE, 2, 4, 0)
    tree.put_extent(ROOT_NODE, 0, 0, 10, 9000)
    tree.put_extent(ROOT_NODE, 1, 5, 10, 9100)
    volume = await tree.open()
    for operation in (
        volume.write(tree.ino, 2 * BLOCK, bytes(10 * BLOCK), ADMIN),
        file_space.punch(volume, tree.ino, 2 * BLOCK, 2 * BLOCK, ADMIN),
        volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN),
    ):
        with pytest.raises(CorruptFilesystem):
            await operation
    assert not volume.changes


async def test_empty_leaves_are_freed(pristine: bytes) -> None:
    """Only other drivers leave them; and nodes with less room than there is."""
    tree = Tree(pristine)
    lost = sum(tree.image.get("<H", tree.at(tree.leaves[index]) + 2) for index in (0, 3)) - 2
    tree.put_header(tree.leaves[3], 0, 84, 0)
    tree.put_header(tree.leaves[0], 2, 2, 0)
    volume = await tree.open()
    await volume.write(tree.ino, 5 * BLOCK, b"x", ADMIN)
    assert bytes(await volume.read(tree.ino, 5 * BLOCK, 2)) == b"x\0"
    await volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN)
    assert (await at(volume, "file")).i_blocks == 2 * lost


async def test_a_file_cannot_be_deeper_than_five_levels(pristine: bytes, tmp_path: Path) -> None:
    """Nodes of four levels and a leaf, all full: no room, and nothing changes."""
    tree = Tree(pristine)
    numbers = list(range(9000, 9005))
    for level, number in enumerate(numbers):
        tree.put_header(number, 84, 84, level)
        for index in range(84):
            if level:
                tree.put_index(number, index, index, numbers[level - 1] if not index else 9100)
            else:
                tree.put_extent(number, index, 0 if not index else 100 + index, 1, 9200 + 2 * index)
    tree.put_header(ROOT_NODE, 4, 4, 5)
    for index in range(4):
        tree.put_index(ROOT_NODE, index, 1000 * index, numbers[-1] if not index else 9100)
    volume = await tree.open()
    with pytest.raises(CorruptFilesystem):
        await volume.write(tree.ino, 50 * BLOCK, b"x", ADMIN)
    assert not volume.changes


async def test_index_nodes_of_one_entry_each_take_few_misses(pristine: bytes) -> None:
    """Each extent of the file has five nodes of its own, but the uppermost: all operations end, and all is freed."""
    tree = Tree(pristine)
    fields = [struct.unpack_from("<I", tree.image.data, tree.at(leaf) + 20 + 12 * index)[0] for leaf in tree.leaves
              for index in range(tree.image.get("<H", tree.at(leaf) + 2))]  # fmt: skip
    spare, top = iter(sorted(fields)), tree.leaves[0]
    chains = 50
    for chain in range(chains):
        child = next(spare)
        for level in range(4):
            node = next(spare)
            tree.put_header(node, 1, 84, level)
            if level:
                tree.put_index(node, 0, 2 * chain, child)
            else:
                tree.put_extent(node, 0, 2 * chain, 1, child)
            child = node
        tree.put_index(top, chain, 2 * chain, child)
    tree.put_header(top, chains, 84, 4)
    tree.put_header(ROOT_NODE, 1, 4, 5)
    tree.put_index(ROOT_NODE, 0, 0, top)
    for operation in (
        lambda volume: volume.write(tree.ino, 0, bytes(2 * chains * BLOCK), ADMIN),
        lambda volume: file_space.punch(volume, tree.ino, BLOCK, 2 * chains * BLOCK, ADMIN),
        lambda volume: file_space.allocate(volume, tree.ino, 0, 2 * chains * BLOCK, False, False, ADMIN),
        lambda volume: volume.set_attributes(tree.ino, AttributeChanges(size=0), ADMIN),
    ):
        await operation(await tree.open())
    volume = await tree.open()
    free = (await volume.statistics()).free_blocks
    await volume.remove(ROOT, b"file", False)
    await volume.release(tree.ino)
    assert (await volume.statistics()).free_blocks == free + 5 * chains + 1

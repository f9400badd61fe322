"""Hostile superblocks and group tables, and random damage anywhere: one of our errors, in bounded time."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from mystfuse.errors import CorruptFilesystem, FormatError, IntegrityError, MystfuseError, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, listing, walk
from tests.support.hostile_ext2 import MANY, number_of

FUZZ_MUTANTS = 500
FUZZ_SECONDS = 25.0


async def test_the_unedited_image_is_read_without_a_failure(image: Editor) -> None:
    volume = await image.open()
    seen, failures = await walk(volume)
    assert seen == len({b"/", b"lost+found", b"dir", b"many", b"file", b"large", b"fast", b"slow", b"fifo"}) + 3
    assert failures == 0
    assert await listing(volume, number_of(image, b"dir")) == [b"first", b"second", b"third"]
    assert len(set(await listing(volume, number_of(image, b"many")))) == MANY


async def test_a_damaged_superblock_is_reported_on_opening(image: Editor) -> None:
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
    """A sparse file can have any size."""
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
    """The places of the metadata; the important bytes of each one by one."""
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


@pytest.mark.logs(r"^mystfuse\.ext2")
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

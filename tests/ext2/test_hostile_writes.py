"""Changing a broken or malicious file system, in process: one of our errors, in bounded time, and never a crash."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from collections.abc import Awaitable
from functools import partial
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.fuzz.images import SparseDevice, load
from tests.fuzz.mutator import layout
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, make_image, merged
from tests.support.failed_operations import operate

pytestmark = pytest.mark.logs(r"^mystfuse\.(ext2|volume)")

ADMIN = Caller(0, 0)
LIMIT = 32 << 20
MUTANTS = 400
STEPS = 30


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system of four groups with something of everything."""
    directory = tmp_path_factory.mktemp("hostile-writes")
    source = directory / "source"
    (source / "many").mkdir(parents=True)
    (source / "dir/sub").mkdir(parents=True)
    for number in range(120):
        (source / f"many/a-name-of-some-length-{number:04}").touch()
    (source / "file").write_bytes(b"file" * 300)
    (source / "large").write_bytes(b"L" * 600_000)
    os.link(source / "file", source / "dir/hard")
    (source / "slow").symlink_to("x" * 100)
    (source / "fast").symlink_to("short")
    os.setxattr(source / "large", "user.big", b"v" * 400)
    os.setxattr(source / "file", "user.small", b"v")
    run("setfacl", "-d", "-m", "u:1234:rx", source / "dir")
    path = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-g", "1024", "-N", "512", "-d", source, path, "4M")
    return path.read_bytes()


@pytest.fixture
def image(pristine: bytes) -> Editor:
    return Editor(pristine)


async def open_volume(image: Editor) -> Volume:
    return await Volume.open(MemoryDevice(bytes(image.data)), LIMIT)


async def number_of(volume: Volume, name: bytes, parent: int = ROOT) -> int:
    inode = await volume.lookup(parent, name)
    assert inode is not None
    return inode.ino


def accounts(data: bytes) -> list[tuple[int, int]]:
    """For each group, how many more blocks and inodes are free by its bitmaps than by its counts; last, by the counts
    of all groups than by the superblock's. All are zeros unless the image was broken, and no operation changes them."""
    image = Editor(data)
    differences: list[tuple[int, int]] = []
    totals = [0, 0]
    for group in range(4):
        block_bitmap, inode_bitmap = struct.unpack_from("<II", image.data, image.descriptor(group))
        counts = struct.unpack_from("<HH", image.data, image.descriptor(group) + 12)
        blocks = min(1024, image.blocks_count - image.first_data_block - 1024 * group)
        free = [
            size - (int.from_bytes(image.data[number * 1024 :][: size // 8 + 1], "little") % (1 << size)).bit_count()
            for number, size in ((block_bitmap, blocks), (inode_bitmap, image.inodes_per_group))
        ]
        differences.append((free[0] - counts[0], free[1] - counts[1]))
        totals = [totals[0] + counts[0], totals[1] + counts[1]]
    free_blocks, free_inodes = struct.unpack_from("<II", image.data, 1024 + 12)
    return [*differences, (totals[0] - free_blocks, totals[1] - free_inodes)]


def assert_accounts_of(image: Editor, volume: Volume, what: object) -> None:
    """The counts of free blocks and inodes are as far off as before."""
    assert volume.overlay is not None
    now = bytearray(image.data)
    for number in range(image.blocks_count):
        if (block := volume.overlay.get(number)) is not None:
            assert isinstance(block, bytes)
            now[number * 1024 : number * 1024 + 1024] = block
    before, after = accounts(bytes(image.data)), accounts(bytes(now))
    assert after[:-1] == before[:-1], what
    for field, most in enumerate((image.blocks_count, image.inodes_count)):
        # The superblock's counts stay within the totals; a count that was larger has become the total.
        if image.get("<I", 1024 + 12 + 4 * field) <= most != struct.unpack_from("<I", now, 1024 + 12 + 4 * field)[0]:
            assert after[-1][field] == before[-1][field], what


async def outcome(operation: Awaitable[object], volume: Volume) -> str:
    """``done``, or the error of an operation that changed nothing."""
    before = volume.changes
    try:
        await operation
    except CorruptFilesystem:
        result = "EUCLEAN"
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    else:
        return "done"
    assert volume.changes == before, result
    return result


async def assert_corrupt(operation: Awaitable[object], volume: Volume) -> None:
    before = volume.changes
    with pytest.raises(CorruptFilesystem):
        await operation
    assert volume.changes == before


def edit_inode(image: Editor, ino: int, layout: str, offset: int, *values: int) -> None:
    struct.pack_into(layout, image.data, image.inode(ino) + offset, *values)


async def test_a_pointer_into_metadata_is_neither_written_through_nor_freed(image: Editor) -> None:
    volume = await open_volume(image)
    ino = await number_of(volume, b"file")
    table = image.inode(ROOT) // 1024
    edit_inode(image, ino, "<I", 40, table)
    volume = await open_volume(image)
    await assert_corrupt(volume.write(ino, 0, b"overwritten", ADMIN), volume)
    await assert_corrupt(volume.set_attributes(ino, AttributeChanges(size=0), ADMIN), volume)
    assert (await volume.inode(ROOT)).is_directory


async def test_a_block_of_two_files_is_freed_once(image: Editor) -> None:
    volume = await open_volume(image)
    ino, other = await number_of(volume, b"file"), await number_of(volume, b"large")
    edit_inode(image, ino, "<I", 40, image.get("<I", image.pointer(other, 0)))
    volume = await open_volume(image)
    await volume.set_attributes(other, AttributeChanges(size=0), ADMIN)
    await assert_corrupt(volume.set_attributes(ino, AttributeChanges(size=0), ADMIN), volume)
    assert_accounts_of(image, volume, "freed twice")


async def test_a_file_that_has_a_block_twice_is_not_freed(image: Editor) -> None:
    volume = await open_volume(image)
    ino = await number_of(volume, b"file")
    edit_inode(image, ino, "<I", 44, image.get("<I", image.pointer(ino, 0)))
    volume = await open_volume(image)
    await assert_corrupt(volume.set_attributes(ino, AttributeChanges(size=0), ADMIN), volume)


async def test_an_indirect_block_that_is_its_own_child_ends(image: Editor) -> None:
    volume = await open_volume(image)
    ino = await number_of(volume, b"large")
    indirect = image.get("<I", image.pointer(ino, 12))
    struct.pack_into("<256I", image.data, image.block(ino, 12), *[indirect] * 256)
    edit_inode(image, ino, "<III", 40 + 48, indirect, indirect, indirect)
    volume = await open_volume(image)
    await assert_corrupt(volume.set_attributes(ino, AttributeChanges(size=0), ADMIN), volume)


LINK_COUNTS = {
    # An inode with 0 links is not in use: no operation changes it.
    0: ["EUCLEAN", "EUCLEAN", "EUCLEAN", "EUCLEAN", "EUCLEAN", "ENOENT"],
    # Removing the first of two names frees the inode.
    1: ["done", "done", "done", "EUCLEAN", "done", "ENOTEMPTY"],
    # EMLINK: the directory may have no more subdirectories.
    32000: ["EMLINK", "done", "done", "done", "done", "done"],
    65535: ["EMLINK", "done", "done", "done", "done", "done"],
}


@pytest.mark.parametrize("links", LINK_COUNTS)
async def test_impossible_link_counts(image: Editor, links: int) -> None:
    volume = await open_volume(image)
    for name in (b"file", b"dir"):
        edit_inode(image, await number_of(volume, name), "<H", 26, links)
    volume = await open_volume(image)
    directory = next(entry.ino for entry, _ in (await volume.entries(ROOT, 0, 100))[0] if entry.name == b"dir")
    outcomes = [
        await outcome(operation, volume)
        for operation in (
            volume.create(directory, b"new", stat.S_IFDIR | 0o755, ADMIN),
            volume.rename(ROOT, b"dir", ROOT, b"other", 0, ADMIN),
            volume.remove(ROOT, b"file", False),
            volume.remove(directory, b"hard", False),
            volume.remove(directory, b"sub", True),
            volume.remove(ROOT, b"other", True),
        )
    ]
    assert outcomes == LINK_COUNTS[links]
    for orphan in list(volume.orphans):
        await volume.release(orphan)
    assert not volume.orphans
    assert_accounts_of(image, volume, links)


async def test_counts_and_bitmaps_that_lie_end_in_errors(image: Editor) -> None:
    """The counts say that everything is free while nothing is, and the reverse."""
    for (free, fill), (made, is_freed) in {
        (0xFFFF, 0xFF): ("ENOSPC", False),
        (0, 0): ("ENOSPC", False),
        (0xFFFF, 0): ("EUCLEAN", False),
        (5, 0xFF): ("ENOSPC", True),
    }.items():
        edited = Editor(bytes(image.data))
        struct.pack_into("<II", edited.data, 1024 + 12, free, free)
        for group in range(4):
            descriptor = 2048 + 32 * group
            block_bitmap, inode_bitmap = struct.unpack_from("<II", edited.data, descriptor)
            struct.pack_into("<HHH", edited.data, descriptor + 12, free, free, free)
            for number in (block_bitmap, inode_bitmap):
                edited.data[number * 1024 : number * 1024 + 1024] = bytes([fill]) * 1024
        volume = await open_volume(edited)
        for operation, expected in (
            (volume.create(ROOT, b"new", stat.S_IFREG | 0o644, ADMIN), made),
            (volume.create(ROOT, b"newdir", stat.S_IFDIR | 0o755, ADMIN), made),
            (volume.remove(ROOT, b"large", False), "done"),
        ):
            assert await outcome(operation, volume) == expected, (free, fill)
        for orphan in list(volume.orphans):
            await volume.release(orphan)
        # An inode with blocks that are not safe to free stays whole: its name is removed, and its space is lost.
        assert bool(volume.orphans) != is_freed, (free, fill)
        assert_accounts_of(edited, volume, (free, fill))


async def test_no_inode_in_use_is_given_away(image: Editor) -> None:
    """The bitmap says that the inode of a file is free: a new file must not get it."""
    volume = await open_volume(image)
    ino = await number_of(volume, b"file")
    bitmap = struct.unpack_from("<I", image.data, 2048 + 4)[0] * 1024
    image.data[bitmap + (ino - 1) // 8] &= ~(1 << (ino - 1) % 8)
    image.put("<H", 2048 + 14, image.get("<H", 2048 + 14) + 1)
    volume = await open_volume(image)
    assert (await volume.inode(ino)).size == 1200
    for number in range(200):
        made = await volume.create(ROOT, b"n%d" % number, stat.S_IFREG | 0o644, ADMIN)
        assert made.ino != ino
    assert (await volume.inode(ino)).size == 1200


async def test_a_directory_block_that_is_overwritten_as_a_file_has_no_room(image: Editor) -> None:
    """A regression: names longer than their entries left less than no room."""
    volume = await open_volume(image)
    file, many = await number_of(volume, b"file"), await number_of(volume, b"many")
    edit_inode(image, file, "<I", 40, image.get("<I", image.pointer(many, 4)))
    volume = await open_volume(image)
    assert await volume.lookup(many, b"a-name-of-some-length-0000") is not None
    entries = [struct.pack("<IHBB4s", file, 12, 255, 1, b"long")] * 84
    await volume.write(file, 0, b"".join(entries) + struct.pack("<IHBB8x", file, 16, 255, 1), ADMIN)
    for number in range(20):
        made = await volume.create(many, b"%0250d" % number, stat.S_IFREG | 0o644, ADMIN)
        found = await volume.lookup(many, b"%0250d" % number)
        assert found is not None and found.ino == made.ino
    assert_accounts_of(image, volume, "names in a block that is a file's, too")


def metadata_positions(image: Editor, volume_inodes: list[int]) -> list[range]:
    ranges = [range(1024, 1024 + 104), range(2048, 2048 + 4 * 32)]
    for group in range(4):
        block_bitmap, inode_bitmap, table = struct.unpack_from("<III", image.data, 2048 + 32 * group)
        ranges += [
            range(block_bitmap * 1024, block_bitmap * 1024 + 128),
            range(inode_bitmap * 1024, inode_bitmap * 1024 + 16),
        ]
        ranges.append(range(table * 1024, table * 1024 + 20 * 256))
    for ino in volume_inodes:
        ranges += [range(image.inode(ino), image.inode(ino) + 256)] * 2
    return ranges


async def test_random_damage_gives_errors_of_ours_in_bounded_time(pristine: bytes) -> None:
    original = Editor(pristine)
    volume = await open_volume(original)
    inodes = [ROOT, *[await number_of(volume, name) for name in (b"dir", b"many", b"file", b"large", b"slow")]]
    ranges = metadata_positions(original, inodes)
    for ino in (inodes[0], inodes[1], inodes[2]):
        ranges.append(range(original.block(ino), original.block(ino) + 300))
    ranges.append(range(original.block(inodes[4], 12), original.block(inodes[4], 12) + 200))
    changed = failed = refused = unreadable = 0
    for seed in range(MUTANTS):
        source = random.Random(seed)
        data = bytearray(pristine)
        for _ in range(source.choice((1, 2, 4, 16))):
            position = source.choice(source.choice(ranges))
            data[position] = source.choice((0, 0xFF, data[position] ^ 1 << source.randrange(8), source.randrange(256)))
        try:
            volume = await Volume.open(MemoryDevice(bytes(data)), LIMIT)
        except MystfuseError:
            refused += 1
            continue
        if volume.overlay is None:
            # With a feature that we can only read.
            refused += 1
            continue
        failed += await operate(volume, partial(random_operation, volume, source, inodes), STEPS, f"seed {seed}")
        changed += volume.changes
        try:
            after = await merged(volume)
        except MystfuseError:
            unreadable += 1
            continue
        assert len(after) == len(data)
        assert_accounts_of(Editor(data), volume, f"seed {seed}")
    print(f"\n{changed} changes, {failed} failures, {refused} not opened, {unreadable} not read as a whole")
    assert changed > MUTANTS * 5 and failed > MUTANTS
    assert refused + unreadable < MUTANTS // 2


async def random_operation(volume: Volume, source: random.Random, inodes: list[int]) -> None:
    directory = source.choice(inodes[:3])
    other = source.choice(inodes[:3])
    names = [b"dir", b"many", b"file", b"large", b"slow", b"fast", b"hard", b"sub", b"new", b"new2", b"a" * 200]
    names.append(b"a-name-of-some-length-%04d" % source.randrange(120))
    name, second = source.choice(names), source.choice(names)
    ino = source.choice(inodes)
    match source.randrange(11):
        case 0:
            mode = source.choice((stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFCHR | 0o600))
            await volume.create(directory, name, mode, ADMIN)
        case 1:
            await volume.create(directory, name, stat.S_IFLNK | 0o777, ADMIN, target=b"t" * source.choice((5, 300)))
        case 2:
            await volume.remove(directory, name, source.random() < 0.4)
        case 3:
            await volume.rename(directory, name, other, second, source.choice((0, 0, 1, 2)), ADMIN)
        case 4:
            await volume.link(ino, directory, name, ADMIN)
        case 5 | 6:
            offset = source.choice((0, 1000, 12 * 1024 - 5, 300_000, (12 + 256 + 65536) * 1024 - 3))
            await volume.write(ino, offset, b"w" * source.choice((1, 1500, 100_000)), ADMIN)
        case 7:
            size = source.choice((0, 100, 13 * 1024, 280 * 1024, 1 << 30))
            await volume.set_attributes(ino, AttributeChanges(size=size), ADMIN)
        case 8:
            await volume.set_xattr(ino, b"user.x", b"v" * source.choice((1, 50, 500)), ADMIN)
        case 9:
            await volume.remove_xattr(ino, source.choice((b"user.x", b"user.big", b"user.small")), ADMIN)
        case 10:
            changes = AttributeChanges(mode=source.randrange(0o10000), uid=source.randrange(1 << 32), mtime_ns=-1)
            await volume.set_attributes(ino, changes, ADMIN)


async def test_inode_bitmaps_that_are_all_wrong_are_reported_after_a_few(tmp_path: Path) -> None:
    """Each group's bitmap says that its first inode, which is in use, is free: no operation tries all groups."""
    path = make_image(tmp_path / "image", "-b", "1024", "-g", "256", "-N", "800", "-O", "^resize_inode", size="25M")
    image = Editor(path.read_bytes())
    groups = image.blocks_count // 256
    assert groups > 90
    for group in range(groups):
        first = group * image.inodes_per_group + (11 if group == 0 else 1)
        image.put("<H", image.inode(first) + 26, 1)
        bitmap = image.get("<I", image.descriptor(group) + 4) * 1024
        image.data[bitmap : bitmap + 1024] = bytes(1024)
        image.put("<H", image.descriptor(group) + 14, 8)
    image.put("<I", 1024 + 16, 8 * groups)
    for mode in stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755:
        volume = await open_volume(image)
        with pytest.raises(CorruptFilesystem, match="inode bitmaps of 8 groups are wrong"):
            await volume.create(ROOT, b"new", mode, ADMIN)
        assert volume.changes == 0


@pytest.mark.parametrize(("free_blocks", "free_inodes"), [(1, 0), (0, 1)])
async def test_a_search_for_room_that_the_counts_promise_in_vain_ends(free_blocks: int, free_inodes: int) -> None:
    """Blocks of 64 KiB in thousands of groups, all full, though their counts say otherwise: an operation does not read
    all bitmaps."""
    image, place = load("large").copy(), layout("large")
    block, per_group, groups = 65536, 128, 4000
    image.size = per_group * groups * block
    inodes_per_group = place.superblock.s_inodes_per_group
    image.put(1024, struct.pack("<II", groups * inodes_per_group, per_group * groups))
    image.put(1024 + 12, struct.pack("<II", 5000, 5000))
    image.put(1024 + 32, struct.pack("<III", per_group, per_group, inodes_per_group))
    image.put(block + 12, struct.pack("<HHH", 0, 0, 0))
    for group in range(1, groups):
        start = group * per_group + 3
        image.put(block + 32 * group, struct.pack("<IIIHHH", start, start + 1, start + 2, free_blocks, free_inodes, 0))
        for number in start, start + 1:
            image.put(number * block, b"\xff" * (inodes_per_group // 8))
    device = SparseDevice(image)
    volume = await Volume.open(device, LIMIT)
    sparse = await number_of(volume, b"sparse")
    for operation in (
        volume.create(ROOT, b"new", stat.S_IFREG | 0o644, ADMIN),
        volume.create(ROOT, b"newdir", stat.S_IFDIR | 0o755, ADMIN),
        volume.write(sparse, 0, bytes(1 << 20), ADMIN),
    ):
        with pytest.raises(OSError, match="no free"):
            await operation
        assert device.bytes_read < 40 << 20
    assert volume.changes == 0

"""Changing a broken or malicious file system: an error of ours, in bounded time, and never a crash; in process."""

from __future__ import annotations

import os
import random
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from conftest import run
from ext2_editor import ROOT, Editor, MemoryDevice, make_image
from fuzz.images import SparseDevice, load
from fuzz.mutator import layout

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.allocation import Caller
from mystfuse.ext2.attributes import AttributeChanges
from mystfuse.volume import Volume

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


@pytest.mark.parametrize("links", [0, 1, 32000, 65535])
async def test_link_counts_that_cannot_be(image: Editor, links: int) -> None:
    volume = await open_volume(image)
    for name in (b"file", b"dir"):
        edit_inode(image, await number_of(volume, name), "<H", 26, links)
    volume = await open_volume(image)
    directory = next(entry.ino for entry, _ in (await volume.entries(ROOT, 0, 100))[0] if entry.name == b"dir")
    operations: list[Callable[[], Awaitable[object]]] = [
        lambda: volume.create(directory, b"new", stat.S_IFDIR | 0o755, ADMIN),
        lambda: volume.rename(ROOT, b"dir", ROOT, b"other", 0, ADMIN),
        lambda: volume.remove(ROOT, b"file", False),
        lambda: volume.remove(directory, b"hard", False),
        lambda: volume.remove(directory, b"sub", True),
        lambda: volume.remove(ROOT, b"other", True),
    ]
    for operation in operations:
        try:
            await operation()
        except (OSError, MystfuseError):
            continue
    for orphan in list(volume.orphans):
        await volume.release(orphan)


async def test_counts_and_bitmaps_that_lie_end_in_errors(image: Editor) -> None:
    """Everything is said to be free while nothing is, and the other way round."""
    for free, fill in ((0xFFFF, 0xFF), (0, 0), (0xFFFF, 0), (5, 0xFF)):
        edited = Editor(bytes(image.data))
        struct.pack_into("<II", edited.data, 1024 + 12, free, free)
        for group in range(4):
            descriptor = 2048 + 32 * group
            block_bitmap, inode_bitmap = struct.unpack_from("<II", edited.data, descriptor)
            struct.pack_into("<HHH", edited.data, descriptor + 12, free, free, free)
            for number in (block_bitmap, inode_bitmap):
                edited.data[number * 1024 : number * 1024 + 1024] = bytes([fill]) * 1024
        volume = await open_volume(edited)
        for operation in (
            volume.create(ROOT, b"new", stat.S_IFREG | 0o644, ADMIN),
            volume.create(ROOT, b"newdir", stat.S_IFDIR | 0o755, ADMIN),
            volume.remove(ROOT, b"large", False),
        ):
            try:
                await operation
            except (OSError, MystfuseError):
                continue
        for orphan in list(volume.orphans):
            await volume.release(orphan)


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
    """Found once: names longer than their entries left less than no room."""
    volume = await open_volume(image)
    file, many = await number_of(volume, b"file"), await number_of(volume, b"many")
    edit_inode(image, file, "<I", 40, image.get("<I", image.pointer(many, 4)))
    volume = await open_volume(image)
    assert await volume.lookup(many, b"a-name-of-some-length-0000") is not None
    entries = [struct.pack("<IHBB4s", file, 12, 255, 1, b"long")] * 84
    await volume.write(file, 0, b"".join(entries) + struct.pack("<IHBB8x", file, 16, 255, 1), ADMIN)
    for number in range(20):
        await volume.create(many, b"%0250d" % number, stat.S_IFREG | 0o644, ADMIN)


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
    changed = failed = 0
    for seed in range(MUTANTS):
        source = random.Random(seed)
        data = bytearray(pristine)
        for _ in range(source.choice((1, 2, 4, 16))):
            position = source.choice(source.choice(ranges))
            data[position] = source.choice((0, 0xFF, data[position] ^ 1 << source.randrange(8), source.randrange(256)))
        try:
            volume = await Volume.open(MemoryDevice(bytes(data)), LIMIT)
        except MystfuseError:
            continue
        for step in range(STEPS):
            started = time.process_time()
            try:
                await random_operation(volume, source, inodes)
            except (OSError, MystfuseError):
                failed += 1
            except Exception as error:
                error.add_note(f"seed {seed}, step {step}")
                raise
            assert time.process_time() - started < 2, f"seed {seed}, step {step}"
        for orphan in list(volume.orphans):
            await volume.release(orphan)
        changed += volume.changes
        try:
            merged = await volume.open_image()
            await merged.read(0, merged.size)
            merged.close()
        except MystfuseError:
            continue
    assert changed > MUTANTS * 5 and failed > MUTANTS


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


async def test_inode_bitmaps_that_are_all_wrong_are_told_after_a_few(tmp_path: Path) -> None:
    """Each group's bitmap says that its first inode is free, which is in use: no operation goes through all groups."""
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
    """Blocks of 64 KiB in thousands of groups, all full, whatever their counts say: not all bitmaps are read."""
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

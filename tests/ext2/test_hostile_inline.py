"""Changing inodes whose own contents, or whose references to values of attributes, are broken: one of our errors, and
never a write over something else."""

from __future__ import annotations

import os
import random
import stat
import struct
from functools import partial
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, debugfs, kernel_mount, merged
from tests.support.ext4_pairs import ADMIN
from tests.support.failed_operations import operate

pytestmark = pytest.mark.logs(r"^mystfuse\.(ext2|volume)")

LIMIT = 32 << 20
MUTANTS, STEPS = 250, 20
PLAIN = "^metadata_csum,^metadata_csum_seed,^uninit_bg,^64bit,^flex_bg,^extent,^has_journal,^orphan_file,^dir_nlink"
BODY, MAGIC_SIZE, REFCOUNT, MODE, FLAGS = 160, 4, 36, 0, 32
VALUE = b"a value" * 500


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Made by the kernel: files and directories in inodes, full and half full, and values in inodes of their own."""
    path, mountpoint = (tmp_path_factory.mktemp("inline") / name for name in ("image", "mount"))
    options = ("-O", f"inline_data,ea_inode,{PLAIN}", "-I", "256", "-b", "1024", "-N", "256")
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, path, "2M")
    with kernel_mount(path, mountpoint, "rw"):
        (mountpoint / "short").write_bytes(b"short")
        (mountpoint / "long").write_bytes(b"l" * 120)
        (mountpoint / "plain").write_bytes(b"p" * 5000)
        for directory, count in (("few", 2), ("more", 7), ("many", 60)):
            (mountpoint / directory).mkdir()
            for number in range(count):
                (mountpoint / directory / f"{number:02}").touch()
        (mountpoint / "few/sub").mkdir()
        for name in ("short", "plain", "few"):
            os.setxattr(mountpoint / name, "user.large", VALUE)
        os.setxattr(mountpoint / "plain", "user.other", VALUE)
    return path.read_bytes()


@pytest.fixture
def image(pristine: bytes) -> Editor:
    return Editor(pristine)


async def opened(image: Editor) -> Volume:
    volume = await Volume.open(MemoryDevice(bytes(image.data)), LIMIT)
    assert volume.overlay is not None
    return volume


async def inode_at(image: Editor, name: str) -> tuple[int, int]:
    """The number of an inode, and its byte offset."""
    ino = (await at(await opened(image), name)).ino
    return ino, image.inode(ino)


def body_entry(image: Editor, inode: int, name: bytes) -> int:
    """The byte offset of an attribute's entry in an inode's body."""
    position = inode + BODY + MAGIC_SIZE
    while image.get("<I", position):
        length = image.get("<B", position)
        if image.data[position + 16 : position + 16 + length] == name:
            return position
        position += 16 + length + 3 & ~3
    raise AssertionError(f"no {name!r}")


def value_inode(image: Editor, ino: int, name: bytes = b"large") -> int:
    """The inode that has the value of an attribute of another one's block."""
    block = image.get("<I", image.inode(ino) + 104) * 1024
    assert block, "no attribute block"
    position = block + 32
    while image.get("<I", position):
        length = image.get("<B", position)
        if image.data[position + 16 : position + 16 + length] == name:
            return image.get("<I", position + 4)
        position += 16 + length + 3 & ~3
    raise AssertionError(f"no {name!r}")


def value_of(image: Editor, inode: int, ino: int) -> int:
    """The same, wherever the attribute is."""
    try:
        return image.get("<I", body_entry(image, inode, b"large") + 4)
    except AssertionError:
        return value_inode(image, ino)


async def assert_corrupt(volume: Volume, operation: object) -> None:
    before = volume.changes
    with pytest.raises(CorruptFilesystem):
        await operation  # type: ignore[misc]
    assert volume.changes == before


async def test_a_value_longer_than_the_body_is_not_written(image: Editor) -> None:
    ino, inode = await inode_at(image, "long")
    image.put("<I", body_entry(image, inode, b"data") + 8, 4000)
    volume = await opened(image)
    await assert_corrupt(volume, volume.write(ino, 0, b"x", ADMIN))
    await assert_corrupt(volume, volume.set_attributes(ino, AttributeChanges(size=1), ADMIN))
    await assert_corrupt(volume, volume.set_xattr(ino, b"user.x", b"x", ADMIN))


async def test_a_size_past_the_inode_counts_as_zeros(image: Editor) -> None:
    ino, inode = await inode_at(image, "short")
    image.put("<I", inode + 4, 3000)
    volume = await opened(image)
    wanted = bytearray(b"short".ljust(3000, b"\0"))
    for offset in (50, 100, 2900):
        await volume.write(ino, offset, b"x", ADMIN)
        wanted[offset] = ord("x")
        assert bytes(await volume.read(ino, 0, 4000)) == wanted


@pytest.mark.parametrize("rec_len", [0, 4, 13, 60, 65535])
async def test_inline_entries_of_impossible_lengths(image: Editor, rec_len: int) -> None:
    for name in "few", "more":
        ino, inode = await inode_at(image, name)
        image.put("<H", inode + 40 + 4 + 4, rec_len)
        volume = await opened(image)
        await assert_corrupt(volume, volume.create(ino, b"new", stat.S_IFREG, ADMIN))
        await assert_corrupt(volume, volume.remove(ino, b"00", is_rmdir=False))
        await assert_corrupt(volume, volume.rename(ROOT, b"short", ino, b"new", 0, ADMIN))
        await assert_corrupt(volume, volume.remove(ROOT, name.encode(), is_rmdir=True))


@pytest.mark.parametrize("target", ["directory", "file", "free", "reserved", "past the end"])
async def test_references_to_something_else_free_nothing(image: Editor, target: str) -> None:
    ino, inode = await inode_at(image, "short")
    numbers = {
        "directory": (await at(await opened(image), "few")).ino,
        "file": (await at(await opened(image), "long")).ino,
        "free": image.inodes_count - 1,
        "reserved": 7,
        "past the end": 1 << 31,
    }
    if not image.get("<I", inode + 104):
        image.put("<I", body_entry(image, inode, b"large") + 4, numbers[target])
    else:
        block = image.get("<I", inode + 104) * 1024
        image.put("<I", block + 32 + 4, numbers[target])
    volume = await opened(image)
    await assert_corrupt(volume, volume.remove_xattr(ino, b"user.large", ADMIN))
    await assert_corrupt(volume, volume.set_xattr(ino, b"user.large", b"x", ADMIN))
    removed = await volume.remove(ROOT, b"short", is_rmdir=False)
    before = volume.changes
    await volume.release(removed.ino)
    assert volume.changes == before, "a file with a broken reference is not freed"


async def test_references_that_count_none(image: Editor) -> None:
    ino, inode = await inode_at(image, "short")
    image.put("<I", image.inode(value_of(image, inode, ino)) + REFCOUNT, 0)
    volume = await opened(image)
    await assert_corrupt(volume, volume.remove_xattr(ino, b"user.large", ADMIN))


async def test_two_references_that_are_counted_once(image: Editor) -> None:
    """The second one finds nothing more: what is freed once is not freed again, nor its number taken for another's."""
    ino, inode = await inode_at(image, "short")
    other, _ = await inode_at(image, "plain")
    value = value_of(image, inode, ino)
    image.put("<I", image.inode(value) + REFCOUNT, 1)
    volume = await opened(image)
    await volume.remove_xattr(ino, b"user.large", ADMIN)
    await assert_corrupt(volume, volume.remove_xattr(other, b"user.large", ADMIN))
    for number in range(5):
        await volume.create(ROOT, b"new %d" % number, stat.S_IFREG, ADMIN)
    await assert_corrupt(volume, volume.remove_xattr(other, b"user.large", ADMIN))


async def test_a_shared_value_is_counted(image: Editor) -> None:
    """The kernel shares values that are the same; the last attribute frees it."""
    ino, inode = await inode_at(image, "short")
    value = value_of(image, inode, ino)
    assert image.get("<I", image.inode(value) + REFCOUNT) == 4
    volume = await opened(image)
    for name, attribute in (("short", b"large"), ("plain", b"other"), ("few", b"large")):
        await volume.remove_xattr((await at(volume, name)).ino, b"user." + attribute, ADMIN)
    plain = await at(volume, "plain")
    assert await volume.xattrs(plain.ino) == {b"user.large": VALUE}
    await volume.remove_xattr(plain.ino, b"user.large", ADMIN)
    after = Editor(await merged(volume))
    assert after.get("<H", after.inode(value) + 26) == 0, "it is free"


async def test_a_name_that_leads_to_a_value_is_refused(image: Editor, tmp_path: Path) -> None:
    ino, inode = await inode_at(image, "short")
    path = tmp_path / "image"
    path.write_bytes(image.data)
    debugfs(path, f"link <{value_of(image, inode, ino)}> value")
    volume = await opened(Editor(path.read_bytes()))
    await assert_corrupt(volume, volume.lookup(ROOT, b"value"))


async def test_a_value_that_maps_metadata_is_not_freed(image: Editor) -> None:
    ino, inode = await inode_at(image, "short")
    value = value_of(image, inode, ino)
    image.put("<I", image.inode(value) + REFCOUNT, 1)
    (table,) = struct.unpack_from("<I", image.data, image.descriptor() + 8)
    image.put("<I", image.pointer(value, 0), table)
    volume = await opened(image)
    await assert_corrupt(volume, volume.remove_xattr(ino, b"user.large", ADMIN))


async def test_random_damage_gives_errors_of_ours_in_bounded_time(pristine: bytes) -> None:
    original = Editor(pristine)
    names = (b"short", b"long", b"plain", b"few", b"more", b"many")
    inodes = [(await at(await opened(original), name)).ino for name in names]
    places = [original.inode(ino) for ino in inodes]
    places += [original.inode(value_of(original, original.inode(inodes[0]), inodes[0]))]
    ranges = [range(place, place + 256) for place in places]
    ranges += [range(place + BODY, place + 256) for place in places] * 2
    ranges += [
        range(block * 1024, block * 1024 + 200) for place in places if (block := original.get("<I", place + 104))
    ]
    changed = failed = 0
    for seed in range(MUTANTS):
        source = random.Random(seed)
        data = bytearray(pristine)
        for _ in range(source.choice((1, 2, 4))):
            position = source.choice(source.choice(ranges))
            data[position] = source.choice((0, 0xFF, data[position] ^ 1 << source.randrange(8), source.randrange(256)))
        volume = await Volume.open(MemoryDevice(bytes(data)), LIMIT)
        failed += await operate(volume, partial(_any_operation, volume, source, inodes), STEPS, f"seed {seed}")
        changed += volume.changes
        after = await merged(volume)
        assert len(after) == len(data)
        for start, stop in ((0, 1024), (2048 - 1024, 1024 + 12)):
            assert after[start:stop] == data[start:stop]
    assert changed > MUTANTS * 5 and failed > MUTANTS


async def _any_operation(volume: Volume, source: random.Random, inodes: list[int]) -> None:
    files, directories = inodes[:3], [*inodes[3:], ROOT]
    directory, ino = source.choice(directories), source.choice(inodes)
    name = source.choice((b"00", b"01", b"06", b"sub", b"new", b"n" * 50, b"short", b"few"))
    match source.randrange(10):
        case 0:
            await volume.create(directory, name, source.choice((stat.S_IFREG, stat.S_IFDIR)) | 0o755, ADMIN)
        case 1:
            await volume.remove(directory, name, source.random() < 0.4)
        case 2:
            await volume.rename(directory, name, source.choice(directories), b"other", source.choice((0, 1, 2)), ADMIN)
        case 3 | 4:
            await volume.write(
                source.choice(files), source.choice((0, 50, 100, 3000)), b"w" * source.choice((1, 90)), ADMIN
            )
        case 5:
            size = source.choice((0, 30, 61, 100, 5000))
            await volume.set_attributes(source.choice(files), AttributeChanges(size=size), ADMIN)
        case 6 | 7:
            await volume.set_xattr(ino, b"user.x", source.choice((b"", b"v" * 40, b"v" * 500, VALUE)), ADMIN)
        case 8:
            await volume.remove_xattr(ino, source.choice((b"user.x", b"user.large", b"user.other")), ADMIN)
        case 9:
            await volume.link(ino, directory, name, ADMIN)

"""Directories with an index by hashes: it stays right when names come and go, which e2fsck and the kernel's driver
judge, and look-ups go by it."""

from __future__ import annotations

import errno
import random
import stat
from pathlib import Path

import pytest

from mystfuse.ext2.constants import EXT2_INDEX_FL
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, FileDevice, MemoryDevice, assert_clean, make_image, merged
from tests.support.gated_volumes import ROOT as CALLER
from tests.support.gated_volumes import open_volume
from tests.support.indexed_directories import (
    LIMIT,
    SETS,
    Directory,
    change_at_random,
    colliding_names,
    judge,
    open_new,
)


async def is_indexed(directory: Directory) -> bool:
    return bool((await directory.volume.inode(directory.ino)).i_flags & EXT2_INDEX_FL)


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
async def test_names_come_and_go(tmp_path: Path, options: tuple[str, ...]) -> None:
    volume = await open_new(tmp_path / "image", *options)
    one, other = await Directory.make(volume, b"one", 1), await Directory.make(volume, b"other", 2)
    for seed in range(3):
        await change_at_random(one, other, 500, seed)
        await one.assert_complete()
        await other.assert_complete()
        await judge(tmp_path, {b"one": one, b"other": other}, volume)
    assert await is_indexed(one) == ("^dir_index" not in options[-1])
    for directory in (one, other):
        for name in list(directory.names):
            await directory.remove(name)
    await judge(tmp_path, {b"one": one, b"other": other}, volume)
    await volume.remove(ROOT, b"one", True)


@pytest.mark.parametrize("hash_alg", ["legacy", "half_md4", "tea"])
@pytest.mark.parametrize("sign", ["signed_hash", "unsigned_hash"])
async def test_every_hash_is_the_kernels(tmp_path: Path, hash_alg: str, sign: str) -> None:
    image = make_image(tmp_path / "image", "-t", "ext2", "-b", "1024", size="4M")
    data = bytearray(image.read_bytes())
    data[1024 + 252] = ("legacy", "half_md4", "tea").index(hash_alg)  # s_def_hash_version
    data[1024 + 352] = 1 if sign == "signed_hash" else 2  # s_flags
    volume = await Volume.open(MemoryDevice(data), LIMIT)
    directory = await Directory.make(volume, b"d", 1)
    chance = random.Random(1)
    for number in range(250):
        await directory.add(bytes(chance.choices(range(0x80, 0x100), k=chance.randrange(1, 60))) + b"%d" % number)
    assert await is_indexed(directory)
    dump = await judge(tmp_path, {b"d": directory}, volume)
    assert f"Hash Version: {data[1024 + 252]}" in dump


@pytest.mark.parametrize("options", [SETS["ext2, 1 KiB"], SETS["checksums"]], ids=["ext2", "checksums"])
async def test_names_with_the_same_hash(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Where a leaf is split between two of them, the second one's entry in the index says that it continues."""
    # Which names collide, and where leaves are split, is then the same each time.
    seed = "-E", "hash_seed=c0ffee00-1234-4321-8765-0123456789ab"
    volume = await open_new(tmp_path / "image", *options, *seed)
    assert volume.superblock.name_hash is not None
    names = colliding_names(volume.superblock.name_hash, 1, 90)
    directory = await Directory.make(volume, b"d", 1)
    random.Random(1).shuffle(names)
    for name in names:
        await directory.add(name)
    await directory.assert_complete()
    dump = await judge(tmp_path, {b"d": directory}, volume)
    continued = [line for line in dump.splitlines() if line.startswith("Entry #") and int(line.split()[3][:-1], 16) & 1]
    assert len(continued) > 2
    for name in names[::3]:
        await directory.remove(name)
    for name in names[1::3]:
        await directory.move(name, directory, name + b"2")
    await directory.assert_complete()
    await judge(tmp_path, {b"d": directory}, volume)


@pytest.mark.slow
async def test_an_index_grows_to_two_levels_and_no_further(tmp_path: Path) -> None:
    """ENOSPC, as from the kernel's driver, and everything else goes on."""
    volume = await open_new(tmp_path / "image", *SETS["ext2, 1 KiB"], size="16M")
    directory = await Directory.make(volume, b"d", 1)
    with pytest.raises(OSError, match="index is full") as caught:
        for number in range(40_000):
            await directory.add(b"%0255d" % number)
    assert caught.value.errno == errno.ENOSPC
    assert len(directory.names) > 15_000
    dump = await judge(tmp_path, {b"d": directory}, volume)
    assert "Indirect levels: 1" in dump
    gone = directory.some_name()
    await directory.remove(gone)
    await directory.add(gone)
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ext2, 4 KiB", "checksums"])
async def test_large_indices(tmp_path: Path, name: str) -> None:
    """With large_dir an index has three levels; a directory of 100,000 names is no trouble."""
    large = ("-t", "ext4", "-b", "1024", "-O", "^extent,^64bit,^has_journal,large_dir")
    volume = await open_new(tmp_path / "image", *(large if name == "checksums" else SETS[name]), size="128M")
    directory = await Directory.make(volume, b"d", 1)
    for number in range(50_000 if name == "checksums" else 100_000):
        await directory.add(b"%0*d" % (255 if name == "checksums" else 12, number))
    await directory.assert_complete()
    dump = await judge(tmp_path, {b"d": directory}, volume)
    assert f"Indirect levels: {2 if name == 'checksums' else 1}" in dump


async def test_a_name_is_looked_up_in_few_blocks_and_missed_in_few(tmp_path: Path) -> None:
    volume = await open_new(tmp_path / "image", *SETS["ext2, 4 KiB"])
    directory = await Directory.make(volume, b"d", 1)
    for number in range(6000):
        await directory.add(b"%0100d" % number)
    image = await merged(volume)
    for name in (b"%0100d" % 1234, b"no such name"):
        cold, device = await open_volume(image)
        inode = await cold.inode(directory.ino)
        assert inode.size > 600_000
        before = device.reads
        assert bool(await cold.lookup(directory.ino, name)) == (name in directory.names)
        # The indirect blocks, the root, the leaf; then the inode.
        assert device.reads - before <= 6


async def test_a_listing_misses_no_name_while_others_are_added(tmp_path: Path) -> None:
    """What moves in a split moves on, never back."""
    for seed in range(4):
        chance = random.Random(seed)
        volume = await open_new(tmp_path / "image", *SETS["checksums"])
        directory = await Directory.make(volume, b"d", 1)
        for number in range(chance.choice((20, 200))):
            await directory.add(b"old-%d" % number)
        old, seen, offset, added = set(directory.names), set[bytes](), 0, 0
        while offset < (await volume.inode(directory.ino)).size:
            entries, offset = await volume.entries(directory.ino, offset, 5)
            seen.update(entry.name for entry, _ in entries)
            for _ in range(chance.randrange(8) if added < 300 else 0):
                added += 1
                await directory.add(b"new-%0*d" % (chance.randrange(1, 100), added))
        assert old <= seen


async def test_a_block_that_overflows_becomes_an_index_unless_it_has_an_unknown_hash(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-t", "ext2", "-b", "1024", size="4M")
    for version, expected in ((1, True), (3, False), (77, False)):
        data = bytearray(image.read_bytes())
        data[1024 + 252] = version  # s_def_hash_version
        volume = await Volume.open(MemoryDevice(data), LIMIT)
        directory = await Directory.make(volume, b"d", 1)
        for number in range(100):
            await directory.add(b"%d" % number)
        assert await is_indexed(directory) == expected
        await directory.assert_complete()


@pytest.mark.slow
async def test_more_subdirectories_than_a_link_count_holds(tmp_path: Path) -> None:
    """dir_nlink: the count becomes 1, and stays; without it EMLINK at 65000."""
    for feature, most in (("dir_nlink", 65_100), ("^dir_nlink", 64_998)):
        image = make_image(
            tmp_path / "image", "-t", "ext4", "-b", "1024", "-N", "70000", "-O",
            f"^extent,^64bit,^has_journal,{feature}", size="150M",
        )  # fmt: skip
        volume = await Volume.open(FileDevice(image), 1 << 30)
        parent = (await volume.create(ROOT, b"d", stat.S_IFDIR | 0o755, CALLER)).ino
        for number in range(most):
            await volume.create(parent, b"%d" % number, stat.S_IFDIR | 0o755, CALLER)
        assert (await volume.inode(parent)).i_links_count == (1 if feature == "dir_nlink" else 65_000)
        if feature != "dir_nlink":
            with pytest.raises(OSError, match="links") as caught:
                await volume.create(parent, b"more", stat.S_IFDIR | 0o755, CALLER)
            assert caught.value.errno == errno.EMLINK
        assert_clean(await merged(volume), tmp_path / "merged")
        for number in range(most - 1):
            await volume.remove(parent, b"%d" % number, True)
        assert (await volume.inode(parent)).i_links_count == (1 if feature == "dir_nlink" else 3)
        assert_clean(await merged(volume), tmp_path / "merged")


async def test_names_are_not_added_to_a_casefolded_directory_but_removed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-t", "ext4", "-O", "^extent,^64bit,^has_journal,casefold", size="4M")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    directory = await Directory.make(volume, b"d", 1)
    for name in (b"one", b"two"):
        await directory.add(name)
    folded = tmp_path / "folded"
    folded.write_bytes(await merged(volume))
    run("debugfs", "-w", "-R", "sif d flags 0x40000000", folded)
    volume = await Volume.open(MemoryDevice(folded.read_bytes()), LIMIT)
    assert (await volume.inode(directory.ino)).is_casefolded
    file = directory.names[b"one"]
    for attempt in (
        volume.create(directory.ino, b"new", stat.S_IFREG | 0o644, CALLER),
        volume.link(file, directory.ino, b"new", CALLER),
        volume.rename(directory.ino, b"one", directory.ino, b"new", 0, CALLER),
    ):
        with pytest.raises(OSError, match="casefold") as caught:
            await attempt
        assert caught.value.errno == errno.EOPNOTSUPP
    await volume.rename(directory.ino, b"one", ROOT, b"out", 0, CALLER)
    await volume.remove(directory.ino, b"two", False)
    assert_clean(await merged(volume), tmp_path / "merged")

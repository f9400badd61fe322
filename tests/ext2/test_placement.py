"""Placement of blocks and inodes, and attribute blocks that several inodes share; in process, checked by e2fsck."""

from __future__ import annotations

import os
import stat
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from mystfuse.ext2.block_map import map_runs
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, kernel_mount, merged

ROOT = Caller(0, 0)
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
MIB = 1 << 20


async def open_fresh(tmp_path: Path, *options: str, size: str = "64M") -> Volume:
    path = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", *options, path, size)
    return await Volume.open(MemoryDevice(path.read_bytes()), 256 << 20)


async def runs_of(volume: Volume, ino: int) -> list[tuple[int, int]]:
    """The data blocks of a file as (first, count)."""

    def locate(blocks: Blocks) -> list[tuple[int, int]]:
        inode = volume._filesystem.inode(blocks, ino)
        count = -(-inode.size // volume.superblock.block_size)
        return [tuple(run) for run in map_runs(volume.superblock, blocks, inode, 0, count)]

    return await volume._runner.run(locate)


def group_of(volume: Volume, ino: int) -> int:
    return (ino - 1) // volume.superblock.s_inodes_per_group


@pytest.mark.parametrize("block_size", [1024, 4096])
async def test_files_written_in_turns_are_in_long_runs(tmp_path: Path, block_size: int) -> None:
    """Only its indirect blocks, a group's metadata, or the other file's turn interrupt a file's runs."""
    volume = await open_fresh(tmp_path, "-b", str(block_size))
    one = await volume.create(EXT2_ROOT_INO, b"one", FILE, ROOT)
    other = await volume.create(EXT2_ROOT_INO, b"other", FILE, ROOT)
    for megabyte in range(16):
        for inode in (one, other):
            await volume.write(inode.ino, megabyte * MIB, bytes([megabyte]) * MIB, ROOT)
    for inode in (one, other):
        runs = await runs_of(volume, inode.ino)
        assert sum(count for _, count in runs) == 16 * MIB // block_size
        assert len(runs) <= 16 * (2 + MIB // block_size // (block_size // 4)) + 8
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_file_alone_is_cut_by_its_own_indirect_blocks_only(tmp_path: Path) -> None:
    volume = await open_fresh(tmp_path, "-b", "4096")
    inode = await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)
    position = 0
    while position < 8 * MIB:
        # Odd sizes, so that most writes begin and end within a block.
        position += await volume.write(inode.ino, position, b"x" * 100_003, ROOT)
    runs = await runs_of(volume, inode.ino)
    # 12 direct blocks, 1024 behind the first indirect block, and the rest behind two more.
    assert [count for _, count in runs][:2] == [12, 1024] and len(runs) == 3
    gaps = [after[0] - (before[0] + before[1]) for before, after in pairwise(runs)]
    assert gaps == [1, 2]


async def test_directories_spread_and_files_stay_with_them(tmp_path: Path) -> None:
    volume = await open_fresh(tmp_path, "-b", "1024", "-N", "4096")
    groups = volume.superblock.groups_count
    assert groups == 8
    homes = []
    for number in range(groups):
        directory = await volume.create(EXT2_ROOT_INO, b"d%d" % number, DIRECTORY, ROOT)
        homes.append(group_of(volume, directory.ino))
        below = await volume.create(directory.ino, b"below", DIRECTORY, ROOT)
        assert group_of(volume, below.ino) == homes[-1]
        for name in (b"a", b"b"):
            file = await volume.create(directory.ino, name, FILE, ROOT)
            assert group_of(volume, file.ino) == homes[-1]
            await volume.write(file.ino, 0, bytes(5000), ROOT)
            ((first, _), *_) = await runs_of(volume, file.ino)
            assert (first - 1) // volume.superblock.s_blocks_per_group == homes[-1]
    # Groups with a copy of the superblock have fewer free blocks than the average, and are passed over, as in the
    # kernel.
    assert len(set(homes)) == groups // 2
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_every_block_and_inode_of_every_group_can_be_used(tmp_path: Path) -> None:
    volume = await open_fresh(tmp_path, "-b", "1024", "-N", "512", "-m", "0", size="32M")
    file = await volume.create(EXT2_ROOT_INO, b"file", FILE, ROOT)
    position = 0
    while (await volume.statistics()).free_blocks > 2:
        position += await volume.write(file.ino, position, b"x" * MIB, ROOT)
    await volume.set_attributes(file.ino, AttributeChanges(size=position - 50 * 1024), ROOT)
    free = (await volume.statistics()).free_inodes
    for number in range(free):
        await volume.create(EXT2_ROOT_INO, b"%d" % number, FILE, ROOT)
    statistics = await volume.statistics()
    assert statistics.free_inodes == 0
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("inode_size", ["128", "256"])
async def test_attribute_blocks_that_are_shared_are_copied(tmp_path: Path, inode_size: str) -> None:
    """The kernel lets inodes with the same attributes share their block."""
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-I", inode_size, image, "8M")
    names = ["one", "two", "three", "four"]
    with kernel_mount(image, tmp_path / "kernel", "rw") as kernel:
        for name in names:
            (kernel / name).touch()
            os.setxattr(kernel / name, "user.shared", b"s" * 400)
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 64 << 20)
    inodes = {name: await volume.lookup(EXT2_ROOT_INO, name.encode()) for name in names}
    inos = {name: inode.ino for name, inode in inodes.items() if inode}
    blocks = {inode.i_file_acl for inode in inodes.values() if inode}
    assert len(blocks) == 1, "the kernel has not shared it"
    (shared,) = blocks

    async def refcount() -> int:
        return int(struct.unpack_from("<I", await merged(volume), shared * 1024 + 4)[0])

    assert await refcount() == 4
    await volume.set_xattr(inos["one"], b"user.own", b"o" * 200, ROOT)
    assert await refcount() == 3
    await volume.remove_xattr(inos["two"], b"user.shared", ROOT)
    assert await refcount() == 2
    await volume.remove(EXT2_ROOT_INO, b"three", False)
    await volume.release(inos["three"])
    assert await refcount() == 1
    assert await volume.xattrs(inos["one"]) == {b"user.shared": b"s" * 400, b"user.own": b"o" * 200}
    assert await volume.xattrs(inos["two"]) == {}
    assert await volume.xattrs(inos["four"]) == {b"user.shared": b"s" * 400}
    assert_clean(await merged(volume), tmp_path / "merged")
    # An attribute block with one user is changed in place.
    await volume.set_xattr(inos["four"], b"user.shared", b"t" * 300, ROOT)
    four = await volume.inode(inos["four"])
    assert four.i_file_acl == shared and await volume.xattrs(inos["four"]) == {b"user.shared": b"t" * 300}
    await volume.remove_xattr(inos["four"], b"user.shared", ROOT)
    assert (await volume.inode(inos["four"])).i_file_acl == 0
    assert_clean(await merged(volume), tmp_path / "merged")

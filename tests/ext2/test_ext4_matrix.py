"""Every set of features of the ext family, read as the kernel's own driver reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.policy import trust_without_tree
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import FileDevice, kernel_mount, make_image
from tests.support.ext4_images import BASIC, FROM_TREES, MORE, make_populated
from tests.support.image_trees import assert_agrees

PATHS = 1000
"""At least so many are compared."""


async def assert_reads(image: Path, mountpoint: Path) -> None:
    with kernel_mount(image, mountpoint, "ro,noload"):
        volume = await Volume.open(FileDevice(image))
        assert await assert_agrees(ImageTree(volume, trust_without_tree()), mountpoint) > PATHS
        ours, theirs = await volume.statistics(), os.statvfs(mountpoint)
        assert (
            ours.block_size, ours.blocks, ours.free_blocks, ours.available_blocks, ours.inodes, ours.free_inodes,
        ) == (
            theirs.f_bsize, theirs.f_blocks, theirs.f_bfree, theirs.f_bavail, theirs.f_files, theirs.f_ffree,
        )  # fmt: skip


@pytest.mark.parametrize("options", BASIC.values(), ids=BASIC.keys())
async def test_a_set_of_features(options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_populated(tmp_path / "image", tmp_path / "kernel", *options)
    await assert_reads(image, tmp_path / "kernel")


@pytest.mark.slow
@pytest.mark.parametrize("options", MORE.values(), ids=MORE.keys())
async def test_another_set_of_features(options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_populated(tmp_path / "image", tmp_path / "kernel", *options)
    await assert_reads(image, tmp_path / "kernel")


@pytest.mark.parametrize("options", FROM_TREES.values(), ids=FROM_TREES.keys())
async def test_large_blocks(options: tuple[str, ...], tmp_path: Path) -> None:
    """debugfs is the judge."""
    tree = tmp_path / "tree"
    (tree / "many").mkdir(parents=True)
    for number in range(2000):
        (tree / f"many/{number:05} {'n' * (number % 90)}").touch()
    for size in (0, 1, 60, 150, 70_000, 900_000):
        (tree / f"file-{size}").write_bytes(os.urandom(size))
    image = make_image(tmp_path / "image", *options, size="200M", tree=tree)
    volume = await Volume.open(FileDevice(image))
    ours = ImageTree(volume, trust_without_tree())
    found = sorted([child.name async for child in ours.children((await ours.lstat(b"/many")).st_ino)])
    assert found == sorted(os.fsencode(name) for name in os.listdir(tree / "many"))
    for size in (0, 1, 60, 150, 70_000, 900_000):
        content = await ours.read_file(b"/file-%d" % size)
        assert content == (tree / f"file-{size}").read_bytes()
        run("debugfs", "-R", f"dump /file-{size} {tmp_path / 'out'}", image)
        dumped = (tmp_path / "out").read_bytes()
        # It dumps a file in its inode as a whole block.
        assert dumped[:size] == content and not any(dumped[size:])

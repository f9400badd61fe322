"""Contents and entries in inodes, and values of attributes in inodes of their own, changed: e2fsck and the kernel's own
driver are the judges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, MemoryDevice, assert_clean, at, kernel_mount, make_image, merged
from tests.support.ext4_pairs import Pair
from tests.support.mounts import caches_kept

LIMIT = 64 << 20
STEPS, STEPS_BETWEEN_CHECKS = 150, 10
PLAIN = "^metadata_csum,^metadata_csum_seed,^uninit_bg,^64bit,^flex_bg,^has_journal,^orphan_file,^dir_nlink"
SIZES = (0, 1, 40, 59, 60, 61, 100, 128, 160, 400, 900, 3000, 9000)
VALUES = (0, 3, 20, 60, 300, 900, 1100, 5000, 20_000)
SETS: dict[str, tuple[str, ...]] = {
    "inline_data, 256": ("-O", f"inline_data,^extent,{PLAIN}", "-I", "256", "-b", "1024"),
    "inline_data and ea_inode, 512": ("-O", f"inline_data,ea_inode,^extent,{PLAIN}", "-I", "512", "-b", "4096"),
    "inline_data and ea_inode, 1024": ("-O", f"inline_data,ea_inode,^extent,{PLAIN}", "-I", "1024", "-b", "1024"),
    "inline_data and extents, 256": ("-O", f"inline_data,ea_inode,{PLAIN}", "-I", "256", "-b", "1024"),
    "the defaults besides": ("-O", "inline_data,ea_inode", "-I", "256", "-b", "4096"),
    "all of ext4, 1024": ("-O", "64bit,inline_data,ea_inode,metadata_csum_seed,large_dir", "-I", "1024", "-b", "1024"),
    "ea_inode, 128": ("-O", f"ea_inode,^extent,{PLAIN}", "-I", "128", "-b", "1024"),
}


@pytest.mark.parametrize("options", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("seed", range(2))
async def test_random_changes(options: tuple[str, ...], seed: int, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-t", "ext4", *options, size="16M")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    # The kernel forgets with an inode that its file may begin there.
    with caches_kept(), kernel_mount(image, tmp_path / "kernel", "rw,nodelalloc,user_xattr"):
        pair = Pair(volume, tmp_path / "kernel", seed, "^extent" not in options[1])
        for number in range(1, STEPS + 1):
            await pair.step(SIZES, VALUES)
            if not number % STEPS_BETWEEN_CHECKS:
                assert_clean(await merged(volume), tmp_path / "ours")
                await pair.assert_same()
    run("e2fsck", "-fn", image)


async def test_many_values_in_many_groups(tmp_path: Path) -> None:
    """Each is an inode with an indirect block, of a group with bitmaps of its own: they are fetched together."""
    image = make_image(
        tmp_path / "image", "-t", "ext4", "-O", f"ea_inode,^extent,{PLAIN}", "-I", "128", "-b", "1024", "-g", "256",
        "-N", "2048", size="64M",
    )  # fmt: skip
    wanted = {b"user.%02d" % number: os.urandom(14_000 + number) for number in range(45)}
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        (root / "file").touch()
        for name, value in wanted.items():
            os.setxattr(root / "file", name, value)
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    assert await volume.xattrs((await at(volume, "file")).ino) == wanted
    cold = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    removed = await cold.remove(ROOT, b"file", is_rmdir=False)
    await cold.release(removed.ino)
    assert not cold.orphans
    assert_clean(await merged(cold), tmp_path / "ours")

"""Groups of ext4 that are written to: bitmaps that have never been written, descriptors of 64 bytes, metadata of other
groups; judged by e2fsck."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from mystfuse.ext2.caller import Caller
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, MemoryDevice, assert_clean, make_image, merged

CALLER = Caller(0, 0)
LIMIT = 64 << 20
PLAIN = "none,filetype,sparse_super,large_file,ext_attr"
SETS = {
    "uninit_bg": f"{PLAIN},uninit_bg",
    "flex_bg": f"{PLAIN},flex_bg,uninit_bg,resize_inode",
    "meta_bg": f"{PLAIN},meta_bg,^resize_inode,uninit_bg",
    "sparse_super2": "none,filetype,sparse_super2,large_file,ext_attr,^resize_inode",
}


async def fill(volume: Volume, seed: int, most: int) -> None:
    """Files and directories all over the groups, some removed again."""
    chance = random.Random(seed)
    directories = [ROOT]
    made: list[tuple[int, bytes]] = []
    for number in range(most):
        parent = chance.choice(directories)
        name = b"%d-%d" % (seed, number)
        kind = stat.S_IFDIR if chance.random() < 0.3 else stat.S_IFREG
        inode = await volume.create(parent, name, kind | 0o755, CALLER)
        if kind == stat.S_IFDIR:
            directories.append(inode.ino)
            continue
        await volume.write(
            inode.ino, chance.randrange(1 << 16), bytes([number & 0xFF]) * chance.randrange(1, 30_000), CALLER
        )
        made.append((parent, name))
        if chance.random() < 0.3:
            parent, name = made.pop(chance.randrange(len(made)))
            inode = await volume.remove(parent, name, False)
            if inode.ino in volume.orphans:
                await volume.release(inode.ino)


@pytest.mark.parametrize("block_size", ["1024", "4096"])
@pytest.mark.parametrize("features", SETS.values(), ids=SETS)
async def test_written_groups(tmp_path: Path, features: str, block_size: str) -> None:
    options = ["-t", "ext4", "-O", features, "-b", block_size, "-g", "1024", "-I", "256"]
    image = make_image(tmp_path / "image", *options, size="24M")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    assert volume.overlay is not None
    for seed in range(3):
        await fill(volume, seed, 60)
        assert_clean(await merged(volume), tmp_path / "merged")

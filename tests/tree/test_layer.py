"""A layer, applied by other programs to the tree below it, gives the tree that it was made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

import mystfuse as api
from mystfuse.tree.diff.compare import compare
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.layer import write_layer
from mystfuse.tree.layer_plan import plan_layer
from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.extraction import archive, assert_same
from tests.support.layers import Changer, apply_by_tar, apply_by_umoci
from tests.support.mounts import mounted

SEQUENCES = int(os.environ.get("MYSTFUSE_LAYERS", "6"))
ROUNDS = 3
"""Sequences in one mount, each of which adds to its changes."""
WITHOUT_SIZE = ",st_size"
"""Of directories it depends on the file system; those of files are the contents'."""


async def layer_of_images(old: Path, new: Path, layer: Path, lineage: str | None) -> None:
    """A layer from two images, by comparing all that is in them."""
    async with api.open_image(old, trust="self") as one, api.open_image(new, trust="self") as other:
        before, after = ImageView(one.volume, "old", lineage), ImageView(other.volume, "new", lineage)
        plan = await plan_layer([change async for change in compare(before, after)], before, after)
        with layer.open("wb") as file:

            async def write(data: bytearray) -> None:
                file.write(data)

            assert await write_layer(plan, after, write) == {}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image with room, of a tree that was made at random."""
    tree = tmp_path / "tree"
    tree.mkdir()
    Changer(tree, 1).change(60)
    assert in_process("mkext2", "--free", "12M", "--inodes", "2048", tree, tmp_path / "base").returncode == 0
    return tmp_path / "base"


def test_the_tree_below_and_a_layer_are_the_tree(base: Path, tmp_path: Path) -> None:
    """Of a mount's changes; and of two images, as states of one file system and as any two."""
    below, layer, lower, by_tar = (tmp_path / name for name in ("below.tar", "layer.tar", "lower", "by-tar"))
    for first in range(0, SEQUENCES, ROUNDS):
        below.write_bytes(archive(base))
        shutil.rmtree(lower, ignore_errors=True)
        lower.mkdir()
        apply_by_tar(below, lower)
        with mounted(base, tmp_path / "mount", "--allow-other", "-o", "dev,suid") as mountpoint:
            for seed in range(first, min(first + ROUNDS, SEQUENCES)):
                Changer(mountpoint, seed).change(30)
                made = in_process("commit", "--force", "--quiet", "--layer", layer, mountpoint, tmp_path / "new")
                assert made.returncode == 0, made.stderr
                if seed % ROUNDS:
                    lineage = "same" if seed % ROUNDS == 1 else None
                    trio.run(layer_of_images, base, tmp_path / "new", layer, lineage)
                shutil.rmtree(by_tar, ignore_errors=True)
                run("cp", "-a", lower, by_tar)
                apply_by_tar(layer, by_tar)
                assert_same(mountpoint, by_tar, WITHOUT_SIZE)
                assert_same(mountpoint, apply_by_umoci([below, layer], tmp_path), WITHOUT_SIZE)
        os.replace(tmp_path / "new", base)

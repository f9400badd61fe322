"""Volumes to change, and a directory with many names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.huge_images import make_crowded_image
from tests.support.limits import NAMES


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crowded_image(tmp_path_factory.mktemp("crowded") / "image", NAMES)


@pytest.fixture(
    scope="module",
    params=[
        ("-t", "ext2", "-b", "1024"),
        ("-t", "ext2", "-b", "4096"),
        ("-t", "ext4", "-b", "4096"),
        ("-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,orphan_file,large_dir,metadata_csum_seed"),
    ],
    ids=["1024", "4096", "ext4", "everything"],
)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bare file system with a bit of everything, including an indexed directory."""
    directory = tmp_path_factory.mktemp("transactions")
    source = directory / "source"
    (source / "many").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "full").mkdir()
    (source / "full/inner").mkdir()
    for number in range(400):
        (source / f"many/a-name-of-some-length-{number:04}").touch()
    (source / "small").write_bytes(b"small file\n")
    (source / "large").write_bytes(bytes(range(256)) * 4 * 700)
    os.link(source / "small", source / "hard")
    (source / "long").symlink_to("x" * 100)
    os.setxattr(source / "small", "user.big", b"v" * 300)
    path = directory / "image"
    run("mke2fs", "-q", "-F", *request.param, "-N", "1024", "-d", source, path, "8M")
    run("e2fsck", "-fyD", path, check=False)
    return path.read_bytes()

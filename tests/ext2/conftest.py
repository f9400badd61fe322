"""A file system with one of everything that has metadata, to damage."""

from __future__ import annotations

import os

import pytest

from tests.support.ext2_editor import Editor, make_image
from tests.support.hostile_ext2 import MANY


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system with 1 KiB blocks and one of everything that has metadata."""
    directory = tmp_path_factory.mktemp("hostile")
    tree = directory / "tree"
    (tree / "dir").mkdir(parents=True)
    for name in ("first", "second", "third"):
        (tree / "dir" / name).write_text(name)
    (tree / "many").mkdir()
    for number in range(MANY):
        os.link(tree / "dir/first", tree / "many" / f"{number:04}-{'x' * 40}")
    (tree / "file").write_bytes(bytes(range(256)) * 200)
    (tree / "large").write_bytes(b"L" * 400_000)
    (tree / "fast").symlink_to("dir/first")
    (tree / "slow").symlink_to("/" + "s" * 100)
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "file", "user.body", b"in the body")
    os.setxattr(tree / "large", "user.block", b"b" * 500)
    os.setxattr(tree / "dir/second", "user.one", b"1")
    return make_image(directory / "image", "-b", "1024", "-I", "256", "-N", "64", size="1M", tree=tree).read_bytes()


@pytest.fixture
def image(pristine: bytes) -> Editor:
    return Editor(pristine)

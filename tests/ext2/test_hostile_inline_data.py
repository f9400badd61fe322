"""Contents in inodes that say that they are more than an inode can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, make_image

SIZE = 1 << 62
"""Bytes."""


@pytest.fixture
def hostile(tmp_path: Path) -> bytes:
    """A file system with a small file in its inode, whose size is nonsense."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"inline")
    options = "-t", "ext4", "-O", "inline_data,^metadata_csum,^has_journal"
    editor = Editor(make_image(tmp_path / "image", *options, "-b", "1024", tree=tree, size="4M").read_bytes())
    # The first one behind lost+found.
    ino = 12
    assert editor.get("<I", editor.inode(ino) + 32) & 0x10000000
    editor.put("<I", editor.inode(ino) + 4, SIZE & 0xFFFFFFFF)
    editor.put("<I", editor.inode(ino) + 108, SIZE >> 32)
    return bytes(editor.data)


async def test_a_huge_inline_file_has_one_hole_behind_its_contents(hostile: bytes) -> None:
    volume = await Volume.open(MemoryDevice(hostile))
    file = await volume.lookup(ROOT, b"file")
    assert file is not None and file.is_inline and file.size == SIZE
    assert await file_space.seek(volume, file.ino, 0, False) == 1024
    assert (await volume.stretch(file.ino, 1024)).length == SIZE - 1024
    assert await volume.read(file.ino, 0, 10) == b"inline\0\0\0\0"
    assert await volume.read(file.ino, SIZE - 10, 100) == bytes(10)

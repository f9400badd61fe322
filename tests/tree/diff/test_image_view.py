"""``ImageView`` shows an image's tree as a mount does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import mystfuse as api
from mystfuse.errors import CorruptFilesystem
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.view import Node
from tests.support.ext2_editor import ROOT, Editor


async def assert_shows(view: ImageView, node: Node, path: Path) -> int:
    """A view's node and all below it are what a path leads to; returns how many paths there are."""
    status = path.lstat()
    assert node == Node(
        node.key,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_size if stat.S_ISREG(status.st_mode) else 0,
        status.st_rdev,
        status.st_mtime_ns,
        status.st_nlink,
    )
    names = os.listxattr(path, follow_symlinks=False)
    attributes = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    assert await view.xattrs(node) == attributes
    if node.is_symlink:
        assert await view.target(node) == os.readlink(os.fsencode(path))
    elif node.is_regular:
        assert await view.read(node, 0, node.size + 1) == path.read_bytes()
        data = path.read_bytes()
        found = bytearray(node.size)
        async for offset, length in view.data_ranges(node):
            found[offset : offset + length] = data[offset : offset + length]
        assert found == data, "holes have zeros alone"
    elif node.is_directory:
        children = await view.children(node)
        assert list(children) == sorted(os.listdir(os.fsencode(path)))
        return 1 + sum([await assert_shows(view, child, path / os.fsdecode(name)) for name, child in children.items()])
    return 1


async def test_a_view_is_what_a_mount_shows(rich_image: Path, rich_mount: Path) -> None:
    async with api.open_image(rich_image, trust="self") as tree:
        view = ImageView(tree.volume, "image")
        root = await view.root()
        assert root.key == ROOT and root == await view.node(ROOT)
        assert await assert_shows(view, root, rich_mount) > 20


async def test_one_inode_has_one_key(rich_image: Path) -> None:
    async with api.open_image(rich_image, trust="self") as tree:
        view = ImageView(tree.volume, "image")
        children = await view.children(await view.root())
        below = await view.children(children[b"sub"])
        assert children[b"hello.txt"] == below[b"hard"] and children[b"hello.txt"].nlink == 3
        assert children[b"null"].key != children[b"disk"].key


async def test_a_name_twice_or_a_root_below_is_an_error(hostile: Editor) -> None:
    position, _ = hostile.find(ROOT, b"file1")
    hostile.put("<5s", position + 8, b"file2")
    view = ImageView(await hostile.open(), "hostile")
    with pytest.raises(CorruptFilesystem, match="twice"):
        await view.children(await view.root())
    hostile.put("<5s", position + 8, b"file1")
    hostile.put("<I", position, ROOT)
    view = ImageView(await hostile.open(), "hostile")
    with pytest.raises(CorruptFilesystem, match="root directory"):
        await view.children(await view.root())

"""Layers of trees that cannot be: an error, and bounded work."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Mapping

import pytest

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.tree.diff.change import Change
from mystfuse.tree.diff.view import Node
from mystfuse.tree.layer import write_layer
from mystfuse.tree.layer_plan import LayerPlan, plan_layer


def node(key: int, mode: int, size: int = 0) -> Node:
    return Node(key, mode, 0, 0, size, 0, 0, 1)


ROOT, DIRECTORY, FILE = node(2, stat.S_IFDIR), node(11, stat.S_IFDIR), node(12, stat.S_IFREG, 1000)


class Lying:
    """A view in which a directory is in itself, and files have more data than there is, or less than they say."""

    name, lineage = "image", None

    def __init__(self, data: int = 1000) -> None:
        self._data = data

    async def root(self) -> Node:
        return ROOT

    async def children(self, node: Node) -> Mapping[bytes, Node]:
        return {b"d": DIRECTORY} if node.key in (ROOT.key, DIRECTORY.key) else {}

    async def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        return {}

    async def target(self, node: Node) -> bytes:
        return b""

    async def read(self, node: Node, offset: int, length: int) -> bytes:
        return bytes(min(length, self._data))

    async def data_ranges(self, node: Node) -> AsyncIterator[tuple[int, int]]:
        while True:
            yield 0, self._data


async def discard(data: bytearray) -> None:
    pass


async def test_a_directory_in_itself_is_an_error() -> None:
    with pytest.raises(CorruptFilesystem, match="more than one place"):
        await plan_layer([Change(b"new", None, DIRECTORY)], Lying(), Lying())


async def test_files_cannot_have_more_data_than_the_file_system() -> None:
    """Otherwise a few blocks in a circle would fill the disk; here they would never end."""
    with pytest.raises(CorruptFilesystem, match="image: f: the files have more blocks"):
        await write_layer(LayerPlan({b"f": FILE}), Lying(), discard, most_data=1_000_000)


async def test_a_file_that_is_shorter_than_it_says_is_an_error() -> None:
    with pytest.raises(MystfuseError, match="shorter than it was"):
        await write_layer(LayerPlan({b"f": FILE}), Lying(10), discard)


async def test_a_change_in_a_directory_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MystfuseError, match="has changed meanwhile"):
        await plan_layer([Change(b"no/f", None, FILE)], Lying(), Lying())

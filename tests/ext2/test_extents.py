"""Extent trees: what they map, against a list of the blocks, and hostile ones, which end in an error."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_block, map_blocks, map_runs, map_stretch
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT4_EXTENTS_FL
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

BLOCK_SIZE = 1024
BLOCKS_COUNT = 1 << 34
SUPERBLOCK = cast(
    Superblock,
    SimpleNamespace(
        block_size=BLOCK_SIZE,
        s_first_data_block=1,
        s_blocks_count=BLOCKS_COUNT,
        checksums=None,
        is_data_block=lambda number: 1 < number < BLOCKS_COUNT,
    ),
)
UNWRITTEN = 32768
Tree = list[tuple[int, int, int]]
"""Extents: first block of the file, ee_len, first block."""


def header(entries: int, most: int, depth: int, magic: int = 0xF30A) -> bytes:
    return struct.pack("<HHHHI", magic, entries, most, depth, 0)


def leaf_entry(logical: int, ee_len: int, physical: int) -> bytes:
    return struct.pack("<IHHI", logical, ee_len, physical >> 32, physical & 0xFFFFFFFF)


def index_entry(logical: int, number: int) -> bytes:
    return struct.pack("<IIHH", logical, number & 0xFFFFFFFF, number >> 32, 0)


class Forest:
    """The blocks of a tree, built from its extents."""

    def __init__(self, per_block: int = 84) -> None:
        self.blocks: dict[int, bytes] = {}
        self.per_block = per_block
        self.asked = 0

    def add(self, content: bytes) -> int:
        number = (1 << 33) + len(self.blocks)
        self.blocks[number] = content.ljust(BLOCK_SIZE, b"\0")
        return number

    def inode(self, extents: Tree, depth: int) -> Inode:
        """The inode of a tree that is ``depth`` levels deep at least."""
        entries = [(extent[0], leaf_entry(*extent)) for extent in extents]
        level = 0
        while len(entries) > 4 or level < depth:
            nodes = [entries[start : start + self.per_block] for start in range(0, len(entries), self.per_block)]
            if not nodes:
                nodes = [[]]
            entries = []
            for node in nodes:
                packed = header(len(node), 84, level) + b"".join(entry for _, entry in node)
                first = node[0][0] if node and entries else 0
                entries.append((first, index_entry(first, self.add(packed))))
            level += 1
        return inode_of(header(len(entries), 4, level) + b"".join(entry for _, entry in entries))

    def view(self) -> Blocks:
        def cached(number: int) -> bytes | None:
            self.asked += 1
            return self.blocks.get(number)

        return Blocks(cached)


def inode_of(i_block: bytes) -> Inode:
    empty: Any = (
        12,
        0o100644,
        0,
        0,
        1 << 40,
        0,
        0,
        0,
        1,
        0,
        EXT4_EXTENTS_FL,
        i_block.ljust(60, b"\0"),
        7,
        0,
        b"",
        0,
        0,
    )
    return Inode(*empty)


@st.composite
def trees(draw: Callable[..., Any]) -> tuple[Tree, list[int], int, int]:
    """Extents, the blocks that they map, the depth of the tree, and the entries of its blocks."""
    extents: Tree = []
    pointers: list[int] = []
    physical = draw(st.integers(2, 1 << 33))
    for _ in range(draw(st.integers(0, 40))):
        gap, length = draw(st.integers(0, 5)), draw(st.integers(1, 9))
        is_written = draw(st.booleans())
        physical += draw(st.sampled_from((0, 0, 1, 1000)))
        pointers += [0] * gap
        extents.append((len(pointers), length if is_written else length + UNWRITTEN, physical))
        pointers += range(physical, physical + length) if is_written else [0] * length
        physical += length
    return extents, pointers + [0] * 8, draw(st.integers(0, 3)), draw(st.integers(2, 10))


@given(trees(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_tree_maps_what_its_extents_say(tree: tuple[Tree, list[int], int, int], data: st.DataObject) -> None:
    extents, pointers, depth, per_block = tree
    forest = Forest(per_block)
    inode = forest.inode(extents, depth)
    first = data.draw(st.integers(0, len(pointers) - 1))
    count = data.draw(st.integers(0, len(pointers) - first))
    blocks = forest.view()
    assert map_blocks(SUPERBLOCK, blocks, inode, first, count) == pointers[first : first + count]
    assert map_block(SUPERBLOCK, blocks, inode, first) == pointers[first]
    expanded: list[int] = []
    for physical, length in map_runs(SUPERBLOCK, blocks, inode, first, count):
        expanded += range(physical, physical + length) if physical else [0] * length
    assert expanded == pointers[first : first + count]


@given(trees())
@settings(max_examples=200, deadline=None)
def test_stretches_cover_a_file(tree: tuple[Tree, list[int], int, int]) -> None:
    extents, pointers, depth, per_block = tree
    forest = Forest(per_block)
    inode, blocks, position = forest.inode(extents, depth), forest.view(), 0
    while position < len(pointers):
        is_data, length = map_stretch(SUPERBLOCK, blocks, inode, position)
        assert length > 0
        assert all(bool(pointer) == is_data for pointer in pointers[position : position + length])
        position += length


@pytest.mark.parametrize(
    "i_block",
    [
        bytes(60),
        header(1, 4, 0, magic=0xF30B) + leaf_entry(0, 1, 100),
        header(5, 4, 0),
        header(0, 0, 0),
        header(1, 5, 0) + leaf_entry(0, 1, 100),
        header(1, 4, 6) + index_entry(0, 100),
        header(0, 4, 1),
        header(1, 4, 0) + leaf_entry(0, 0, 100),
        header(1, 4, 0) + leaf_entry(0, 1, 1),
        header(1, 4, 0) + leaf_entry(0, 1, 0),
        header(1, 4, 0) + leaf_entry(0, 2, BLOCKS_COUNT - 1),
        header(1, 4, 0) + leaf_entry(0xFFFFFFFF, 2, 100),
        header(2, 4, 0) + leaf_entry(0, 3, 100) + leaf_entry(2, 1, 200),
        header(2, 4, 0) + leaf_entry(5, 1, 100) + leaf_entry(2, 1, 200),
        header(1, 4, 1) + index_entry(0, 1),
        header(1, 4, 1) + index_entry(0, BLOCKS_COUNT),
        header(2, 4, 1) + index_entry(3, 100) + index_entry(3, 101),
    ],
)
def test_a_broken_root_is_reported(i_block: bytes) -> None:
    blocks = Forest().view()
    for function in (
        lambda inode: map_blocks(SUPERBLOCK, blocks, inode, 0, 1),
        lambda inode: map_stretch(SUPERBLOCK, blocks, inode, 0),
    ):
        with pytest.raises(CorruptFilesystem, match="inode 12"):
            function(inode_of(i_block))


@pytest.mark.parametrize(
    "content",
    [
        bytes(BLOCK_SIZE),
        header(1, 84, 1) + index_entry(0, 100),
        header(1, 85, 0) + leaf_entry(0, 1, 100),
        header(1, 84, 0) + leaf_entry(9, 1, 100),
        header(1, 84, 0) + leaf_entry(18, 3, 100),
        header(85, 84, 0),
    ],
)
def test_a_broken_block_is_reported_for_its_part_alone(content: bytes) -> None:
    forest = Forest()
    good = forest.add(header(1, 84, 0) + leaf_entry(0, 5, 100))
    bad = forest.add(content)
    inode = inode_of(header(3, 4, 1) + index_entry(0, good) + index_entry(10, bad) + index_entry(20, good))
    assert map_blocks(SUPERBLOCK, forest.view(), inode, 3, 4) == [103, 104, 0, 0]
    with pytest.raises(CorruptFilesystem, match=f"inode 12.*{bad}"):
        map_blocks(SUPERBLOCK, forest.view(), inode, 3, 8)


def test_a_block_past_what_a_tree_can_hold_is_reported() -> None:
    inode = Forest().inode([(0, 1, 100)], 0)
    for first in (1 << 32, (1 << 52) - 1):
        with pytest.raises(CorruptFilesystem, match="past"):
            map_blocks(SUPERBLOCK, Forest().view(), inode, first, 1)
        with pytest.raises(CorruptFilesystem, match="past"):
            map_stretch(SUPERBLOCK, Forest().view(), inode, first)


def test_a_tree_that_leads_to_itself_ends() -> None:
    forest = Forest()
    number = 1 << 33
    forest.blocks[number] = (header(84, 84, 4) + b"".join(index_entry(n, number) for n in range(84))).ljust(
        BLOCK_SIZE, b"\0"
    )
    inode = inode_of(header(1, 4, 5) + index_entry(0, number))
    with pytest.raises(CorruptFilesystem):
        map_blocks(SUPERBLOCK, forest.view(), inode, 0, 84)


def test_the_largest_hostile_tree_takes_bounded_time_and_memory() -> None:
    """Every block of the file has a leaf of its own, and every leaf four index blocks above it."""
    forest = Forest(1)
    extents = [(number, 1, 100 + number) for number in range(1024)]
    inode_entries = []
    for extent in extents:
        number = forest.add(header(1, 84, 0) + leaf_entry(*extent))
        for level in range(1, 3):
            number = forest.add(header(1, 84, level) + index_entry(extent[0], number))
        inode_entries.append((extent[0], number))
    level = 3
    while len(inode_entries) > 4:
        groups = [inode_entries[start : start + 84] for start in range(0, len(inode_entries), 84)]
        inode_entries = [
            (group[0][0], forest.add(header(len(group), 84, level) + b"".join(index_entry(*entry) for entry in group)))
            for group in groups
        ]
        level += 1
    inode = inode_of(header(len(inode_entries), 4, level) + b"".join(index_entry(*entry) for entry in inode_entries))
    started = time.process_time()
    assert map_blocks(SUPERBLOCK, forest.view(), inode, 0, 1024) == [100 + number for number in range(1024)]
    assert time.process_time() - started < 2
    large = cast(Superblock, SimpleNamespace(**{**vars(SUPERBLOCK), "block_size": 65536}))
    with pytest.raises(CorruptFilesystem, match="too large"):
        map_blocks(large, forest.view(), inode, 0, 1024)

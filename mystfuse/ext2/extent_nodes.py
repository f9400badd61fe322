"""What the nodes of an extent tree say, whatever else is wrong with them: for finding out whose a block is.

Unlike ``extents`` this takes from a broken node what can be made out. Layout: as there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mystfuse.ext2.extents import MAX_DEPTH, MAX_LOGICAL

_MAGIC = 0xF30A
_HEADER = struct.Struct("<HHHH4x")  # eh_magic eh_entries eh_max eh_depth eh_generation
_LEAF = struct.Struct("<IHHI")  # ee_block ee_len ee_start_hi ee_start_lo
_INDEX = struct.Struct("<IIHxx")  # ei_block ei_leaf_lo ei_leaf_hi
_LONGEST_WRITTEN = 32768


class ExtentRun(NamedTuple):
    """Consecutive blocks of a file."""

    number: int
    """The first one's block number."""
    length: int
    logical: int
    """Its place in the file."""
    is_written: bool
    """If not, they read as zeros, whatever they hold."""


class ExtentBlock(NamedTuple):
    """A block of the tree."""

    number: int
    depth: int
    """How many levels are below it."""
    logical: int
    end: int
    """It leads to the file's blocks from ``logical`` to ``end``, at most."""


def read_node(
    node: bytes, depth: int | None, logical: int = 0, end: int = MAX_LOGICAL
) -> tuple[list[ExtentRun], list[ExtentBlock]]:
    """The entries of a node.

    Args:
        node: i_block, or a block of the tree.
        depth: the levels below it; None: as the node says.
        logical, end: the file's blocks that it leads to, as the level above has it.
    """
    magic, count, _, eh_depth = _HEADER.unpack_from(node)
    count = min(count, len(node) // _LEAF.size - 1)
    if magic != _MAGIC or eh_depth > MAX_DEPTH or depth not in (None, eh_depth):
        return [], []
    area = node[_HEADER.size : _HEADER.size + count * _LEAF.size]
    if not eh_depth:
        runs: list[ExtentRun] = []
        for ee_block, length, high, low in _LEAF.iter_unpack(area):
            is_written = length <= _LONGEST_WRITTEN
            runs.append(ExtentRun(low | high << 32, length - (not is_written) * _LONGEST_WRITTEN, ee_block, is_written))
        return [run for run in runs if run.length], []
    entries = [(ei_block, low | high << 32) for ei_block, low, high in _INDEX.iter_unpack(area)]
    ends = [ei_block for ei_block, _ in entries[1:]] + [end]
    return [], [
        ExtentBlock(number, eh_depth - 1, max(ei_block, logical), min(stop, end))
        for (ei_block, number), stop in zip(entries, ends, strict=True)
    ]

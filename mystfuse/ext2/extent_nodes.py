"""What the nodes of an extent tree say, whatever else is wrong with them: for finding out whose a block is.

Unlike ``extents`` this takes from a broken node what can be made out. Layout: as there.
"""

from __future__ import annotations

from typing import NamedTuple

from mystfuse.ext2.extent_format import ENTRY_SIZE, HEADER, INDEX, LEAF, LONGEST_WRITTEN, MAGIC, MAX_DEPTH, MAX_LOGICAL


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
    magic, count, _, eh_depth, _ = HEADER.unpack_from(node)
    count = min(count, len(node) // ENTRY_SIZE - 1)
    if magic != MAGIC or eh_depth > MAX_DEPTH or depth not in (None, eh_depth):
        return [], []
    area = node[HEADER.size : HEADER.size + count * ENTRY_SIZE]
    if not eh_depth:
        runs: list[ExtentRun] = []
        for ee_block, length, high, low in LEAF.iter_unpack(area):
            is_written = length <= LONGEST_WRITTEN
            runs.append(ExtentRun(low | high << 32, length - (not is_written) * LONGEST_WRITTEN, ee_block, is_written))
        return [run for run in runs if run.length], []
    entries = [(ei_block, low | high << 32) for ei_block, low, high, _ in INDEX.iter_unpack(area)]
    ends = [ei_block for ei_block, _ in entries[1:]] + [end]
    return [], [
        ExtentBlock(number, eh_depth - 1, max(ei_block, logical), min(stop, end))
        for (ei_block, number), stop in zip(entries, ends, strict=True)
    ]

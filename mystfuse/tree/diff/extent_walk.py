"""All runs of blocks of an extent tree, and the blocks of the tree, whatever else is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import trio

from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.extent_nodes import read_node
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.volume.volume import Volume

_AT_ONCE = 64
"""Blocks that are read between two checkpoints."""


async def runs_of_tree(volume: Volume, root: bytes) -> AsyncIterator[list[tuple[int, int]]]:
    """The runs of one node after the other, as (block number, blocks): of a file's blocks, and of the tree's own. They
    may be outside the file system.

    Args:
        root: i_block.

    Raises:
        CorruptFilesystem, IntegrityError, ImageReadError
    """
    superblock = volume.superblock
    runs, level = read_node(root, None)
    yield [(run.number, run.length) for run in runs]
    walked: set[int] = set()
    while level:
        below = []
        for start in range(0, len(level), _AT_ONCE):
            await trio.lowlevel.checkpoint()
            # Trees of broken file systems may lead in circles.
            some = {
                node.number: node
                for node in level[start : start + _AT_ONCE]
                if superblock.is_data_block(node.number) and node.number not in walked
            }
            walked.update(some)
            yield [(number, 1) for number in some]
            for node, block in zip(some.values(), await volume.run(_read, list(some)), strict=True):
                runs, children = read_node(block, node.depth, node.logical, node.end)
                yield [(run.number, run.length) for run in runs]
                below += children
        level = below


def _read(filesystem: FileSystem, blocks: Blocks, numbers: Sequence[int]) -> list[bytes]:
    return [bytes(block) for block in blocks.all(numbers)]

"""Names in blocks of directories, without C: every block is ``UNUSUAL``, so that the caller parses it.

A call for each block would gain nothing in Python over what ``ext2.directory`` does anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from mystfuse.kernels.interface import UNUSUAL, Bytes


def find_entry(block: Bytes, has_filetype: bool, name: bytes) -> int:
    """Where ``name`` is in a block of a directory.

    Returns:
        ``offset << 32 | previous + 1``: byte offsets of its entry and of the one in front of it (-1 for the first), or
        ``NOT_FOUND``, or ``UNUSUAL``: the caller has to parse the block.
    """
    return UNUSUAL


def name_key(name: bytes) -> int:
    """A hash of 32 bits with a secret of the process, ``<< 32``."""
    return (hash(name) & 0xFFFFFFFF) << 32


def block_keys(
    blocks: Sequence[Bytes], first: int, has_filetype: bool, bits: int
) -> tuple[list[array[int]], list[int]]:
    """The names in consecutive blocks of a directory.

    Args:
        first: the number of the first one in the directory.
        bits: of the keys, by which they are divided.

    Returns:
        For each name ``name_key(name) | number of its block``, by its first ``bits`` bits: nothing, or ``1 << bits``
        arrays of type Q. And the indices of the blocks that the caller has to parse.
    """
    return [], list(range(len(blocks)))

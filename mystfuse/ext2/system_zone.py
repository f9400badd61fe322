"""Where an ext4 file system's own metadata is, in all groups together: with flex_bg, a group's may be in any other.

Source: fs/ext4/block_validity.c (ext4_setup_system_zone), fs/ext4/balloc.c (ext4_num_base_meta_clusters,
ext4_bg_num_gdb_meta, ext4_bg_num_gdb_nometa) for superblocks and descriptors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.superblock import Superblock


class SystemZone:
    """Blocks that no file can have.

    Args:
        runs: (first block, blocks), in any order.

    Raises:
        CorruptFilesystem: two of them overlap.
    """

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, length in sorted(runs):
            if self._ends and first < self._ends[-1]:
                raise CorruptFilesystem(f"block {first} belongs to the file system's metadata twice")
            if self._ends and first == self._ends[-1]:
                self._ends[-1] = first + length
            else:
                self._starts.append(first)
                self._ends.append(first + length)

    def runs_in(self, first: int, length: int) -> list[tuple[int, int]]:
        """Those among ``length`` blocks from block ``first`` on, as (place behind ``first``, blocks)."""
        found: list[tuple[int, int]] = []
        end = first + length
        for index in range(max(bisect_right(self._starts, first) - 1, 0), len(self._starts)):
            low, high = max(self._starts[index], first), min(self._ends[index], end)
            if self._starts[index] >= end:
                break
            if low < high:
                found.append((low - first, high - low))
        return found


def copies_in(superblock: Superblock, group: int) -> int:
    """The blocks at the start of a group that hold superblock and descriptors, those reserved for growth included."""
    has_superblock = superblock.group_has_superblock(group)
    per_block = superblock.descriptors_per_block
    if "meta_bg" in superblock.features:
        if group >= superblock.s_first_meta_bg * per_block:
            # In the first two and the last of the groups that the block describes.
            return has_superblock + (group % per_block in (0, 1, per_block - 1))
        descriptors = superblock.s_first_meta_bg
    else:
        descriptors = superblock.descriptor_blocks
    return 1 + descriptors + superblock.s_reserved_gdt_blocks if has_superblock else 0

"""What the blocks in fixed places hold: superblocks, group descriptors, bitmaps and inode tables.

Source: Documentation/filesystems/ext2.rst, and e2fsprogs, lib/ext2fs/initialize.c (``ext2fs_initialize``) for the order
in a group: superblock, descriptors, descriptors reserved for growth, and then, where the descriptor says, the rest.
With meta_bg: lib/ext2fs/closefs.c (``ext2fs_super_and_bgd_loc2``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from mystfuse.ext2.block_groups import GroupDescriptor, GroupTable
from mystfuse.ext2.superblock import Superblock

BOOT_BLOCK = "boot block"
SUPERBLOCK = "superblock"
DESCRIPTORS = "group descriptors"
RESERVED = "reserved group descriptors"
BLOCK_BITMAP = "block bitmap"
INODE_BITMAP = "inode bitmap"
INODE_TABLE = "inode table"
MMP = "multiple mount protection"
BACKUP = "backup "


class FixedRun(NamedTuple):
    """Consecutive blocks in a fixed place."""

    what: str
    """One of the names above; copies in groups other than the first begin with ``BACKUP``."""
    group: int
    first: int
    """Block number."""
    length: int
    """Blocks."""

    @property
    def end(self) -> int:
        """The number of the block behind the last one."""
        return self.first + self.length


def copies_of(groups: GroupTable, group: int) -> list[FixedRun]:
    """The superblock and the descriptors of a group, the boot block in front of the first, and the one block for
    multiple mount protection."""
    superblock = groups.superblock
    runs: list[FixedRun] = []
    if group == 0 and superblock.location[0]:
        runs.append(FixedRun(BOOT_BLOCK, 0, 0, superblock.location[0]))
    number = superblock.s_mmp_block
    if superblock.s_first_data_block < number < superblock.s_blocks_count and groups.locate_block(number)[0] == group:
        runs.append(FixedRun(MMP, group, number, 1))
    prefix, end = BACKUP if group else "", superblock.s_blocks_count
    position = groups.first_block(group) if group else superblock.location[0]
    has_superblock, place = superblock.group_has_superblock(group), group % superblock.descriptors_per_block
    descriptors, reserved = superblock.descriptor_blocks, superblock.s_reserved_gdt_blocks
    if "meta_bg" in superblock.features:
        descriptors = superblock.s_first_meta_bg
    of_group = prefix + DESCRIPTORS
    if group >= descriptors * superblock.descriptors_per_block:
        # With meta_bg: in the first two and the last of the groups that they describe.
        descriptors, reserved = int(place in (0, 1, superblock.descriptors_per_block - 1)), 0
        of_group = BACKUP + DESCRIPTORS if place else DESCRIPTORS
    elif not has_superblock:
        descriptors = reserved = 0
    for what, count in ((prefix + SUPERBLOCK, int(has_superblock)), (of_group, descriptors), (RESERVED, reserved)):
        count = min(count, end - position)
        if count > 0:
            runs.append(FixedRun(what, group, position, count))
            position += count
    return runs


def own_blocks_of(superblock: Superblock, group: int, places: GroupDescriptor) -> list[FixedRun]:
    """The bitmaps and the inode table of a group, whose descriptor is ``places``."""
    return [
        FixedRun(BLOCK_BITMAP, group, places.bg_block_bitmap, 1),
        FixedRun(INODE_BITMAP, group, places.bg_inode_bitmap, 1),
        FixedRun(INODE_TABLE, group, places.bg_inode_table, superblock.table_blocks),
    ]


def find_fixed(groups: GroupTable, number: int) -> FixedRun | None:
    """What block ``number`` holds, as far as ``groups`` knows the places of its group; None for any other block."""
    superblock = groups.superblock
    if number < superblock.s_first_data_block:
        return FixedRun(BOOT_BLOCK, 0, 0, superblock.s_first_data_block)
    group, _ = groups.locate_block(number)
    places = groups.known_places.get(group)
    runs = copies_of(groups, group)
    if "flex_bg" in superblock.features:
        # Anywhere; whoever asks has met damage, and has time.
        for other, descriptor in groups.known_places.items():
            runs += own_blocks_of(superblock, other, descriptor)
    elif places is not None:
        runs += own_blocks_of(superblock, group, places)
    return next((run for run in runs if run.first <= number < run.end), None)


def inodes_of(superblock: Superblock, run: FixedRun, first: int, count: int) -> range:
    """The numbers of the inodes that blocks ``first`` to ``first + count`` of a run are for: of an inode table those in
    it, of bitmaps and descriptors those that they describe; none for other blocks."""
    per_group = superblock.s_inodes_per_group
    base = run.group * per_group + 1
    if run.what == INODE_TABLE:
        per_block = superblock.block_size // superblock.s_inode_size
        low = (first - run.first) * per_block
        return range(base + low, base + min(low + count * per_block, per_group))
    if run.what == INODE_BITMAP:
        return range(base, base + per_group)
    if run.what == DESCRIPTORS:
        groups = groups_of(superblock, run, first, count)
        return range(groups.start * per_group + 1, groups.stop * per_group + 1)
    return range(0)


def groups_of(superblock: Superblock, run: FixedRun, first: int, count: int) -> range:
    """The groups whose descriptors are in these blocks of a run of descriptors; else the run's own group."""
    if not run.what.endswith(DESCRIPTORS) or run.what == RESERVED:
        return range(run.group, run.group + 1)
    per_block = superblock.descriptors_per_block
    low = (first - run.first) * per_block
    if "meta_bg" in superblock.features and run.group >= superblock.s_first_meta_bg * per_block:
        low = run.group // per_block * per_block
    return range(low, min(low + count * per_block, superblock.groups_count))


def describe_fixed(superblock: Superblock, run: FixedRun, first: int, count: int = 1) -> str:
    """Blocks ``first`` to ``first + count`` of a run in words: ``inode table of group 3, inodes 8209-8224``."""
    inodes = inodes_of(superblock, run, first, count)
    if run.what == INODE_TABLE:
        return f"{run.what} of group {run.group}, inodes {numbers(inodes)}"
    if run.what.endswith(DESCRIPTORS) and run.what != RESERVED:
        where = f" in group {run.group}" if run.group else ""
        groups = groups_of(superblock, run, first, count)
        return f"{run.what}{where}, of group{'s' * (len(groups) > 1)} {numbers(groups)}"
    if run.what in (BLOCK_BITMAP, INODE_BITMAP):
        return f"{run.what} of group {run.group}"
    return f"{run.what} in group {run.group}" if run.group else run.what


def numbers(some: range) -> str:
    """``7``, or ``7-9``."""
    return f"{some.start}" if len(some) == 1 else f"{some.start}-{some.stop - 1}"


def descriptor_copies(superblock: Superblock, index: int) -> Iterator[int]:
    """Where the copies of a block of the table of group descriptors are, without the first; at most a thousand."""
    per_block = superblock.descriptors_per_block
    if "meta_bg" in superblock.features and index >= superblock.s_first_meta_bg:
        for group in (index * per_block + 1, (index + 1) * per_block - 1):
            if group < superblock.groups_count:
                yield _start_of(superblock, group) + superblock.group_has_superblock(group)
        return
    groups = range(1, min(superblock.groups_count, 1 << 16))
    for group in islice(filter(superblock.group_has_superblock, groups), 1000):
        yield _start_of(superblock, group) + 1 + index


def _start_of(superblock: Superblock, group: int) -> int:
    return superblock.s_first_data_block + group * superblock.s_blocks_per_group

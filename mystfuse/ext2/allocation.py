"""Allocating and freeing blocks and inodes: bitmaps, group counts and superblock together.

Where things are put follows fs/ext2/balloc.c and ialloc.c: blocks in runs near a goal, files in their directory's
group, directories spread over the groups.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from errno import ENOSPC
from itertools import islice, pairwise
from operator import attrgetter

from mystfuse.errors import CorruptFilesystem, ImageReadError, IntegrityError
from mystfuse.ext2.bitmap import Bitmap
from mystfuse.ext2.block_groups import GroupCounts, GroupDescriptor, GroupTable
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO, EXT2_TOPDIR_FL
from mystfuse.ext2.group_bitmaps import GroupBitmaps
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.inode_table import InodeTable
from mystfuse.ext2.superblock import Superblock, change_free_counts, read_free_counts

log = logging.getLogger(__name__)

_NEAR_GROUPS = 8
"""Groups whose bitmaps are read before the whole descriptor table is."""
_MAX_GROUPS_SEARCHED = 4096
"""Groups to search one by one when no group has the free blocks that its counts state."""
_MAX_SEARCHED_BYTES = 16 << 20
"""Bytes of their bitmaps, which stay in memory until the operation ends."""
_FEW_BLOCKS = 4
_MAX_WRITABLE = 4096
_MAX_MISLEADING = 8
"""After so many wrong inode bitmaps no other is trusted either: each takes a fetch."""


class Allocator:
    """Takes and frees blocks and inodes of a file system.

    Nothing is allocated in a group whose bitmaps contradict its metadata, which is logged: as the kernel does.
    """

    def __init__(self, groups: GroupTable, inode_table: InodeTable) -> None:
        self.groups = groups
        self._superblock = groups.superblock
        self._inode_table = inode_table
        self._bitmaps = GroupBitmaps(groups)
        self._sound: set[int] = set()
        self._broken: set[int] = set()
        self._writable: set[int] = set()
        """Blocks that are not the file system's own: it never moves. Indirect and directory blocks come again and
        again."""
        self._misleading: set[int] = set()
        """Groups with a wrong inode bitmap."""

    def available_blocks(self, transaction: Transaction, caller: Caller) -> int:
        """The number of blocks that ``caller`` may take."""
        superblock = self._superblock
        free, _ = read_free_counts(superblock, transaction)
        return free if caller.may_use_reserved(superblock) else max(free - superblock.s_r_blocks_count, 0)

    def take_blocks(self, transaction: Transaction, caller: Caller, goal: int, count: int) -> list[int]:
        """Take up to ``count`` blocks, in runs, near block ``goal``; fewer only when no more are free.

        They keep their old contents: the caller fills them by ``transaction.create`` or ``put``.
        """
        superblock = self._superblock
        count = min(count, self.available_blocks(transaction, caller))
        if not count:
            return []
        if not superblock.is_data_block(goal):
            goal = superblock.s_first_data_block + 1
        home, bit = self.groups.locate_block(goal)
        taken = self._take_in_group(transaction, home, bit, count) if home in self._sound else []
        if len(taken) < count:
            for group in self._groups_with_blocks(transaction, home, count - len(taken)):
                taken += self._take_in_group(transaction, group, bit if group == home else 0, count - len(taken))
                if len(taken) == count:
                    break
        if taken:
            change_free_counts(superblock, transaction, -len(taken), 0)
        return taken

    def take_block(self, transaction: Transaction, caller: Caller, goal: int) -> int:
        """Take one block; OSError (ENOSPC) if there is none."""
        taken = self.take_blocks(transaction, caller, goal, 1)
        if not taken:
            raise OSError(ENOSPC, "no free block")
        return taken[0]

    def _groups_with_blocks(self, transaction: Transaction, home: int, count: int) -> Iterator[int]:
        """Groups with up to ``count`` free blocks, ``home`` first; their bitmaps are in memory when it yields them."""
        groups = self._superblock.groups_count
        near = [(home + step) % groups for step in range(min(_NEAR_GROUPS, groups))]
        chosen: list[int] = []
        found = 0
        for group in near:
            free = self.groups.descriptor(transaction, group).bg_free_blocks_count
            if free and group not in self._broken:
                chosen.append(group)
                found += free
                if found >= count:
                    break
        if found < count and groups > len(near):
            counts = self.groups.counts(transaction)
            for step in range(len(near), groups):
                group = (home + step) % groups
                if counts[group].free_blocks and group not in self._broken:
                    chosen.append(group)
                    found += counts[group].free_blocks
                    if found >= count:
                        break
        transaction.want(self.groups.places(transaction, group).bg_block_bitmap for group in chosen)
        yield from chosen
        # Reached only if a group has fewer free blocks than it states, or is unusable.
        if count:
            rest = (group for group in range(groups) if group not in chosen and group not in self._broken)
            yield from self._in_steps(transaction, rest, attrgetter("bg_block_bitmap"))

    def _in_steps(
        self, transaction: Transaction, groups: Iterable[int], bitmap: Callable[[GroupDescriptor], int]
    ) -> Iterator[int]:
        """The groups; fetches their bitmaps in ever larger steps, so that many groups take few misses."""
        most = min(_MAX_GROUPS_SEARCHED, _MAX_SEARCHED_BYTES // self._superblock.block_size)
        remaining, step = islice(groups, most), 1
        while chunk := list(islice(remaining, step)):
            if step > 1:
                self.groups.want_descriptors(transaction, chunk)
                transaction.want(bitmap(self.groups.places(transaction, group)) for group in chunk)
            yield from chunk
            step *= 4

    def _take_in_group(self, transaction: Transaction, group: int, start: int, count: int) -> list[int]:
        count = min(count, self.groups.group_counts(transaction, group)[0])
        if not count or not (group in self._sound or self._is_usable(transaction, group)):
            return []
        first_block = self.groups.first_block(group)
        bitmap = Bitmap(self._bitmaps.change_blocks(transaction, group), self.groups.size(group))
        taken: list[int] = []
        for position in (start, 0) if start else (0,):
            while len(taken) < count:
                first, length = bitmap.find_free_run(position, count - len(taken))
                if not length:
                    break
                bitmap.set(first, length)
                taken += range(first_block + first, first_block + first + length)
                position = first + length
        if taken:
            self.groups.change_counts(transaction, group, blocks=-len(taken))
        return taken

    def free_blocks(self, transaction: Transaction, numbers: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            CorruptFilesystem: one of them is free already, or holds the file system's own metadata.
        """
        by_group: dict[int, list[int]] = {}
        for number in sorted(numbers):
            if not self._superblock.is_data_block(number):
                raise CorruptFilesystem(f"block {number} cannot be freed: it is outside the file system")
            by_group.setdefault(self.groups.locate_block(number)[0], []).append(number)
        self.groups.want_descriptors(transaction, by_group)
        transaction.want(self.groups.descriptor(transaction, group).bg_block_bitmap for group in by_group)
        freed = 0
        for group, members in by_group.items():
            if not self._is_sound(transaction, group):
                raise CorruptFilesystem(f"group {group}: its bitmap contradicts its metadata")
            first_block = self.groups.first_block(group)
            runs = runs_of([number - first_block for number in members])
            if _overlap(runs, self.groups.metadata_runs(transaction, group)):
                raise CorruptFilesystem(f"group {group}: a block of a file is the file system's own")
            bitmap = Bitmap(self._bitmaps.change_blocks(transaction, group), self.groups.size(group))
            if not bitmap.clear(runs):
                raise CorruptFilesystem(f"group {group}: a block of a file is free, or belongs to it twice")
            self.groups.change_counts(transaction, group, blocks=len(members))
            freed += len(members)
            for number in members:
                transaction.discard(number)
        if freed:
            change_free_counts(self._superblock, transaction, freed, 0)

    def check_writable(self, transaction: Transaction, numbers: list[int]) -> None:
        """Raise CorruptFilesystem if one of these blocks of a file holds the file system's own metadata."""
        groups = self.groups
        if len(numbers) <= _FEW_BLOCKS and all(number in self._writable for number in numbers):
            return
        by_group: list[tuple[int, int, int]] = []
        for start, length in runs_of(numbers):
            low, bit = groups.locate_block(start)
            high = low + (bit + length - 1) // self._superblock.s_blocks_per_group
            by_group += [(group, start, length) for group in range(low, high + 1)]
        if len(by_group) > 1:
            # Fetch the bitmaps together: scattered blocks must not be a miss each.
            groups.want_places(transaction, {group for group, _, _ in by_group})
        for group, start, length in by_group:
            first = groups.first_block(group)
            if _overlap([(start - first, length)], groups.metadata_runs(transaction, group)):
                raise CorruptFilesystem(f"block {start} belongs to a file and to the file system itself")
        if len(numbers) <= _FEW_BLOCKS:
            if len(self._writable) >= _MAX_WRITABLE:
                self._writable.clear()
            self._writable.update(numbers)

    def take_inode(self, transaction: Transaction, directory: Inode, mode: int) -> int:
        """Take an inode number for a new inode in ``directory``.

        Raises:
            OSError: ENOSPC, there is none.
            CorruptFilesystem: too many inode bitmaps are wrong.
            BlocksMissing, MystfuseError
        """
        is_directory = stat.S_ISDIR(mode)
        _, free_inodes = read_free_counts(self._superblock, transaction)
        ino = self._take_any_inode(transaction, directory, is_directory) if free_inodes else 0
        if not ino:
            raise OSError(ENOSPC, "no free inode")
        change_free_counts(self._superblock, transaction, 0, -1)
        return ino

    def _take_any_inode(self, transaction: Transaction, directory: Inode, is_directory: bool) -> int:
        """Take an inode of the best group that has one; 0 if none has."""
        if not is_directory:
            parent, _ = self.groups.locate_inode(directory.ino)
            if self.groups.group_counts(transaction, parent)[0] and (
                ino := self._take_inode_in_group(transaction, parent, is_directory)
            ):
                return ino
        groups = _once_each(self._groups_for_inode(transaction, directory, is_directory))
        for group in self._in_steps(transaction, groups, attrgetter("bg_inode_bitmap")):
            if ino := self._take_inode_in_group(transaction, group, is_directory):
                return ino
        return 0

    def _take_inode_in_group(self, transaction: Transaction, group: int, is_directory: bool) -> int:
        """Take an inode of a group; 0 if none is free, or the group's bitmap is unusable."""
        superblock = self._superblock
        if not self.groups.group_counts(transaction, group)[1] or group in self._misleading:
            return 0
        if len(self._misleading) >= _MAX_MISLEADING:
            raise CorruptFilesystem(f"the inode bitmaps of {len(self._misleading)} groups are wrong: no inode is taken")
        try:
            block = self._bitmaps.inodes_in_use(transaction, group)
        except (IntegrityError, ImageReadError):
            # The error is logged where it was found; other groups have room.
            return 0
        except CorruptFilesystem as error:
            log.warning("%s: no inode is taken there", error)
            self._misleading.add(group)
            return 0
        reserved = superblock.s_first_ino - 1 if group == 0 else 0
        bitmap = Bitmap(block, superblock.s_inodes_per_group)
        index, length = bitmap.find_free_run(reserved, 1)
        if not length:
            return 0
        ino = group * superblock.s_inodes_per_group + index + 1
        is_new = self._bitmaps.is_new_inode(transaction, group, index)
        if not is_new and self._inode_table.is_in_use(transaction, ino):
            log.warning("group %d: its inode bitmap has an inode in use for free: no inode is taken there", group)
            self._misleading.add(group)
            return 0
        self._bitmaps.change_inodes(transaction, group)[index >> 3] |= 1 << (index & 7)
        self._bitmaps.note_inode(transaction, group, index)
        self.groups.change_counts(transaction, group, inodes=-1, directories=int(is_directory))
        return ino

    def free_inodes(self, transaction: Transaction, inodes: Sequence[Inode]) -> None:
        """Give inode numbers back.

        Raises:
            CorruptFilesystem: one of them is free already, or reserved.
        """
        superblock = self._superblock
        by_group: dict[int, list[Inode]] = {}
        for inode in inodes:
            by_group.setdefault(self.groups.locate_inode(inode.ino)[0], []).append(inode)
        for group, members in by_group.items():
            bitmap = Bitmap(self._bitmaps.change_inodes(transaction, group), superblock.s_inodes_per_group)
            for inode in members:
                index = (inode.ino - 1) % superblock.s_inodes_per_group
                if inode.ino < superblock.s_first_ino or not bitmap.clear([(index, 1)]):
                    raise CorruptFilesystem(f"inode {inode.ino} cannot be freed: it is reserved, or free already")
            directories = sum(inode.is_directory for inode in members)
            self.groups.change_counts(transaction, group, inodes=len(members), directories=-directories)
        if inodes:
            change_free_counts(superblock, transaction, 0, len(inodes))

    def may_free_now(self, transaction: Transaction, ino: int, numbers: Iterable[int]) -> bool:
        """Whether all that freeing an inode and some blocks takes is in memory, and nothing about it looks unusual.

        Raises:
            BlocksMissing, MystfuseError: it is not.
        """
        groups = self.groups
        transaction.block(groups.places(transaction, groups.locate_inode(ino)[0]).bg_inode_bitmap)
        for number in numbers:
            if not self._superblock.is_data_block(number):
                return False
            group = groups.locate_block(number)[0]
            transaction.block(groups.places(transaction, group).bg_block_bitmap)
            if not self._is_sound(transaction, group):
                return False
        return True

    def _groups_for_inode(self, transaction: Transaction, directory: Inode, is_directory: bool) -> Iterator[int]:
        """Groups to search for a free inode, the best first; every group in the end. For all but directories their
        parent's own group is better still."""
        superblock = self._superblock
        groups = superblock.groups_count
        parent = self.groups.locate_inode(directory.ino)[0]
        counts = self.groups.counts(transaction)
        if is_directory:
            top = directory.ino == EXT2_ROOT_INO or bool(directory.i_flags & EXT2_TOPDIR_FL)
            best = _least_used(counts) if top else _not_too_full(superblock, counts, parent)
            if best is not None:
                yield best
        else:
            # ext2's find_group_other: hash by the directory, so that its files stay together elsewhere.
            group, step = (parent + directory.ino) % groups, 1
            while step < groups:
                group = (group + step) % groups
                if counts[group].free_inodes and counts[group].free_blocks:
                    yield group
                step *= 2
        yield from (group % groups for group in range(parent, parent + groups) if counts[group % groups].free_inodes)

    def _is_usable(self, transaction: Transaction, group: int) -> bool:
        """Whether blocks can be taken from a group: its bitmap is readable, and covers the group's metadata."""
        try:
            return self._is_sound(transaction, group)
        except (IntegrityError, ImageReadError):
            # The error is logged where it was found; other groups have room.
            return False

    def _is_sound(self, transaction: Transaction, group: int) -> bool:
        """Whether a group's block bitmap covers the group's metadata, checked once."""
        if group in self._sound:
            return True
        if group in self._broken:
            return False
        places = self.groups.places(transaction, group)
        try:
            bitmap = self._block_bitmap(transaction, group)
        except CorruptFilesystem as error:
            log.warning("%s: nothing will be written there", error)
            self._broken.add(group)
            return False
        runs = self.groups.metadata_runs(transaction, group)
        if places.bg_block_bitmap != places.bg_inode_bitmap and all(
            bitmap.are_set(first, count) for first, count in runs
        ):
            self._sound.add(group)
            return True
        log.warning("group %d: its bitmap contradicts its metadata: nothing will be written there", group)
        self._broken.add(group)
        return False

    def _block_bitmap(self, transaction: Transaction, group: int) -> Bitmap:
        return Bitmap(self._bitmaps.blocks_in_use(transaction, group), self.groups.size(group))


def _once_each(groups: Iterable[int]) -> Iterator[int]:
    """Each group once, in the order of its first mention; lazy."""
    seen: set[int] = set()
    for group in groups:
        if group not in seen:
            seen.add(group)
            yield group


def _least_used(counts: list[GroupCounts]) -> int | None:
    """Orlov's rule for directories in the root: a group with more than average free, and the fewest directories."""
    inodes = sum(group.free_inodes for group in counts) // len(counts)
    blocks = sum(group.free_blocks for group in counts) // len(counts)
    fitting = [
        index
        for index, group in enumerate(counts)
        if group.free_inodes and group.free_inodes >= inodes and group.free_blocks >= blocks
    ]
    return min(fitting, key=lambda index: counts[index].used_dirs, default=None)


def _not_too_full(superblock: Superblock, counts: list[GroupCounts], parent: int) -> int | None:
    """Orlov's rule for other directories: near their parent, in a group that is not much fuller than the average."""
    groups = len(counts)
    average_inodes = sum(group.free_inodes for group in counts) // groups
    average_blocks = sum(group.free_blocks for group in counts) // groups
    most_dirs = sum(group.used_dirs for group in counts) // groups + superblock.s_inodes_per_group // 16
    least_inodes = max(average_inodes - superblock.s_inodes_per_group // 4, 1)
    least_blocks = average_blocks - superblock.s_blocks_per_group // 4
    order = [(parent + step) % groups for step in range(groups)]
    for index in order:
        group = counts[index]
        if group.used_dirs < most_dirs and group.free_inodes >= least_inodes and group.free_blocks >= least_blocks:
            return index
    return next((index for index in order if counts[index].free_inodes >= max(average_inodes, 1)), None)


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count)."""
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return [(numbers[0], len(numbers))]
    starts = [index for index, number in enumerate(numbers) if not index or number != numbers[index - 1] + 1]
    return [(numbers[start], end - start) for start, end in pairwise([*starts, len(numbers)])]


def _overlap(runs: Iterable[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    for first, count in runs:
        for other, length in others:
            if first < other + length and other < first + count:
                return True
    return False

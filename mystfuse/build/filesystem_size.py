"""How large a file system for a tree becomes: by the original's rule, or as small as there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mystfuse.build.filesystem_kind import EXT2, Kind
from mystfuse.build.mke2fs import Format, try_empty
from mystfuse.build.seal import VERITY_BLOCK_SIZE
from mystfuse.build.source_tree import SourceTree
from mystfuse.errors import MystfuseError
from mystfuse.ext2.superblock import Superblock

MIB = 1 << 20
MIN_SIZE = 8 << 20
"""The original's smallest file system."""
SMALL_LIMIT = 512 * MIB
"""mke2fs.conf: smaller file systems get 1 KiB blocks and an inode for 4 KiB, others 4 KiB blocks and one for 16 KiB."""
RESERVED = 0.95
"""mke2fs keeps 5 % for root."""
_MOST_BLOCKS = (1 << 32) - 1
_JOURNAL_BLOCKS = (
    (32768, 1024), (1 << 18, 4096), (1 << 19, 8192), (1 << 22, 16384), (1 << 23, 32768), (1 << 24, 65536),
    (1 << 25, 131072),
)  # fmt: skip
"""Of a journal, by the blocks of a file system that has fewer (e2fsprogs, lib/ext2fs/mkjournal.c,
ext2fs_default_journal_size)."""
_LARGEST_JOURNAL = 262144
_LEAST_WITH_JOURNAL = 2048
"""Blocks: of a smaller one mke2fs leaves the journal out."""
_MOST_TRIES = 64
"""More than doubling the smallest to the largest file system takes."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of the size."""

    size: int = 0
    """Bytes, at least."""
    is_smallest: bool = False
    free: int = 0
    """Bytes to leave free."""
    inodes: int = 0
    """At least so many in all."""


class Plan(NamedTuple):
    """A file system to try."""

    size: int
    """Bytes."""
    inodes: int
    """At least so many."""


def inode_ratio(size: int) -> int:
    """Bytes for each of which mke2fs makes an inode."""
    return 4096 if size < SMALL_LIMIT else 16384


def planned(tree: SourceTree, wishes: Wishes, block_size: int | None, kind: Kind = EXT2) -> Plan:
    """The size of the file system, and its minimum of inodes.

    The original's rule (its ``mkext2``): the directory's size rounded up to 1 MiB, times 1.5, at least 8 MiB. It
    ignores that small files fill whole blocks, and inodes: we add room for both, and for a journal.
    """
    size = max(round_up(tree.apparent_size, MIB) * 3 // 2, MIN_SIZE, wishes.size)
    inodes = max(tree.inodes + tree.inodes // 16 + 64, wishes.inodes)
    while True:
        chosen = block_size or (1024 if size < SMALL_LIMIT else 4096)
        inode_tables = max(inodes, size // inode_ratio(size)) * kind.inode_size
        needed = tree.content_size(chosen) + wishes.free
        if kind.has_journal:
            size = max(size, _LEAST_WITH_JOURNAL * chosen)
            needed += _journal_blocks(size // chosen) * chosen
        needed = int((needed + inode_tables) / RESERVED) + size // 512 + 64 * chosen
        if needed <= size:
            return Plan(round_up(size, max(chosen, VERITY_BLOCK_SIZE)), inodes)
        size = round_up(needed, MIB)


def _journal_blocks(blocks: int) -> int:
    """Blocks of the journal that mke2fs gives a file system of so many."""
    return next((journal for limit, journal in _JOURNAL_BLOCKS if blocks < limit), _LARGEST_JOURNAL)


def needed_inodes(tree: SourceTree, kind: Kind) -> int:
    """Inodes of a file system that holds the tree."""
    return tree.new_inodes + kind.used_inodes


def check_inodes(name: str, tree: SourceTree, wishes: Wishes, kind: Kind) -> None:
    """Raise MystfuseError if fewer inodes are wanted than the tree needs.

    Args:
        name: of the tree, for messages.
    """
    needed = needed_inodes(tree, kind)
    if 0 < wishes.inodes < needed:
        raise MystfuseError(f"{name}: --inodes {wishes.inodes} is too few: it needs {needed}")


def least(tree: SourceTree, wishes: Wishes, kind: Kind) -> int:
    """Bytes that the contents and the inodes take, about: what the block size of the smallest file system goes by."""
    return tree.content_size(1024) + wishes.free + needed_inodes(tree, kind) * kind.inode_size


class Smallest:
    """Finds the smallest file system with so many free blocks and inodes, by asking mke2fs for empty ones.

    Args:
        form: with a block size.
        inodes: how many there have to be.
    """

    def __init__(self, form: Format, inodes: int, kind: Kind = EXT2) -> None:
        assert form.block_size is not None
        self._form = form
        self._inode_size = kind.inode_size
        # mke2fs makes a multiple of 8 for each group, and rounds down: of too few, no file system comes.
        self._inodes = max(round_up(inodes, 8), 16)
        self._block_size = form.block_size
        self._step = max(form.block_size, VERITY_BLOCK_SIZE)
        self._tried: dict[int, tuple[Superblock, int] | None] = {}

    def free_blocks(self, size: int) -> int | None:
        """Free blocks of an empty file system of ``size`` bytes; None if there is none of that size."""
        tried = self._try(size)
        return None if tried is None else tried[0].s_free_blocks_count

    def find(self, blocks: int) -> Plan:
        """The smallest that has ``blocks`` free blocks.

        Raises:
            MystfuseError: mke2fs makes none that is large enough.
        """

        def spare(size: int) -> int | None:
            free = self.free_blocks(size)
            return None if free is None else free - blocks

        guess = blocks * self._block_size + self._inodes * self._inode_size
        high = find_smallest(spare, self._block_size, self._step, guess + guess // 128 + 64 * self._block_size)
        while True:
            # The next group has metadata of its own: a size just behind its beginning may hold less than the groups
            # before it do by themselves.
            superblock, inodes = self._tried[high] or (None, 0)
            assert superblock is not None
            groups = superblock.groups_count - 1
            end = superblock.s_first_data_block + groups * superblock.s_blocks_per_group
            below = round_up(end * self._block_size, self._step)
            left = spare(below) if groups and below < high else None
            if left is None or left < 0:
                return Plan(high, inodes)
            high = find_smallest(spare, self._block_size, self._step, below)

    def _try(self, size: int) -> tuple[Superblock, int] | None:
        if size not in self._tried:
            self._tried[size] = self._make(size)
        return self._tried[size]

    def _make(self, size: int) -> tuple[Superblock, int] | None:
        if size > _MOST_BLOCKS * self._block_size:
            raise MystfuseError(
                f"it needs more than {_MOST_BLOCKS} blocks of {self._block_size} bytes, the most that ext2 has"
            )
        asked = self._inodes
        while True:
            superblock = try_empty(size, asked, self._form)
            if superblock is None or superblock.s_inodes_count >= self._inodes:
                return None if superblock is None else (superblock, asked)
            asked += 8 * superblock.groups_count


def find_smallest(spare: Callable[[int], int | None], block_size: int, step: int, guess: int) -> int:
    """The size, a multiple of ``step``, at which ``spare`` gives 0 or more, and ``step`` bytes less do not.

    Args:
        spare: blocks to spare at a size: fewer than 0 if it is too small, None if it is much too small.
        guess: where to begin.

    Raises:
        MystfuseError: no size is large enough.
    """
    low, high = 0, round_up(guess, step)
    left = spare(high)
    for _ in range(_MOST_TRIES):
        if left is not None and left >= 0:
            break
        low = high
        high += round_up(high if left is None else max(high // 8, 2 * block_size * -left), step)
        left = spare(high)
    else:
        raise MystfuseError(f"mke2fs makes no file system with room for it: {high} bytes are too few")
    while high - low > step:
        # Right, unless there are fewer groups then.
        probe = high - left * block_size // step * step
        if probe == high:
            probe = high - step
        elif probe <= low:
            probe = low + (high - low) // step // 2 * step
        found = spare(probe)
        if found is not None and found >= 0:
            high, left = probe, found
        else:
            low = probe
    return high


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple

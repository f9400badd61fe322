"""The block maps of files, cached until something is committed: a reader comes back for the next piece."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from mystfuse.errors import MystfuseError
from mystfuse.ext2.block_map import Run
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_NDIR_BLOCKS
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode

WINDOW = 1024
"""Blocks of a file that are mapped together: the reach of one indirect block of 4 KiB."""
_SHIFT = WINDOW - EXT2_NDIR_BLOCKS
"""The first window is the direct blocks alone, so that the others begin where indirect blocks do."""
_MAX_INODES = 16384
_INODE_BYTES = 8 << 20
_MAX_RUNS = 65536
"""Bounds on the cache; past any of them, all of it is dropped."""


class FileMaps:
    """The inodes and block maps of regular files that were read lately."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._changes = 0
        self._inodes: dict[int, Inode] = {}
        # One may have 32 KiB.
        self._most_inodes = min(_MAX_INODES, _INODE_BYTES // filesystem.superblock.s_inode_size)
        self._windows: dict[tuple[int, int], tuple[list[int], list[Run]]] = {}
        """By inode number and number of the window: the first block, within it, of each run, and the runs."""
        self._run_count = 0

    def as_of(self, changes: int) -> FileMaps:
        """Drop everything if something has been committed since.

        Args:
            changes: a number that changes with each commit.
        """
        if changes != self._changes:
            self._changes = changes
            self._inodes.clear()
            self._forget_windows()
        return self

    def inode(self, blocks: Blocks, ino: int) -> Inode:
        """A regular file; see ``FileSystem.regular_file``."""
        inode = self._inodes.get(ino)
        if inode is None:
            inode = self._filesystem.regular_file(blocks, ino)
            if len(self._inodes) >= self._most_inodes:
                self._inodes.clear()
            self._inodes[ino] = inode
        return inode

    def runs(self, blocks: Blocks, inode: Inode, first: int, count: int) -> list[Run]:
        """Where ``count`` blocks of a file are, from its block ``first`` on, none of them past its end; see
        ``FileSystem.map_file``."""
        number, position = divmod(first + _SHIFT, WINDOW)
        if position + count > WINDOW:
            here = WINDOW - position
            return self.runs(blocks, inode, first, here) + self.runs(blocks, inode, first + here, count - here)
        window = self._windows.get((inode.ino, number))
        if window is None:
            try:
                with blocks.speculating():
                    window = self._map_window(blocks, inode, number)
            except MystfuseError:
                # Another part of the window may be broken: that does not matter here.
                return self._filesystem.map_file(blocks, inode, first, count)
        starts, runs = window
        end = position + count
        index = bisect_right(starts, position) - 1
        found: list[Run] = []
        while position < end:
            physical, length = runs[index]
            skipped = position - starts[index]
            taken = min(length - skipped, end - position)
            found.append(Run(physical + skipped if physical else 0, taken))
            position += taken
            index += 1
        return found

    def _map_window(self, blocks: Blocks, inode: Inode, number: int) -> tuple[list[int], list[Run]]:
        begin = number * WINDOW - _SHIFT
        first = max(begin, 0)
        end = -(-inode.size // self._filesystem.superblock.block_size)
        runs = self._filesystem.map_file(blocks, inode, first, min(begin + WINDOW, end) - first)
        starts = [*accumulate((run.length for run in runs), initial=first - begin)][:-1]
        if self._run_count > _MAX_RUNS:
            self._forget_windows()
        self._windows[inode.ino, number] = window = starts, runs
        self._run_count += len(runs)
        return window

    def _forget_windows(self) -> None:
        self._windows.clear()
        self._run_count = 0

"""Looking for the paths of damaged files, in the background of a mount."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import NamedTuple

import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2.block_map import map_block
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_ROOT_INO, PATH_MAX
from mystfuse.ext2.directory import block_count, directory_block, names_in
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode_blocks import DIRECTORY, KINDS_OF_ENTRIES
from mystfuse.volume.damage_names import DamageNames
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)

MAX_BLOCKS = 20_000
"""Blocks of directories that one search reads."""
MAX_DIRECTORIES = 20_000
"""Directories that one search keeps."""
MAX_PATHS_BYTES = 4 << 20
"""Of their paths."""
MAX_SECONDS = 20.0
CACHE_BYTES = 1 << 20
"""The search has a cache of its own, so that it takes nothing from that of the requests."""
_GATHERING = 0.2
"""Seconds after the first damage until a search begins: a program that reads on meets more."""
_MIN_PAUSE = 0.0005
"""Seconds of pause, at least, between two blocks; as long as the work took, if that is more."""


class _Directory(NamedTuple):
    ino: int
    path: bytes


class DamagedPaths:
    """Searches the directories, from the root down, for the inodes that ``names`` waits for.

    It finds the present names, one for each inode. Damage that it meets itself is passed over, and not reported.

    Args:
        runner: with a cache of its own.
    """

    def __init__(self, filesystem: FileSystem, runner: Runner, names: DamageNames) -> None:
        self._filesystem = filesystem
        self._runner = runner
        self._names = names

    async def run(self) -> None:
        """Search whenever there is something to look for, until cancelled."""
        while True:
            await self._names.has_waiting.wait()
            await trio.sleep(_GATHERING)
            wanted = self._names.take_waiting()
            try:
                await self._search(wanted)
            except MemoryError:
                log.error("no memory left to look for the paths of damaged files")

    async def _search(self, wanted: set[int]) -> None:
        queue, seen = deque([_Directory(EXT2_ROOT_INO, b"")]), {EXT2_ROOT_INO}
        blocks_read, paths_bytes, is_whole, is_over = 0, 0, True, False
        deadline = trio.current_time() + MAX_SECONDS
        while queue and wanted and not is_over:
            directory = queue.popleft()
            logical = count = 0
            await trio.lowlevel.checkpoint()
            is_over = trio.current_time() > deadline
            try:
                count = await self._runner.run(self._block_count, directory.ino)
            except NotADirectoryError:
                # Where names do not say what they are the names of.
                continue
            except MystfuseError:
                is_whole = False
            while logical < count and wanted and not is_over:
                began = time.monotonic()
                try:
                    names = await self._runner.run(self._names_in, directory.ino, logical)
                except (MystfuseError, OSError):
                    # It is damaged, or has been removed meanwhile. The next block may be good.
                    is_whole, names = False, []
                for name, ino, file_type in names:
                    if name in (b".", b".."):
                        continue
                    path = directory.path + b"/" + name
                    if ino in wanted:
                        wanted.discard(ino)
                        log.error("inode %d is %s", ino, self._names.know(ino, path))
                    if KINDS_OF_ENTRIES.get(file_type, DIRECTORY) == DIRECTORY and ino not in seen:
                        paths_bytes += len(path)
                        if len(seen) < MAX_DIRECTORIES and len(path) < PATH_MAX and paths_bytes < MAX_PATHS_BYTES:
                            seen.add(ino)
                            queue.append(_Directory(ino, path))
                        else:
                            is_whole = False
                blocks_read, logical = blocks_read + 1, logical + 1
                await trio.sleep(max(time.monotonic() - began, _MIN_PAUSE))
                is_over = blocks_read >= MAX_BLOCKS or trio.current_time() > deadline
        is_whole = is_whole and not is_over
        for ino in sorted(wanted):
            self._names.know(ino, None)
            if is_whole:
                log.error("inode %d has no name", ino)
            else:
                log.error("inode %d: no path found in %d directory blocks; verify --files names it", ino, blocks_read)

    def _block_count(self, blocks: Blocks, ino: int) -> int:
        with blocks.speculating():
            return block_count(self._filesystem.superblock, self._filesystem.directory(blocks, ino))

    def _names_in(self, blocks: Blocks, ino: int, logical: int) -> list[tuple[bytes, int, int]]:
        superblock = self._filesystem.superblock
        with blocks.speculating():
            directory = self._filesystem.directory(blocks, ino)
            number = map_block(superblock, blocks, directory, logical)
            return list(names_in(superblock, bytes(directory_block(superblock, directory, blocks, logical, number))))

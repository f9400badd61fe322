"""Freeing, when a volume is opened, what a crash kept from being freed."""

from __future__ import annotations

import logging
from functools import partial

import trio

from mystfuse.errors import MystfuseError, StorageTimeout
from mystfuse.ext2 import orphans
from mystfuse.ext2.caller import ROOT
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.orphan_list import finish_truncation, first_orphan, next_orphan, set_first_orphan
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)


async def free_orphans(filesystem: FileSystem, runner: Runner) -> None:
    """Work off the orphan list of a file system with a journal, one inode after the other, as the kernel does.

    If that fails, for damage or want of room, the rest of the list stays: these inodes and blocks remain in use.

    Raises:
        StorageTimeout: storage does not answer.
    """
    superblock = filesystem.superblock
    if "has_journal" not in superblock.features:
        # Only drivers with a journal keep a list, and work it off.
        return
    ino = await runner.run(partial(first_orphan, superblock))
    if ino and superblock.has_errors:
        # The kernel does not trust the list either.
        await runner.change(0, ROOT, set_first_orphan, 0)
        return
    done = 0
    try:
        while ino:
            ino = await _free(filesystem, runner, ino)
            await runner.change(0, ROOT, set_first_orphan, ino)
            done += 1
            await trio.lowlevel.checkpoint()
    except StorageTimeout:
        raise
    except (MystfuseError, OSError) as error:
        log.warning("the orphan list is not worked off: %s", error)
    if done:
        log.info("%d orphans of an earlier mount are freed", done)


async def _free(filesystem: FileSystem, runner: Runner, ino: int) -> int:
    """Free one orphan, or what it has behind its end. Returns the next one."""
    filesystem.orphans.add(ino)
    try:
        following, has_name = await runner.run(partial(next_orphan, filesystem), ino)
        step = finish_truncation if has_name else orphans.release
        while not await runner.change(ino, ROOT, step, ino):
            await trio.lowlevel.checkpoint()
        return following
    finally:
        filesystem.orphans.discard(ino)

"""Freeing, when a volume is opened, what a crash kept from being freed."""

from __future__ import annotations

import logging
from functools import partial

import trio

from mystfuse.errors import MystfuseError, StorageTimeout
from mystfuse.ext2 import orphans
from mystfuse.ext2.caller import ROOT
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.orphan_file import clear_orphan_block, clear_orphan_present, listed_orphans, orphan_file_blocks
from mystfuse.ext2.orphan_list import finish_truncation, first_orphan, next_orphan, set_first_orphan
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)


async def free_orphans(filesystem: FileSystem, runner: Runner) -> None:
    """Work off the orphan list of a file system with a journal, one inode after the other, and the orphan file, as the
    kernel does.

    If that fails, for damage or want of room, the rest of the list stays: these inodes and blocks remain in use.

    Raises:
        StorageTimeout: storage does not answer.
    """
    superblock = filesystem.superblock
    if "has_journal" not in superblock.features:
        # Only drivers with a journal keep a list, and work it off.
        return
    ino = await runner.run(partial(first_orphan, superblock))
    if superblock.has_errors:
        # The kernel does not trust the list either.
        if ino:
            await runner.change(0, ROOT, set_first_orphan, 0)
        return
    done = 0
    try:
        while ino:
            ino = await _free(filesystem, runner, ino)
            await runner.change(0, ROOT, set_first_orphan, ino)
            done += 1
            await trio.lowlevel.checkpoint()
        if "orphan_present" in superblock.features:
            done += await _free_listed(filesystem, runner)
    except StorageTimeout:
        raise
    except (MystfuseError, OSError) as error:
        log.warning("the orphan list is not worked off: %s", error)
    if done:
        log.info("%d orphans of an earlier mount are freed", done)


async def _free_listed(filesystem: FileSystem, runner: Runner) -> int:
    """Work off the orphan file; returns how many inodes it listed."""
    done: set[int] = set()
    for number in await runner.run(partial(orphan_file_blocks, filesystem)):
        for ino in await runner.run(partial(listed_orphans, filesystem), number):
            if ino in done:
                # No driver lists one twice. A small image could list one a million times.
                continue
            await _free(filesystem, runner, ino, is_listed=True)
            done.add(ino)
            await trio.lowlevel.checkpoint()
        await runner.change(0, ROOT, clear_orphan_block, number)
    await runner.change(0, ROOT, clear_orphan_present)
    return len(done)


async def _free(filesystem: FileSystem, runner: Runner, ino: int, is_listed: bool = False) -> int:
    """Free one orphan, or what it has behind its end. Returns the next one in the orphan list.

    Args:
        is_listed: whether it comes from the orphan file, so that none follows.
    """
    filesystem.orphans.add(ino)
    try:
        if is_listed:
            following, has_name = 0, bool((await runner.run(filesystem.inode, ino)).i_links_count)
        else:
            following, has_name = await runner.run(partial(next_orphan, filesystem), ino)
        step = finish_truncation if has_name else orphans.release
        while not await runner.change(ino, ROOT, step, ino):
            await trio.lowlevel.checkpoint()
        return following
    finally:
        filesystem.orphans.discard(ino)

"""Freeing removed files when they are not in use any more, and waiting for that where space is short."""

from __future__ import annotations

import logging

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError, StorageTimeout
from mystfuse.ext2 import orphans
from mystfuse.ext2.caller import ROOT
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)

_PATIENCE = 0.05
"""Seconds that an operation without space waits for the release of removed files: RELEASE and FORGET come a moment
after close(2) or unlink(2) has returned."""
_LONG_PATIENCE = 5.0
"""Seconds while a release is under way: storage may hang for it."""


class Releases:
    """The releases of a volume's orphans.

    Args:
        waiting: the file system's orphans, those in use included.
    """

    def __init__(self, runner: Runner, waiting: set[int]) -> None:
        self._runner = runner
        self._orphans = waiting
        self._released = trio.Event()
        self._being_released: set[int] = set()
        """Orphans that are not in use, and will be freed now or next."""
        self._deferred: dict[int, None] = {}
        """Orphans that are not in use, and whose release failed; the one that was tried last comes last."""
        self._corrupt: set[int] = set()
        """Orphans whose release fails for good: not tried again."""

    @property
    def may_free_more(self) -> bool:
        """Whether space may become free soon. Orphans whose release failed will free nothing."""
        return len(self._orphans) > len(self._deferred) + len(self._corrupt)

    async def wait_for_one(self, began: float) -> bool:
        """Wait until something has been freed, not long after ``began`` by trio's clock; whether it was."""
        # A release in progress frees something with every step.
        patience = _LONG_PATIENCE if self._being_released else _PATIENCE
        released = self._released
        with trio.move_on_at(began + patience) as waiting:
            await released.wait()
        return not waiting.cancelled_caught

    async def release(self, *inos: int) -> None:
        """Free orphans that are not in use any more, and their blocks.

        An orphan whose release fails, for want of a block of the image, of memory or of room in the overlay, is tried
        again when another inode has been freed, since the obstacle may be gone. The first one that fails again ends
        that, so a release fails twice at most, however many are waiting. When storage does not answer for one, the rest
        waits untried: each would take as long.
        """
        is_new = {ino: ino not in self._deferred for ino in inos if ino not in self._being_released}
        self._being_released |= is_new.keys()
        self._corrupt -= is_new.keys()
        for ino in is_new:
            self._deferred.pop(ino, None)
        try:
            if await self._release_together(list(is_new)):
                await self._release_deferred()
            for ino in [ino for ino in is_new if ino in self._being_released]:
                if await self._release(ino, is_new[ino]):
                    await self._release_deferred()
        except StorageTimeout:
            pass
        finally:
            rest = [ino for ino in is_new if ino in self._being_released]
            self._deferred.update(dict.fromkeys(rest))
            self._being_released.difference_update(rest)
            self._tell_released()

    async def _release_together(self, inos: list[int]) -> bool:
        """Free those of some orphans that take few steps, many in one transaction; whether there were any."""
        any_free = False
        for start in range(0, len(inos), orphans.MAX_TOGETHER):
            if start:
                await trio.lowlevel.checkpoint()
            some = inos[start : start + orphans.MAX_TOGETHER]
            try:
                freed = await self._runner.change(0, ROOT, orphans.release_together, some, self._runner.is_held)
            except StorageTimeout:
                raise
            except (MystfuseError, OSError, MemoryError):
                # Whatever it is that concerns one or some of them: they will be tried one by one.
                continue
            if freed:
                any_free = True
                self._being_released -= freed
                self._tell_released()
        return any_free

    async def _release_deferred(self) -> None:
        """Try again to free the failed orphans, until one fails again."""
        is_free = True
        while is_free and self._deferred:
            await trio.lowlevel.checkpoint()
            ino = next(iter(self._deferred), None)
            if ino is None:
                return
            self._being_released.add(ino)
            del self._deferred[ino]
            is_free = await self._release(ino, is_new=False)

    async def _release(self, ino: int, is_new: bool) -> bool:
        """Free an orphan of those being released; False if it is not free.

        Raises:
            StorageTimeout: it is deferred, and so should be the others.
        """
        try:
            while not await self._runner.change(ino, ROOT, orphans.release, ino):
                self._tell_released()
                await trio.lowlevel.checkpoint()
            return True
        except CorruptFilesystem as error:
            log.warning("removed inode %d cannot be freed: %s", ino, error)
            self._corrupt.add(ino)
            return False
        except (MystfuseError, OSError, MemoryError) as error:
            if is_new:
                log.warning("removed inode %d cannot be freed yet: %s", ino, error or "no memory left")
            self._deferred[ino] = None
            if isinstance(error, StorageTimeout):
                raise
            return False
        finally:
            self._being_released.remove(ino)
            self._tell_released()

    def _tell_released(self) -> None:
        self._released.set()
        self._released = trio.Event()

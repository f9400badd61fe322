"""The merged file system, image and overlay together, as one run of bytes: as it was when it was opened."""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Device
from mystfuse.errors import MystfuseError, StorageTimeout
from mystfuse.ext2 import orphans
from mystfuse.ext2.block_map import Run
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.caller import ROOT
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.system.workers import Workers
from mystfuse.volume.read_plan import ReadPlan, fetch, join
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)

_BITMAPS_KEPT = 64


class MergedImage:
    """A snapshot of a volume. Use ``MergedImage.open``, and ``close`` when done.

    In it every inode without a name has been released, so that e2fsck finds it clean; free blocks are zeros.
    """

    def __init__(
        self, filesystem: FileSystem, snapshot: Snapshot, cache: BlockCache, device: Device, workers: Workers
    ) -> None:
        self.size = filesystem.superblock.size
        """Bytes."""
        self._filesystem = filesystem
        self.snapshot = snapshot
        """The written blocks."""
        self._device = device
        self._workers = workers
        self._runner = Runner(filesystem, cache, snapshot, lambda: 0)
        self._bitmaps: OrderedDict[int, bytes] = OrderedDict()

    @classmethod
    async def open(
        cls, filesystem: FileSystem, overlay: Overlay, cache: BlockCache, device: Device, workers: Workers
    ) -> MergedImage:
        """The present state; later writes do not show.

        Raises:
            OSError: EBUSY, too many are open; ENOSPC, the overlay has no room for the difference.
            StorageTimeout: storage does not answer while orphans are released.
        """
        snapshot = overlay.snapshot()
        try:
            image = cls(filesystem.fork(), snapshot, cache, device, workers)
            await image._release_orphans()
        except BaseException:
            snapshot.close()
            raise
        return image

    def close(self) -> None:
        """Give back everything that only this snapshot holds."""
        self.snapshot.close()

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Up to ``length`` bytes from byte ``offset`` on; fewer only at the end.

        Raises:
            MystfuseError: reading blocks failed.
        """
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        block_size, end = self._filesystem.superblock.block_size, offset + length
        written: dict[int, bytes | int] = {}
        first, last = offset // block_size, (end - 1) // block_size
        for number in range(first, last + 1):
            block = self.snapshot.get(number)
            if block is not None:
                written[number] = block
            elif not await self._is_in_use(number):
                written[number] = bytes(block_size)
        run = Run(first, last + 1 - first)
        plan = ReadPlan([run], written.get if written else None, block_size, offset, end, hole=-1)
        try:
            fetched = await fetch(self._device, self._workers, plan.extents, quietly=True)
        except DamagedBlocks as damage:
            self._runner.names.report_image(damage)
            raise
        # A snapshot's blocks in the store stay there.
        recalled = await self.snapshot.recall(plan.versions) if plan.versions else {}
        return join(plan.parts(fetched, recalled))

    async def _is_in_use(self, number: int) -> bool:
        superblock = self._filesystem.superblock
        if number < superblock.s_first_data_block:
            return True
        group, bit = divmod(number - superblock.s_first_data_block, superblock.s_blocks_per_group)
        bit //= superblock.blocks_per_cluster
        bitmap = self._bitmaps.get(group)
        if bitmap is None:
            bitmap = self._bitmaps[group] = await self._runner.run(self._read_bitmap, group)
            if len(self._bitmaps) > _BITMAPS_KEPT:
                self._bitmaps.popitem(last=False)
        return bool(bitmap[bit // 8] >> bit % 8 & 1)

    def _read_bitmap(self, blocks: Blocks, group: int) -> bytes:
        bitmap = self._filesystem.groups.block_bitmap(blocks, group)
        # Without one, metadata may be anywhere in the group.
        return b"\xff" * self._filesystem.superblock.block_size if bitmap is None else bytes(bitmap)

    async def _release_orphans(self) -> None:
        for ino in sorted(self._filesystem.orphans):
            # Blocks in memory need no waiting, so let other tasks run.
            await trio.lowlevel.checkpoint()
            try:
                while not await self._runner.change(ino, ROOT, orphans.release, ino):
                    await trio.lowlevel.checkpoint()
            except StorageTimeout:
                # The next one would wait as long.
                raise
            except MystfuseError as error:
                log.warning("a removed file stays in the merged image: %s", error)

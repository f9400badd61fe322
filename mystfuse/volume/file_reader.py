"""Reading regular files: locates a range, fetches it, and makes sure that it is of one state of the file system."""

from __future__ import annotations

from collections.abc import Iterable

from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Device
from mystfuse.errors import CorruptFilesystem, IntegrityError, MystfuseError
from mystfuse.ext2.block_map import Run
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inline_data import read_inline
from mystfuse.overlay.overlay import Overlay
from mystfuse.system.workers import Workers
from mystfuse.volume.file_maps import FileMaps
from mystfuse.volume.read_plan import Part, ReadPlan, fetch, join
from mystfuse.volume.runner import Runner

_ATTEMPTS = 2
"""How often a read whose blocks change meanwhile is tried before writers of the file have to wait."""


class Reader:
    """How one reader, with a handle of its own, fares with a file."""

    def __init__(self) -> None:
        self.failed = range(0)
        """Bytes of the last request that failed silently, because the reader may not need them."""

    def has_failed(self, offset: int, length: int) -> bool:
        """Whether some of these bytes were among them: then they are needed."""
        return offset < self.failed.stop and self.failed.start < offset + length


class FileReader:
    """Reads the regular files of a volume.

    Args:
        overlay: the written blocks; None for a read-only volume.
        workers: threads for long ranges.
    """

    def __init__(
        self, filesystem: FileSystem, runner: Runner, device: Device, overlay: Overlay | None, workers: Workers
    ) -> None:
        self._maps = FileMaps(filesystem)
        self._block_size = filesystem.superblock.block_size
        self._runner = runner
        self._device = device
        self._overlay = overlay
        self._workers = workers

    def runs(self, blocks: Blocks, ino: int, first: int, count: int) -> list[Run]:
        """See ``Volume.file_runs``."""
        maps = self._maps.as_of(self._runner.commits)
        return maps.runs(blocks, maps.inode(blocks, ino), first, count)

    async def read(self, ino: int, offset: int, length: int, reader: Reader | None, is_ahead: bool) -> Part:
        """See ``Volume.read``."""
        quietly = is_ahead and reader is not None and not reader.has_failed(offset, length)
        recalled: dict[int, bytes | MystfuseError] = {}
        try:
            for _ in range(_ATTEMPTS):
                data = await self._try_read(ino, offset, length, recalled, quietly)
                if data is not None:
                    return data
            with self._runner.hold(ino):
                data = await self._try_read(ino, offset, length, recalled, quietly)
        except IntegrityError:
            if quietly and reader is not None:
                reader.failed = range(offset, offset + length)
            raise
        if data is None:
            raise CorruptFilesystem(f"inode {ino}: its blocks change, and not by writes to it")
        return data

    async def _try_read(
        self, ino: int, offset: int, length: int, recalled: dict[int, bytes | MystfuseError], quietly: bool
    ) -> Part | None:
        """Read a range of a file; None if its blocks changed while they were fetched.

        Args:
            recalled: blocks from the store; it adds more.
            quietly: see ``Device.read``.
        """
        plan = await self._runner.run(self._locate, ino, offset, length, quietly)
        commits, extents = self._runner.commits, plan.extents
        try:
            fetched = parts = await fetch(self._device, self._workers, extents, quietly=True)
        except DamagedBlocks as damage:
            if not quietly:
                self._runner.names.report_file(damage, ino, offset, plan)
            raise
        await self._recall(plan.versions, recalled)
        while commits != self._runner.commits:
            plan = await self._runner.run(self._locate, ino, offset, length, quietly)
            commits = self._runner.commits
            picked = plan.pick(extents, fetched)
            if picked is None:
                return None
            parts = picked
            # Blocks may have gone to the store meanwhile, which is no change: each does so once.
            await self._recall(plan.versions, recalled)
        if not recalled.keys() >= set(plan.versions):
            return None
        return join(plan.parts(parts, recalled))

    async def _recall(self, versions: Iterable[int], recalled: dict[int, bytes | MystfuseError]) -> None:
        missing = [version for version in versions if version not in recalled]
        if missing:
            assert self._overlay is not None
            recalled.update(await self._overlay.recall(missing))

    def _locate(self, blocks: Blocks, ino: int, offset: int, length: int, quietly: bool = False) -> ReadPlan:
        """The read plan of a range of a file, with copies of its written blocks, as of now."""
        if quietly:
            with blocks.speculating():
                return self._locate(blocks, ino, offset, length)
        maps = self._maps.as_of(self._runner.commits)
        inode = maps.inode(blocks, ino)
        block_size, end = self._block_size, min(offset + length, inode.size)
        if end <= offset:
            return ReadPlan([], None, block_size, offset, offset)
        if inode.is_inline:
            return ReadPlan.holding(read_inline(inode)[offset:end].ljust(end - offset, b"\0"))
        first, last = offset // block_size, (end - 1) // block_size
        overlay = self._overlay
        written = overlay.get if overlay is not None and overlay.blocks else None
        return ReadPlan(maps.runs(blocks, inode, first, last + 1 - first), written, block_size, offset, end)

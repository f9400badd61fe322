"""Reading regular files: locates a range, fetches it, and makes sure that it is of one state of the file system."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec

from mystfuse.devices.device import Device, PendingRead
from mystfuse.errors import CorruptFilesystem, IntegrityError, MystfuseError
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.overlay.overlay import Overlay
from mystfuse.system.workers import Workers
from mystfuse.volume.file_maps import FileMaps
from mystfuse.volume.read_ahead import ReadAhead, Stream
from mystfuse.volume.read_plan import Part, ReadPlan, fetch, join
from mystfuse.volume.runner import Runner

_ATTEMPTS = 2
"""How often a read whose blocks change meanwhile is tried before writers of the file have to wait."""

P = ParamSpec("P")


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
        self._read_ahead = ReadAhead(
            lambda *range_: self._begin(self._locate, *range_), lambda: runner.commits, workers
        )

    async def read(self, ino: int, offset: int, length: int, stream: Stream | None, is_ahead: bool) -> Part:
        """See ``Volume.read``."""
        if stream is not None:
            ahead = await self._read_ahead.read(stream, ino, offset, length)
            if ahead is not None:
                return ahead
        quietly = is_ahead and stream is not None and not stream.has_failed(offset, length)
        recalled: dict[int, bytes | MystfuseError] = {}
        try:
            for _ in range(_ATTEMPTS):
                data = await self._try_read(ino, offset, length, recalled, quietly)
                if data is not None:
                    return data
            with self._runner.hold(ino):
                data = await self._try_read(ino, offset, length, recalled, quietly)
        except IntegrityError:
            if quietly and stream is not None:
                stream.failed = range(offset, offset + length)
            raise
        if data is None:
            raise CorruptFilesystem(f"inode {ino}: its blocks change, and not by writes to it")
        return data

    def read_now(self, ino: int, longest: int) -> Part | None:
        """See ``Volume.read_now``."""

        def locate(blocks: Blocks) -> ReadPlan | None:
            if self._maps.as_of(self._runner.commits).inode(blocks, ino).size > longest:
                return None
            return self._locate(blocks, ino, 0, longest)

        begun = self._begin(locate)
        if begun is None:
            return None
        plan, pending = begun
        fetched = pending()
        return None if fetched is None else join(plan.parts(fetched, {}))

    def close_stream(self, stream: Stream) -> None:
        """See ``Volume.close_stream``."""
        self._read_ahead.drop(stream)

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
        fetched = parts = await fetch(self._device, self._workers, extents, quietly)
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

    def _begin(
        self, locate: Callable[Concatenate[Blocks, P], ReadPlan | None], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[ReadPlan, PendingRead] | None:
        """Begin to read the plan of ``locate``, if that needs no waiting for storage; else None. It does not report
        errors: ``read`` meets them again, and does."""
        try:
            plan = self._runner.run_now(locate, *args, **kwargs)
            if plan is None or plan.versions:
                return None
            pending = self._device.begin(plan.extents)
        except (MystfuseError, OSError):
            return None
        return None if pending is None else (plan, pending)

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
        first, last = offset // block_size, (end - 1) // block_size
        overlay = self._overlay
        written = overlay.get if overlay is not None and overlay.blocks else None
        return ReadPlan(maps.runs(blocks, inode, first, last + 1 - first), written, block_size, offset, end)

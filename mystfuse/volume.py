"""The asynchronous side of the file system: runs operations of the ext2 core, fetches the blocks they miss through the
pipeline, and reads file data. What FUSE and the API stand on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, StorageTimeout
from mystfuse.ext2.block_map import Run
from mystfuse.ext2.blocks import Blocks, BlocksMissing
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.directory import Entry
from mystfuse.ext2.filesystem import FileSystem, Statistics
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

log = logging.getLogger(__name__)

MAX_RUNS = 14
"""How often an operation may miss blocks and be run again: two inodes, each with its descriptor, three levels of
indirection and a block, and one to spare each."""
MAX_PINNED_BYTES = 64 << 20

P = ParamSpec("P")
T = TypeVar("T")


class Volume:
    """A file system on a device. Use ``Volume.open``."""

    def __init__(self, superblock: Superblock, device: Device) -> None:
        self.superblock = superblock
        self.cache = BlockCache(device, superblock.block_size)
        self._device = device
        self._filesystem = FileSystem(superblock)

    @classmethod
    async def open(cls, device: Device) -> Volume:
        """Read the superblock.

        Raises:
            FormatError: not an EXT2 file system, one with unsupported features, or a corrupt one.
            IntegrityError, ImageReadError: as the device does.
        """
        if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            raise FormatError(f"{device.size} bytes are too few for an EXT2 file system")
        (data,) = await device.read([Extent(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)])
        superblock = Superblock.parse(data)
        if superblock.size > device.size:
            raise FormatError(
                f"the EXT2 file system has {superblock.size} bytes, but only {device.size} are there (truncated?)"
            )
        if superblock.has_errors:
            log.warning("the file system is marked as having errors: run e2fsck on the image it was made from")
        return cls(superblock, device)

    async def inode(self, ino: int) -> Inode:
        """The inode with number ``ino``; raises CorruptFilesystem, IntegrityError or ImageReadError."""
        return await self._run(self._filesystem.inode, ino)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """What ``name`` in directory ``parent`` refers to; None if there is no such name."""
        return await self._run(self._filesystem.lookup, parent, name)

    async def parent(self, directory: Inode) -> int:
        """The inode number of the directory above."""
        return await self._run(self._filesystem.parent, directory)

    async def entries(self, ino: int, offset: int, max_entries: int) -> tuple[list[tuple[Entry, Inode | None]], int]:
        """Entries of a directory from byte ``offset`` on, each with its inode, or None where that cannot be had.

        Returns:
            The entries, and the offset to go on from: the directory's size when there are no more.
        """
        entries, next_offset = await self._run(self._filesystem.entries, ino, offset, max_entries)
        inodes = await self._run(self._filesystem.inodes, [entry.ino for entry in entries])
        return list(zip(entries, inodes, strict=True)), next_offset

    async def target(self, ino: int) -> bytes:
        """The target of a symbolic link."""

        def target(blocks: Blocks) -> bytes:
            return self._filesystem.target(blocks, self._filesystem.inode(blocks, ino))

        return await self._run(target)

    async def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes of an inode by full name."""

        def xattrs(blocks: Blocks) -> dict[bytes, bytes]:
            return self._filesystem.xattrs(blocks, self._filesystem.inode(blocks, ino))

        return await self._run(xattrs)

    async def read(self, ino: int, offset: int, length: int) -> bytes | memoryview:
        """Up to ``length`` bytes of a regular file from byte ``offset`` on; fewer only at its end.

        Raises:
            IsADirectoryError: not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        size, first_byte, runs = await self._run(self._map_range, ino, offset, length)
        stop = min(offset + length, size)
        block_size = self.superblock.block_size
        extents: list[Extent] = []
        parts: list[bytes | memoryview | None] = []
        end = first_byte
        for run in runs:
            position, end = end, end + run.length * block_size
            low, high = max(position, offset), min(end, stop)
            if run.physical:
                extents.append(Extent(run.physical * block_size + low - position, high - low))
                parts.append(None)
            else:
                parts.append(bytes(high - low))
        data = iter(await self._device.read(extents))
        filled = [next(data) if part is None else part for part in parts]
        return filled[0] if len(filled) == 1 else b"".join(filled)

    def _map_range(self, blocks: Blocks, ino: int, offset: int, length: int) -> tuple[int, int, list[Run]]:
        """Where a byte range of a file is: the file's size, the byte that the first run starts with, and the runs."""
        inode = self._filesystem.regular_file(blocks, ino)
        block_size = self.superblock.block_size
        length = min(length, inode.size - offset)
        if length <= 0:
            return inode.size, offset, []
        first, last = offset // block_size, (offset + length - 1) // block_size
        return inode.size, first * block_size, self._filesystem.map_file(blocks, inode, first, last + 1 - first)

    def statistics(self) -> Statistics:
        """What statfs(2) reports."""
        return self._filesystem.statistics()

    async def _run(self, operation: Callable[Concatenate[Blocks, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation of the core, again and again until all the blocks it needs are in memory."""
        blocks = Blocks(self.cache.get)
        runs = 0
        while True:
            try:
                return operation(blocks, *args, **kwargs)
            except BlocksMissing as error:
                missing = error
            if missing.progress:
                blocks.pinned.clear()
                blocks.damaged.clear()
                runs = 0
            runs += 1
            if runs > MAX_RUNS or not missing.numbers.isdisjoint(blocks.pinned):
                raise RuntimeError(f"an operation missed {sorted(missing.numbers)[:4]} in run {runs}: it cannot end")
            await self._fetch(missing, blocks)
            if len(blocks.pinned) * self.cache.block_size > MAX_PINNED_BYTES:
                raise RuntimeError(f"an operation needs over {MAX_PINNED_BYTES} bytes of blocks")

    async def _fetch(self, missing: BlocksMissing, blocks: Blocks) -> None:
        """Fetch and pin what an operation missed.

        A damaged block must not fail what is fetched along with it: then each is fetched by itself, and those that
        cannot be had are noted in ``blocks.damaged``.
        """
        wanted = missing.numbers | missing.ahead
        try:
            blocks.pinned.update(await self.cache.fetch(wanted))
        except StorageTimeout:
            raise
        except (IntegrityError, ImageReadError) as error:
            if len(wanted) == 1:
                blocks.damaged.update(dict.fromkeys(wanted, error))
                return
            for number in wanted:
                await self._fetch(BlocksMissing([number]), blocks)

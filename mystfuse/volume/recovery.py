"""Replaying a file system's journal into the overlay, before anything else is read of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import CorruptFilesystem, ImageReadError, IntegrityError, MystfuseError, StorageTimeout
from mystfuse.ext2.constants import SUPERBLOCK_SIZE
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.journal import MAX_READ, Place, Steps, T, replay
from mystfuse.ext2.journal_format import JournalSuperblock, unescaped
from mystfuse.ext2.journal_inode import read_journal_inode
from mystfuse.ext2.recovered_superblock import count_free, recovered_superblock
from mystfuse.ext2.superblock import Superblock
from mystfuse.overlay.arena import Content
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.space import OverlayBusy
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)

_READ_AHEAD = 64 * 1024
"""Bytes that are read where one block is wanted: the next ones often are too."""


async def recover(device: Device, superblock: Superblock, overlay: Overlay, io_timeout: float) -> Superblock:
    """Replay the journal of a file system that needs it, as if its blocks were written now.

    Args:
        superblock: as the image has it.
        overlay: nothing has been written to it; it has the recovered blocks then, and a superblock and a journal that
            need no recovery.
        io_timeout: seconds for storage.

    Returns:
        The superblock of the recovered file system.

    Raises:
        CorruptFilesystem: the journal is broken where the kernel would not mount it either.
        UnsupportedFeature: it is an external one, or has a feature that mystfuse does not have, or too many blocks.
        IntegrityError, ImageReadError: as the device does.
        MystfuseError: there is no memory for it.
    """
    filesystem = FileSystem(superblock)
    runner = Runner(filesystem, BlockCache(device, superblock.block_size), None, lambda: 0, io_timeout)
    inode = await runner.run(partial(read_journal_inode, filesystem))
    recovery = _Recovery(device, superblock, overlay, _Journal(device, filesystem, runner, inode), io_timeout)
    try:
        return await recovery.run()
    except OSError as error:
        raise MystfuseError(f"no room for what the journal has: {error.strerror or error}") from error


class _Journal:
    """The journal's blocks, from the image."""

    def __init__(self, device: Device, filesystem: FileSystem, runner: Runner, inode: Inode) -> None:
        self._device = device
        self._filesystem = filesystem
        self._runner = runner
        self._inode = inode
        self._block_size = filesystem.superblock.block_size
        self.length = inode.size // self._block_size
        """Blocks."""
        self._latest, self._contents = range(0), b""
        """The blocks that were read last, and their bytes."""

    async def place(self, block: int) -> int:
        """The number that a block of the journal has in the file system."""
        (extent,) = await self._extents(range(block, block + 1))
        return extent.offset // self._block_size

    async def read(self, blocks: range) -> bytes:
        """The bytes of consecutive blocks; raises as ``recover``."""
        if blocks.start not in self._latest or blocks.stop > self._latest.stop:
            least = max(_READ_AHEAD // self._block_size, len(blocks))
            wanted = range(blocks.start, min(blocks.start + least, self.length))
            try:
                parts = await self._device.read(await self._extents(wanted), quietly=True)
            except StorageTimeout:
                raise
            except MystfuseError:
                # Those that nobody wants may be damaged.
                wanted = blocks
                parts = await self._read_needed(await self._extents(wanted))
            self._latest, self._contents = wanted, b"".join(parts)
        start = (blocks.start - self._latest.start) * self._block_size
        return self._contents[start : start + len(blocks) * self._block_size]

    async def _read_needed(self, extents: list[Extent]) -> list[memoryview]:
        try:
            return await self._device.read(extents)
        except (IntegrityError, ImageReadError) as error:
            raise error.at("the journal") from None

    async def run(self, steps: Steps[T]) -> T:
        """The result of steps that want blocks of the journal."""
        try:
            blocks = next(steps)
            while True:
                blocks = steps.send(await self.read(blocks))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _extents(self, blocks: range) -> list[Extent]:
        runs = await self._runner.run(self._filesystem.map_file, self._inode, blocks.start, len(blocks))
        if not all(run.physical for run in runs) or blocks.stop > self.length:
            raise CorruptFilesystem(f"inode {self._inode.ino}: the journal has a hole, at block {blocks.start} or on")
        return [Extent(run.physical * self._block_size, run.length * self._block_size) for run in runs]


class _Recovery:
    def __init__(
        self, device: Device, superblock: Superblock, overlay: Overlay, journal: _Journal, io_timeout: float
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._overlay = overlay
        self._journal = journal
        self._block_size = superblock.block_size
        self._io_timeout = io_timeout

    async def run(self) -> Superblock:
        first = await self._journal.read(range(1))
        journal = JournalSuperblock.parse(first, self._block_size, self._journal.length)
        # The superblocks of file system and journal are written in any case.
        most = max(self._overlay.room - 2, 0)
        places, transactions, sequence = await self._journal.run(
            replay(journal, self._device.size // self._block_size, most)
        )
        if transactions:
            log.info("replaying %d blocks of %d transactions from the journal, in memory", len(places), transactions)
        own_place = await self._journal.place(0)
        places.pop(own_place, None)
        number, offset = self._superblock.location
        before = await self._read(number)
        replayed = await self._content(places.pop(number)) if number in places else before

        def recovered(free: tuple[int, int] | None) -> bytes:
            own = slice(offset, offset + SUPERBLOCK_SIZE)
            new = recovered_superblock(before[own], replayed[own], journal.s_errno != 0, free)
            return replayed[: own.start] + new + replayed[own.stop :]

        superblock = Superblock.parse(recovered(None)[offset:])
        superblock.check_fits(self._device.size)
        if superblock.block_size != self._block_size:
            raise CorruptFilesystem("the journal has a superblock of another block size")
        await self._write(places)
        free = await self._count_free(superblock)
        await self._commit({own_place: journal.cleaned(first, sequence), number: recovered(free)})
        return Superblock.parse(recovered(free)[offset:])

    async def _count_free(self, superblock: Superblock) -> tuple[int, int] | None:
        """See ``recovered_superblock``."""
        filesystem, cache = FileSystem(superblock), BlockCache(self._device, self._block_size)
        runner = Runner(filesystem, cache, self._overlay, lambda: 0, self._io_timeout)
        try:
            free_blocks, free_inodes = await runner.run(partial(count_free, filesystem))
        except StorageTimeout:
            raise
        except MystfuseError:
            # They are broken, or more than we count. Who writes to it will hear of that.
            return None
        return min(free_blocks, superblock.s_blocks_count), min(free_inodes, superblock.s_inodes_count)

    async def _read(self, number: int) -> bytes:
        """A block of the image."""
        (data,) = await self._device.read([Extent(number * self._block_size, self._block_size)])
        return bytes(data)

    async def _content(self, place: Place) -> bytes:
        content = await self._journal.read(range(place.block, place.block + 1))
        return unescaped(content) if place.is_escaped else content

    async def _write(self, places: dict[int, Place]) -> None:
        """Put the blocks into the overlay, in the order in which the journal has them."""
        in_order = iter(sorted((place, number) for number, place in places.items()))
        places.clear()
        step = min(MAX_READ, self._overlay.most_at_once or MAX_READ)
        while some := list(islice(in_order, max(step // self._block_size, 1))):
            contents: dict[int, Content] = {}
            for (place, number), content in zip(some, await self._contents([place for place, _ in some]), strict=True):
                contents[number] = unescaped(content) if place.is_escaped else content
            await self._commit(contents)

    async def _contents(self, places: list[Place]) -> list[bytes]:
        """The blocks of the journal at some places, as they are there."""
        contents: list[bytes] = []
        for blocks in _runs(places):
            data = await self._journal.read(blocks)
            contents += [data[start : start + self._block_size] for start in range(0, len(data), self._block_size)]
        return contents

    async def _commit(self, blocks: dict[int, Content]) -> None:
        while True:
            try:
                self._overlay.commit(blocks, (), use_reserve=False)
                return
            except OverlayBusy as error:
                busy = error
            await self._overlay.make_room(busy)


def _runs(places: list[Place]) -> Iterator[range]:
    """Consecutive blocks of the journal, in ranges."""
    start = 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index].block != places[index - 1].block + 1:
            yield range(places[start].block, places[index - 1].block + 1)
            start = index

"""The holes of regular files: finding them, filling them and making them: lseek(2) with SEEK_DATA and SEEK_HOLE,
fallocate(2)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress

import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2 import fallocate
from mystfuse.ext2.block_map import max_file_size
from mystfuse.ext2.caller import ROOT, Caller
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.truncate import MAX_TRIMMED
from mystfuse.volume.volume import Volume

_STEP = 4 << 20
"""Bytes that one transaction allocates at most."""
_MAX_HOLES = 100_000
"""Holes that ``allocate`` can take back."""
_STRETCHES_AT_ONCE = 64
"""Stretches after which other tasks run."""


async def seek(volume: Volume, ino: int, offset: int, wants_data: bool) -> int:
    """The first byte from ``offset`` on that is data, or in a hole: behind the last data is one, at the file's end.

    Raises:
        OSError: ENXIO, ``offset`` is not before the file's end, or there is no data behind it.
        IsADirectoryError: not a regular file.
        MystfuseError: as of ``Volume.stretch``.
    """
    stretches = _Stretches(volume, ino, offset)
    while await stretches.advance():
        if stretches.is_data == wants_data:
            return stretches.start
    if wants_data or stretches.end == offset:
        raise OSError(errno.ENXIO, f"inode {ino} has nothing behind byte {offset}")
    return stretches.end


async def punch(volume: Volume, ino: int, offset: int, length: int, caller: Caller) -> None:
    """Make a hole of bytes of a file; of blocks that are only partly in it, these bytes become zeros.

    Raises:
        OSError: EPERM, the file is immutable or append-only; ENOSPC, the overlay has no room for a block to zero;
            EROFS.
        MystfuseError
    """
    block_size = volume.superblock.block_size
    inode = await volume.inode(ino)
    if inode.is_immutable or inode.is_append_only or inode.has_verity:
        raise OSError(errno.EPERM, f"inode {ino} is immutable or append-only, or has fs-verity")
    if volume.superblock.has_inline_data:
        # As the kernel does, before all else (fs/ext4/extents.c, ext4_fallocate).
        await volume.change(ino, caller, fallocate.leave_inode, ino)
        inode = await volume.inode(ino)
    end = min(offset + length, inode.size)
    first = -(-offset // block_size)
    last = -(-end // block_size) if end == inode.size else end // block_size
    if offset < end:
        if offset < first * block_size:
            await volume.change(ino, caller, fallocate.zero_within, ino, offset, min(first * block_size, end))
        if first <= last and last * block_size < end:
            await volume.change(ino, caller, fallocate.zero_within, ino, last * block_size, end)
        if inode.has_extents:
            await _punch_extents(volume, ino, first, last, caller)
        else:
            await _punch_blocks(volume, ino, first, last, caller)
    await volume.change(ino, caller, fallocate.finish, ino, 0)


async def _punch_blocks(volume: Volume, ino: int, first: int, last: int, caller: Caller) -> None:
    """Make holes of blocks ``first`` to ``last`` (exclusive)."""
    block_size = volume.superblock.block_size
    stretches = _Stretches(volume, ino, first * block_size)
    freed = 0
    while await stretches.advance() and stretches.start < last * block_size:
        if stretches.is_data:
            number, stop = stretches.start // block_size, -(-stretches.end // block_size)
            await volume.change(ino, caller, fallocate.punch, ino, number, min(stop, last) - number)
            freed += min(stop, last) - number
            if freed >= MAX_TRIMMED:
                freed = 0
                volume.check_may_wait()
                await trio.lowlevel.checkpoint()


async def _punch_extents(volume: Volume, ino: int, first: int, last: int, caller: Caller) -> None:
    """The same for a file with extents, of which some may count as zeros already."""
    while first < last:
        first = await volume.change(ino, caller, fallocate.punch_some, ino, first, last, MAX_TRIMMED)
        if first < last:
            volume.check_may_wait()
            await trio.lowlevel.checkpoint()


async def allocate(
    volume: Volume, ino: int, offset: int, length: int, keeps_size: bool, zeroes: bool, caller: Caller
) -> None:
    """Give a part of a file blocks wherever it has holes: all of it or, without room for all, nothing.

    Args:
        zeroes: the whole part reads as zeros afterwards.

    Raises:
        OSError: EPERM, the file is immutable, or append-only and to be zeroed; ENOSPC; EFBIG; EROFS; EOPNOTSUPP: the
            size is to be kept, and the part goes on behind the file's last block, where a block map has no blocks;
            ENOMEM: it has too many holes.
        MystfuseError
    """
    superblock = volume.superblock
    block_size = superblock.block_size
    inode = await volume.inode(ino)
    end = offset + length
    if inode.is_immutable or inode.has_verity or (inode.is_append_only and zeroes):
        raise OSError(errno.EPERM, f"inode {ino} is immutable or append-only, or has fs-verity")
    if volume.superblock.has_inline_data:
        await volume.change(ino, caller, fallocate.leave_inode, ino)
        inode = await volume.inode(ino)
    if keeps_size and not inode.has_extents and end > -(-inode.size // block_size) * block_size:
        raise OSError(errno.EOPNOTSUPP, "ext2 has no blocks behind the end of a file")
    largest = max_file_size(superblock, inode)
    if end > largest:
        raise OSError(errno.EFBIG, f"{end} bytes are more than the largest file size {largest}")
    if inode.has_extents:
        await _allocate_extents(volume, ino, range(offset, end), keeps_size, zeroes, caller)
        return
    first, last = offset // block_size, -(-end // block_size)
    most = max(_STEP // block_size, 1)
    holes = await _holes(volume, ino, first, last)
    count = sum(count for _, count in holes)
    if len(holes) > 1 or (last - first if zeroes else count) > most:
        # Transactions by themselves are whole already.
        volume.check_may_wait()
        await volume.change(0, caller, fallocate.check_room, count, count)
        if zeroes:
            memory = 0
            for start, blocks in _pieces([(first, last - first)], most):
                memory += await volume.change(0, caller, fallocate.count_not_held, ino, start, blocks)
                await trio.lowlevel.checkpoint()
            await volume.change(0, caller, fallocate.check_room, count, memory)
    zeroed = range(offset, end) if zeroes else range(0)
    has_begun = False
    try:
        for start, blocks in _pieces([(first, last - first)] if zeroes else holes, most):
            if has_begun:
                volume.check_may_wait()
                await trio.lowlevel.checkpoint()
            size = None if keeps_size else min((start + blocks) * block_size, end)
            await volume.change(ino, caller, fallocate.allocate, ino, start, blocks, zeroed, size)
            has_begun = True
        await volume.change(ino, caller, fallocate.finish, ino, 0 if keeps_size else end)
    except (OSError, MystfuseError):
        if has_begun:
            await _undo(volume, inode, holes)
        raise


async def _allocate_extents(
    volume: Volume, ino: int, part: range, keeps_size: bool, zeroes: bool, caller: Caller
) -> None:
    """``allocate`` for a file with extents: its holes get blocks that count as zeros.

    If somebody else takes the room that there was, what has been allocated until then stays, as with the kernel.
    """
    block_size = volume.superblock.block_size
    first, last = part.start // block_size, -(-part.stop // block_size)
    position, missing = first, 0
    while position < last:
        holes, position = await volume.change(0, caller, fallocate.count_missing, ino, position, last)
        missing += holes
        if position < last:
            volume.check_may_wait()
            await trio.lowlevel.checkpoint()
    await volume.change(0, caller, fallocate.check_room, missing, 0)
    position = first
    while position < last:
        position = await volume.change(ino, caller, fallocate.allocate_some, ino, position, part, keeps_size, zeroes)
        if position < last:
            volume.check_may_wait()
            await trio.lowlevel.checkpoint()


def _pieces(parts: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Parts of a file, as (first block, number of blocks), cut into pieces of ``most`` blocks."""
    for first, count in parts:
        for start in range(first, first + count, most):
            yield start, min(first + count - start, most)


async def _undo(volume: Volume, inode: Inode, holes: list[tuple[int, int]]) -> None:
    """Take back what ``allocate`` has filled: somebody else has taken the room that there was."""
    last = -(-inode.size // volume.superblock.block_size)
    with suppress(OSError, MystfuseError):
        while not await volume.change(inode.ino, ROOT, fallocate.shrink, inode.ino, inode.size):
            await trio.lowlevel.checkpoint()
    for first, count in holes:
        with suppress(OSError, MystfuseError):
            await _punch_blocks(volume, inode.ino, first, min(first + count, last), ROOT)


async def _holes(volume: Volume, ino: int, first: int, last: int) -> list[tuple[int, int]]:
    """The holes among blocks ``first`` to ``last`` (exclusive) of a file: (first block, number of blocks). What is
    behind its end counts as one."""
    block_size = volume.superblock.block_size
    stretches = _Stretches(volume, ino, first * block_size)
    holes: list[tuple[int, int]] = []
    while await stretches.advance() and stretches.start < last * block_size:
        if not stretches.is_data:
            number = stretches.start // block_size
            holes.append((number, min(-(-stretches.end // block_size), last) - number))
            if len(holes) > _MAX_HOLES:
                raise OSError(errno.ENOMEM, f"inode {ino} has more than {_MAX_HOLES} holes there")
    reached = -(-stretches.end // block_size)
    if reached < last:
        holes.append((reached, last - reached))
    return holes


class _Stretches:
    """Goes through the data and the holes of a file from byte ``offset`` on, up to its end."""

    def __init__(self, volume: Volume, ino: int, offset: int) -> None:
        self.is_data = False
        """Whether the present stretch is data."""
        self.start = self.end = offset
        """Its first byte, and the one behind it."""
        self._volume = volume
        self._ino = ino
        self._count = 0

    async def advance(self) -> bool:
        """Go to the next stretch; False if there is none."""
        self._count += 1
        if self._count % _STRETCHES_AT_ONCE == 0:
            self._volume.check_may_wait()
            await trio.lowlevel.checkpoint()
        self.is_data, length = await self._volume.stretch(self._ino, self.end)
        self.start, self.end = self.end, self.end + length
        return length > 0

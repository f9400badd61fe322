"""What differs between two inodes of two states of one file system."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.tree.diff.change import Aspect
from mystfuse.volume.volume import Volume

_ACLS = frozenset({POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT})
_BYTES_AT_ONCE = 1 << 20


class InodeAspects:
    """Compares inodes of an old and a new state. What is in blocks that have not been written is not read.

    Args:
        is_written: whether a block may differ between the two.
    """

    def __init__(self, old: Volume, new: Volume, is_written: Callable[[int], bool]) -> None:
        self._old = old
        self._new = new
        self._is_written = is_written

    async def compare(self, old: Inode, new: Inode) -> frozenset[Aspect]:
        """What differs, ``LINKS`` apart. Times of access and change do not count.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        if stat.S_IFMT(old.i_mode) != stat.S_IFMT(new.i_mode):
            return frozenset({Aspect.TYPE})
        aspects = {
            aspect
            for aspect, before, after in (
                (Aspect.MODE, old.i_mode, new.i_mode),
                (Aspect.OWNER, old.uid, new.uid),
                (Aspect.GROUP, old.gid, new.gid),
                (Aspect.MTIME, old.mtime_ns, new.mtime_ns),
                (Aspect.DEVICE, old.rdev, new.rdev),
            )
            if before != after
        }
        if new.is_regular:
            if old.size != new.size:
                aspects |= {Aspect.SIZE, Aspect.CONTENT}
            elif await self._has_other_content(old, new):
                aspects.add(Aspect.CONTENT)
        elif new.is_symlink and await self._old.target(old.ino) != await self._new.target(new.ino):
            aspects.add(Aspect.TARGET)
        return frozenset(aspects | await self._compare_xattrs(old, new))

    async def _compare_xattrs(self, old: Inode, new: Inode) -> set[Aspect]:
        is_same_block = old.i_file_acl == new.i_file_acl and not self._is_written(new.i_file_acl)
        if old.extra == new.extra and is_same_block:
            return set()
        before, after = await self._old.xattrs(old.ino), await self._new.xattrs(new.ino)
        names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        aspects: set[Aspect] = set()
        if names & _ACLS:
            aspects.add(Aspect.ACL)
        if names - _ACLS:
            aspects.add(Aspect.XATTRS)
        return aspects

    async def _has_other_content(self, old: Inode, new: Inode) -> bool:
        superblock = self._new.superblock
        size, end, position = superblock.block_size, new.size, 0
        # A sound file has no more blocks, and each table of pointers may begin and end a hole; a broken one could have
        # the same blocks again and again.
        blocks_left, steps_left = 2 * superblock.s_blocks_count, 8 * superblock.s_blocks_count
        while position < end:
            await trio.lowlevel.checkpoint()
            before = await _piece(self._old, old, position)
            after = await _piece(self._new, new, position)
            length = min(before.length, after.length, end - position)
            steps_left -= 1
            if before.is_data or after.is_data:
                blocks_left -= -(-length // size)
                if await self._differs(old, new, position, length):
                    return True
            if blocks_left < 0 or steps_left < 0:
                raise CorruptFilesystem(f"inode {new.ino}: it has more blocks than the file system")
            position += length
        return False

    async def _differs(self, old: Inode, new: Inode, position: int, length: int) -> bool:
        """Whether two files differ in some bytes."""
        size = self._new.superblock.block_size
        first, last = position // size, (position + length - 1) // size
        before = await self._old.run(_map, old, first, last + 1 - first)
        after = await self._new.run(_map, new, first, last + 1 - first)
        # Contents in the inodes have no blocks, and such a file has only few bytes.
        are_inline = old.is_inline and new.is_inline
        differing = [
            logical
            for logical, (one, other) in enumerate(zip(before, after, strict=True), first)
            if one != other or self._is_written(other) or are_inline
        ]
        for start, count in _runs(differing, _BYTES_AT_ONCE // size or 1):
            low, high = max(start * size, position), min((start + count) * size, position + length)
            one = bytes(await self._old.read(old.ino, low, high - low))
            other = bytes(await self._new.read(new.ino, low, high - low))
            if one.ljust(high - low, b"\0") != other.ljust(high - low, b"\0"):
                return True
            await trio.lowlevel.checkpoint()
        return False


class _Piece(NamedTuple):
    is_data: bool
    length: int
    """Bytes."""


async def _piece(volume: Volume, inode: Inode, position: int) -> _Piece:
    """Whether a file has data at a byte, and for how long; behind its end there is a hole."""
    if position >= inode.size:
        return _Piece(False, 1 << 63)
    is_data, length = await volume.stretch(inode.ino, position)
    return _Piece(is_data, length)


def _map(filesystem: FileSystem, blocks: Blocks, inode: Inode, first: int, count: int) -> list[int]:
    return map_blocks(filesystem.superblock, blocks, inode, first, count)


def _runs(numbers: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Consecutive numbers together: (first, count)."""
    index = 0
    while index < len(numbers):
        count = 1
        while count < longest and index + count < len(numbers) and numbers[index + count] == numbers[index] + count:
            count += 1
        yield numbers[index], count
        index += count

"""Giving parts of a regular file blocks, zeroing them and making holes of them: fallocate(2).

Each function works on a part that one transaction can hold. A block map has no way to say that a block is allocated and
counts as zeros: what gets a block in it gets zeros written. An extent can say so.
"""

from __future__ import annotations

import struct
from errno import EFBIG, ENOSPC
from functools import partial

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.allocation import runs_of
from mystfuse.ext2.block_map import block_path, map_block, map_blocks, max_file_size
from mystfuse.ext2.block_map_changes import map_for_writing
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_N_BLOCKS
from mystfuse.ext2.extent_changes import allocate_extents, count_holes, punch_extents
from mystfuse.ext2.inline_changes import move_out, without_contents
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import note_file_size
from mystfuse.ext2.truncate import truncate, zero_tail

_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")


def leave_inode(change: Change, ino: int) -> None:
    """Move the contents of a file that are in its inode, or may begin there, into a block; without contents, it needs
    none yet.

    Raises:
        OSError: ENOSPC, there is no block.
        BlocksMissing, MystfuseError
    """
    inode = change.filesystem.regular_file(change.transaction, ino)
    if inode.is_inline:
        change.write_inode(move_out(change, inode) if inode.size else without_contents(change.superblock, inode))
    change.transaction.on_commit.append(partial(change.filesystem.note_contents, ino))


def check_room(change: Change, holes: int, memory: int) -> None:
    """Raise OSError (ENOSPC) if the file system has no room for ``holes`` more blocks of a file and the indirect blocks
    that they need at least, or the overlay none for ``memory`` more blocks."""
    indirect = holes // (change.superblock.block_size // 4)
    available = change.allocator.available_blocks(change.transaction, change.caller)
    if holes + indirect > available or memory + indirect > change.transaction.budget:
        raise OSError(ENOSPC, f"there is no room for {holes} blocks")


def count_not_held(change: Change, ino: int, first: int, count: int) -> int:
    """How many of ``count`` blocks of a file take memory when they are written: holes, and those as in the image."""
    transaction = change.transaction
    inode = change.filesystem.regular_file(transaction, ino)
    pointers = map_blocks(change.superblock, transaction, inode, first, count)
    return sum(not (number and transaction.holds_written(number)) for number in pointers)


def count_missing(change: Change, ino: int, first: int, end: int) -> tuple[int, int]:
    """How many of blocks ``first`` to ``end`` (excluded) of a file with extents are not allocated; see
    ``extent_changes.count_holes``."""
    return count_holes(change, change.filesystem.regular_file(change.transaction, ino), first, end)


def allocate(change: Change, ino: int, first: int, count: int, zeroed: range, size: int | None) -> None:
    """Give the holes among ``count`` blocks of a file, from block ``first`` on, blocks of zeros: all of them or none.
    The file has a block map.

    Args:
        zeroed: bytes of the file that become zeros wherever these blocks have data.
        size: what the file's size becomes if it is smaller; None to keep it, and allocate nothing behind it.

    Raises:
        OSError: ENOSPC; EFBIG, past the largest file size.
        BlocksMissing, MystfuseError
    """
    transaction, superblock = change.transaction, change.superblock
    inode = change.filesystem.regular_file(transaction, ino)
    if size is None:
        count = min(count, -(-inode.size // superblock.block_size) - first)
        if count <= 0:
            return
    else:
        inode = _grown(change, inode, size)
    inode, pointers, new = map_for_writing(change, inode, first, count)
    if len(pointers) < count:
        raise OSError(ENOSPC, "no free block, or the overlay is full")
    change.write_inode(inode.touched(change.now_ns))
    whole = list(new)
    for logical, number in enumerate(pointers, first):
        start = max(zeroed.start - logical * superblock.block_size, 0)
        stop = min(zeroed.stop - logical * superblock.block_size, superblock.block_size)
        if number in new or start >= stop:
            continue
        if stop - start == superblock.block_size:
            whole.append(number)
        else:
            transaction.change(number)[start:stop] = bytes(stop - start)
    zeros = memoryview(bytes(count * superblock.block_size))
    for number, length in runs_of(sorted(whole)):
        transaction.put_run(number, zeros[: length * superblock.block_size])


def allocate_some(change: Change, ino: int, first: int, part: range, keeps_size: bool, zeroes: bool) -> int:
    """Give the holes of a part of a file, from block ``first`` on, blocks that count as zeros, as far as one
    transaction goes. The file has extents.

    Args:
        part: bytes of the file.
        keeps_size: the file does not grow; else it has a size for as much as is allocated.
        zeroes: the part becomes zeros where it has data, too.

    Returns:
        The first block that is left to do.

    Raises:
        OSError: ENOSPC; EFBIG, past the largest file size.
        BlocksMissing, MystfuseError
    """
    block_size = change.superblock.block_size
    inode = change.filesystem.regular_file(change.transaction, ino)
    zeroed = part if zeroes else range(0)
    whole = range(-(-zeroed.start // block_size), zeroed.stop // block_size)
    inode, reached = allocate_extents(change, inode, first, -(-part.stop // block_size), whole)
    if not keeps_size:
        inode = _grown(change, inode, min(reached * block_size, part.stop))
    change.write_inode(inode.touched(change.now_ns))
    for block in (zeroed.start // block_size, zeroed.stop // block_size):
        if first <= block < reached and block not in whole:
            _zero_bytes(
                change, inode, max(block * block_size, zeroed.start), min((block + 1) * block_size, zeroed.stop)
            )
    return reached


def punch_some(change: Change, ino: int, first: int, end: int, most: int) -> int:
    """Make holes of blocks of a file with extents; see ``extent_changes.punch_extents``. Returns the first block that
    is left to do."""
    change.transaction.gives_back = True
    inode = change.filesystem.regular_file(change.transaction, ino)
    punched, reached = punch_extents(change, inode, first, end, most)
    if punched is not inode:
        change.write_inode(punched)
    return reached


def punch(change: Change, ino: int, first: int, count: int) -> None:
    """Make holes of ``count`` blocks of a file from block ``first`` on, whose pointers are in one table: in i_block, or
    in one indirect block.

    Raises:
        BlocksMissing, MystfuseError
    """
    transaction, superblock, allocator = change.transaction, change.superblock, change.allocator
    transaction.gives_back = True
    inode = change.filesystem.regular_file(transaction, ino)
    *path, slot = block_path(inode, superblock.block_size // 4, first)
    roots = list(_ROOTS.unpack(inode.i_block))
    freed = [number for number in map_blocks(superblock, transaction, inode, first, count) if number]
    if not freed:
        return
    if not path:
        roots[slot : slot + count] = [0] * count
    else:
        nodes = [roots[path[0]]]
        for index in path[1:]:
            nodes.append(struct.unpack_from("<I", transaction.block(nodes[-1]), 4 * index)[0])
        allocator.check_writable(transaction, nodes)
        transaction.change(nodes[-1])[4 * slot : 4 * (slot + count)] = bytes(4 * count)
        # An indirect block without pointers goes, too, and those above it.
        while nodes and not any(transaction.block(nodes[-1])):
            freed.append(nodes.pop())
            if nodes:
                struct.pack_into("<I", transaction.change(nodes[-1]), 4 * path.pop(), 0)
            else:
                roots[path[0]] = 0
    if len(set(freed)) != len(freed):
        raise CorruptFilesystem(f"inode {ino} has a block twice")
    allocator.free_blocks(transaction, freed)
    i_blocks = inode.i_blocks_after(-len(freed), superblock.block_size)
    change.write_inode(inode.mapped(i_blocks, _ROOTS.pack(*roots)))


def zero_within(change: Change, ino: int, start: int, end: int) -> None:
    """Zero bytes ``start`` to ``end`` (exclusive) of a file, which are in one block, unless that is a hole.

    Raises:
        OSError: ENOSPC, the overlay has no room for the block.
        BlocksMissing, MystfuseError
    """
    _zero_bytes(change, change.filesystem.regular_file(change.transaction, ino), start, end)


def _zero_bytes(change: Change, inode: Inode, start: int, end: int) -> None:
    """The same for an inode; nothing if ``end`` is not behind ``start``."""
    if start >= end:
        return
    transaction, superblock = change.transaction, change.superblock
    logical, offset = divmod(start, superblock.block_size)
    number = map_block(superblock, transaction, inode, logical)
    end -= logical * superblock.block_size
    if number and any(transaction.block(number)[offset:end]):
        change.allocator.check_writable(transaction, [number])
        if not transaction.spend_for([number]):
            raise OSError(ENOSPC, "the overlay is full")
        transaction.change(number)[offset:end] = bytes(end - offset)


def finish(change: Change, ino: int, size: int) -> None:
    """Set the times of a file that has changed, and let it grow to ``size``, for which it has all blocks.

    Raises:
        OSError: EFBIG
        BlocksMissing, MystfuseError
    """
    inode = _grown(change, change.filesystem.regular_file(change.transaction, ino), size)
    change.write_inode(inode.touched(change.now_ns))


def shrink(change: Change, ino: int, size: int) -> bool:
    """Take back that a file has grown, whatever flags it has; False if it takes another call.

    Raises:
        BlocksMissing, MystfuseError
    """
    inode = change.filesystem.regular_file(change.transaction, ino)
    if inode.size <= size:
        return True
    inode, is_reached = truncate(change, inode, size)
    change.write_inode(inode)
    return is_reached


def _grown(change: Change, inode: Inode, size: int) -> Inode:
    superblock = change.superblock
    if size <= inode.size:
        return inode
    largest = max_file_size(superblock, inode)
    if size > largest:
        raise OSError(EFBIG, f"{size} bytes are more than the largest file size {largest}")
    zero_tail(change, inode)
    note_file_size(superblock, change.transaction, size)
    return inode._replace(size=size)

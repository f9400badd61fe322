"""Writing to regular files: write(2)."""

from __future__ import annotations

from collections.abc import Set
from errno import EFBIG, ENOSPC, EPERM
from functools import partial

from mystfuse.ext2.allocation import runs_of
from mystfuse.ext2.block_map import max_file_size
from mystfuse.ext2.block_map_changes import map_for_writing
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.change import Change
from mystfuse.ext2.inline_changes import write_inline
from mystfuse.ext2.privileges import Loses, mode_after_write, without_capabilities
from mystfuse.ext2.superblock import note_file_size
from mystfuse.ext2.truncate import zero_tail


def write(
    change: Change, ino: int, offset: int, data: memoryview, whole: bool = False, loses: Loses = Loses.BY_CALLER
) -> int:
    """Write ``data`` to a regular file from byte ``offset`` on. Reserved blocks are for certain callers.

    Args:
        whole: write all of it or nothing.
        loses: the privileges that the file loses.

    Returns:
        How many bytes were written: fewer than given when there is room for fewer.

    Raises:
        OSError: EPERM, it is immutable or has fs-verity; ENOSPC, there is room for none (for less, if ``whole``);
            EFBIG, past the largest file size.
        BlocksMissing, MystfuseError
    """
    filesystem, transaction, superblock = change.filesystem, change.transaction, change.superblock
    transaction.is_divisible = not whole
    inode = filesystem.regular_file(transaction, ino)
    largest = max_file_size(superblock, inode)
    length = min(len(data), largest - offset)
    if length <= 0 or (whole and length < len(data)):
        if not len(data):
            return 0
        raise OSError(EFBIG, f"{offset + len(data)} bytes are more than the largest file size {largest}")
    if (inode.is_immutable or inode.has_verity) and loses is not Loses.NOTHING:
        # It has become so since it was opened (fs/ext4/file.c, ext4_write_checks). Pages of a mapping are written.
        raise OSError(EPERM, f"inode {ino} is immutable, or has fs-verity")
    if loses.takes_capabilities:
        inode = without_capabilities(change, inode)
    block_size, now = superblock.block_size, change.now_ns
    mode = mode_after_write(inode, change.caller, loses)
    if superblock.has_inline_data:
        inode, is_written = write_inline(change, inode, offset, data[:length])
        if is_written:
            change.write_inode(inode.written(now, mode, max(inode.size, offset + length)))
            return length
    if offset > inode.size:
        zero_tail(change, inode)
    first, last = offset // block_size, (offset + length - 1) // block_size
    goal = filesystem.goal(ino, first)
    inode, pointers, new = map_for_writing(change, inode, first, last + 1 - first, goal)
    length = min(length, (first + len(pointers)) * block_size - offset)
    if length <= 0 or (whole and length < len(data)):
        raise OSError(ENOSPC, "no free block, or the overlay is full")
    end = offset + length
    if end > inode.size:
        note_file_size(superblock, transaction, end)
    change.write_inode(inode.written(now, mode, max(inode.size, end)))
    _fill(transaction, block_size, pointers, new, offset - first * block_size, data[:length])
    if new:
        transaction.on_commit.append(partial(filesystem.set_goal, ino, first + len(pointers), pointers[-1] + 1))
    return length


def _fill(
    transaction: Transaction,
    block_size: int,
    pointers: list[int],
    new: Set[int],
    start: int,
    data: memoryview,
) -> None:
    """Put ``data`` into blocks of a file, from byte ``start`` of the first one on. It must be the last step."""
    end = start + len(data)
    if len(pointers) == 1:
        (number,) = pointers
        if end - start == block_size:
            transaction.put(number, data)
        else:
            block = transaction.create(number) if new else transaction.change(number)
            block[start:end] = data
        return
    edges = sorted({index for index, byte in ((0, start), (len(pointers) - 1, end)) if byte % block_size})
    transaction.want([pointers[index] for index in edges if pointers[index] not in new])
    for index in edges:
        number, base = pointers[index], index * block_size
        block = transaction.create(number) if number in new else transaction.change(number)
        low, high = max(start, base), min(end, base + block_size)
        block[low - base : high - base] = data[low - start : high - start]
    first = 1 if start else 0
    position = first * block_size - start
    for number, count in runs_of(pointers[first : end // block_size]):
        transaction.put_run(number, data[position : position + count * block_size])
        position += count * block_size

"""Changing what an inode with extents maps: blocks for a write, blocks that count as zeros, holes, and freeing all.

Source: fs/ext4/extents.c (ext4_ext_map_blocks, ext4_ext_handle_unwritten_extents, ext4_ext_remove_space,
ext4_ext_find_goal).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from errno import ENOSPC
from itertools import islice

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import BlocksMissing
from mystfuse.ext2.caller import ROOT
from mystfuse.ext2.change import Change
from mystfuse.ext2.extent_format import LONGEST_UNWRITTEN, LONGEST_WRITTEN, MAX_LOGICAL, Piece
from mystfuse.ext2.extent_search import AHEAD, ExtentSearch, Step
from mystfuse.ext2.extent_tree import ExtentTree
from mystfuse.ext2.inode import Inode

_MOST_PIECES = 1024
"""Extents and holes that one transaction goes through, where an operation may take several."""
_MOST_ALLOCATED = 8192
"""Blocks that one transaction allocates without writing them."""
_MOST_GOALS = 8
"""Holes that one transaction fills behind the blocks in front of each. The others are filled behind the last of these:
in a file all over the file system, there would be more bitmaps than an operation may miss one by one."""
_MOST_LEAVES = 512
"""Leaves that one transaction frees."""


def map_extents_for_writing(
    change: Change, inode: Inode, first: int, count: int, goal: int
) -> tuple[Inode, list[int], Set[int]]:
    """``block_map_changes.map_for_writing`` for an inode with extents. Blocks that have counted as zeros are among the
    new ones."""
    tree, transaction = ExtentTree(change, inode), change.transaction
    if count == 1:
        return _map_one(change, tree, inode, first, goal)
    try:
        pieces = list(tree.pieces(first, first + count))
    except BlocksMissing:
        tree.fetch(first, first + count)
        raise
    mapped: list[int] = []
    for piece in pieces:
        mapped += piece.numbers() if piece.physical else [0] * piece.length
    present = [number for number in mapped if number]
    if present:
        change.allocator.check_writable(transaction, present)
    end = first + transaction.spend_for(mapped)
    pointers: list[int] = []
    new: set[int] = set()
    near, holes = goal, 0
    for piece in pieces:
        piece = piece.part(first, end)
        if piece.length <= 0:
            break
        if not piece.physical:
            taken = _fill_hole(change, tree, inode, piece._replace(is_written=True), near)
            new.update(taken)
            pointers += taken
            if len(taken) < piece.length:
                break
            near, holes = taken[-1] + 1, holes + 1
            continue
        if not piece.is_written:
            written = piece._replace(is_written=True)
            if not _try_assign(change, tree, tree.seek(piece.logical), written):
                break
            new.update(piece.numbers())
        pointers += piece.numbers()
        if holes < _MOST_GOALS:
            near = pointers[-1] + 1
    return tree.finish() if new else inode, pointers, new


def _map_one(
    change: Change, tree: ExtentTree, inode: Inode, logical: int, goal: int
) -> tuple[Inode, list[int], Set[int]]:
    """The same for one block, in fewer steps."""
    allocator, transaction = change.allocator, change.transaction
    nothing: Set[int] = frozenset()
    path = tree.seek(logical)
    leaf = path[-1]
    before = tree.entry(leaf, leaf.at) if leaf.at >= 0 else None
    if before is not None and logical < before.end:
        number = before.physical + logical - before.logical
        allocator.check_writable(transaction, [number])
        if not transaction.spend_for([number]):
            return inode, [], nothing
        if before.is_written:
            return inode, [number], nothing
        if not _try_assign(change, tree, path, Piece(logical, 1, number, True)):
            return inode, [], nothing
        return tree.finish(), [number], frozenset((number,))
    if not transaction.spend_for([0]):
        return inode, [], nothing
    taken = allocator.take_blocks(transaction, change.caller, _goal(change, inode, before, logical, goal), 1)
    if not taken:
        return inode, [], nothing
    (number,) = taken
    if (
        before is not None
        and before.is_written
        and leaf.at == leaf.entries - 1
        and before.end == logical
        and before.physical + before.length == number
        and before.length < LONGEST_WRITTEN
    ):
        tree.lengthen(leaf, leaf.at, before.length + 1)
    elif not _try_assign(change, tree, path, Piece(logical, 1, number, True)):
        allocator.free_blocks(transaction, taken)
        return inode, [], nothing
    tree.count_added(1)
    return tree.finish(), taken, frozenset(taken)


def allocate_extents(change: Change, inode: Inode, first: int, end: int, zeroed: range) -> tuple[Inode, int]:
    """Give the holes among a file's blocks ``first`` to ``end`` (excluded) blocks that count as zeros, as far as one
    transaction goes.

    Args:
        zeroed: those of them that count as zeros afterwards even if they have been written.

    Returns:
        The inode, not written, and the first block that is left to do.

    Raises:
        OSError: ENOSPC
        BlocksMissing, CorruptFilesystem
    """
    tree = ExtentTree(change, inode)
    near, holes, reached = 0, 0, first
    for piece in list(_some_pieces(tree, first, min(end, first + _MOST_ALLOCATED))):
        if not piece.physical:
            taken = _fill_hole(change, tree, inode, piece, near)
            if len(taken) < piece.length:
                raise OSError(ENOSPC, "no free block")
            near, holes = taken[-1] + 1, holes + 1
        else:
            if holes < _MOST_GOALS:
                near = piece.physical + piece.length
            if piece.is_written:
                _unwrite(change, tree, piece.part(zeroed.start, zeroed.stop))
        reached = piece.end
    return tree.finish(), reached


def _unwrite(change: Change, tree: ExtentTree, written: Piece) -> None:
    """Let written blocks count as zeros; ``written`` may be of no blocks."""
    if written.length <= 0:
        return
    change.allocator.check_writable(change.transaction, list(written.numbers()))
    for start in range(written.logical, written.end, LONGEST_UNWRITTEN):
        piece = written.part(start, start + LONGEST_UNWRITTEN)._replace(is_written=False)
        tree.assign(tree.seek(start), start, piece.end, [piece], change.caller)
    for number in written.numbers():
        change.transaction.discard(number)


def count_holes(change: Change, inode: Inode, first: int, end: int) -> tuple[int, int]:
    """How many of a file's blocks ``first`` to ``end`` (excluded) are not allocated, as far as one transaction goes
    through them; and the first block that it has not gone through."""
    holes, position = 0, first
    for piece in _some_pieces(ExtentSearch(change.superblock, change.transaction, inode), first, end):
        holes += 0 if piece.physical else piece.length
        position = piece.end
    return holes, position


def _some_pieces(tree: ExtentSearch, first: int, end: int) -> Iterator[Piece]:
    """The pieces of a part of a file as far as one transaction goes through them: at least one, and no further than to
    what has to be fetched."""
    pieces = tree.pieces(first, end)
    yield next(pieces)
    with suppress(BlocksMissing):
        yield from islice(pieces, _MOST_PIECES - 1)


def punch_extents(change: Change, inode: Inode, first: int, end: int, most: int) -> tuple[Inode, int]:
    """Make a hole of a file's blocks ``first`` to ``end`` (excluded), until ``most`` blocks are freed or as far as one
    transaction goes.

    Returns:
        The inode, not written, and the first block that may not be part of the hole yet.

    Raises:
        OSError: ENOSPC, an extent falls in two, and there is no block for the tree.
        BlocksMissing, CorruptFilesystem
    """
    tree = ExtentTree(change, inode)
    numbers: list[int] = []
    reached = first
    for piece in _some_pieces(tree, first, end):
        if len(numbers) == most:
            break
        if piece.physical:
            piece = piece.part(first, piece.logical + most - len(numbers))
            numbers += piece.numbers()
        reached = piece.end
    if not numbers:
        return inode, reached
    if len(set(numbers)) != len(numbers):
        raise CorruptFilesystem(f"inode {inode.ino} has a block twice")
    # First, so that the tree can have one of them.
    change.allocator.free_blocks(change.transaction, numbers)
    tree.count_added(-len(numbers))
    position = first
    while position < reached:
        path = tree.seek(position)
        stop = min(path[-1].high, reached)
        tree.assign(path, position, stop, [], ROOT)
        position = stop
    return tree.finish(), reached


def trim_extents(change: Change, inode: Inode, keep: int, most: int) -> tuple[Inode, int]:
    """``truncate.trim_blocks`` for an inode with extents."""
    tree = ExtentTree(change, inode)
    left, end = most, MAX_LOGICAL
    for index in range(_MOST_LEAVES):
        try:
            path = tree.seek(MAX_LOGICAL - 1, -AHEAD)
        except BlocksMissing:
            if not index:
                raise
            # The next transaction goes on there: leaf by leaf they would be more misses than an operation may have.
            break
        leaf = path[-1]
        if not leaf.entries and len(path) == 1:
            return tree.finish(), keep
        if not leaf.entries or (tree.entry(leaf, 0).logical >= keep and leaf.entries <= left):
            extents = list(tree.entries(leaf, 0))
            if (blocks := sum([extent.length for extent in extents])) <= left:
                for extent in extents:
                    tree.drop(extent.numbers())
                left, end = left - blocks, extents[0].logical if extents else end
                tree.drop_leaf(path)
                continue
        end, is_done = _trim_leaf(tree, path, keep, left)
        return tree.finish(), keep if is_done else end
    return tree.finish(), max(end, keep)


def _trim_leaf(tree: ExtentTree, path: list[Step], keep: int, left: int) -> tuple[int, bool]:
    """Free a part of the last leaf from its end, down to the file's block ``keep`` or until ``left`` blocks are freed.

    Returns:
        The first block that is a hole now, and whether that is all.
    """
    leaf = path[-1]
    end, is_done = leaf.high, False
    for index in range(leaf.entries - 1, -1, -1):
        extent = tree.entry(leaf, index)
        is_done = extent.end <= keep
        if is_done or not left:
            break
        part = extent.part(max(keep, extent.end - left), min(extent.end, end))
        tree.drop(part.numbers())
        left -= part.length
        end = part.logical
        is_done = end <= keep
    if end < leaf.high:
        tree.assign(path, end, leaf.high, [], ROOT)
    return end, is_done


def blocks_in_root(change: Change, inode: Inode, most: int) -> list[int] | None:
    """The numbers of all blocks of an inode whose extents are in i_block; None if there are others, or over ``most``.

    Raises:
        CorruptFilesystem
    """
    tree = ExtentSearch(change.superblock, change.transaction, inode)
    if tree.depth:
        return None
    (leaf,) = tree.seek(0)
    extents = list(tree.entries(leaf, 0))
    if sum(extent.length for extent in extents) > most:
        return None
    return [number for extent in extents for number in extent.numbers()]


def _fill_hole(change: Change, tree: ExtentTree, inode: Inode, hole: Piece, near: int) -> list[int]:
    """Take blocks for a hole, and enter them as ``hole.is_written`` says: fewer where there is room for fewer."""
    allocator, transaction = change.allocator, change.transaction
    if not near:
        leaf = tree.seek(hole.logical)[-1]
        near = _goal(change, inode, tree.entry(leaf, leaf.at) if leaf.at >= 0 else None, hole.logical, 0)
    taken = allocator.take_blocks(transaction, change.caller, near, hole.length)
    longest = LONGEST_WRITTEN if hole.is_written else LONGEST_UNWRITTEN
    done = 0
    while done < len(taken):
        start, length = _first_run(taken, done, longest)
        logical = hole.logical + done
        if _try_assign(change, tree, tree.seek(logical), Piece(logical, length, start, hole.is_written)):
            done += length
        else:
            # The tree needs a block: it gets the last one.
            allocator.free_blocks(transaction, [taken.pop()])
    tree.count_added(len(taken))
    return taken


def _first_run(numbers: list[int], index: int, longest: int) -> tuple[int, int]:
    """The consecutive numbers from an index of a list on: (first, count)."""
    start, most = numbers[index], min(len(numbers) - index, longest)
    last = start + most - 1
    if numbers[index + most - 1] == last and numbers[index : index + most] == list(range(start, last + 1)):
        return start, most
    length = 1
    while numbers[index + length] == start + length:
        length += 1
    return start, length


def _try_assign(change: Change, tree: ExtentTree, path: list[Step], piece: Piece) -> bool:
    """Enter an extent; False if there is no block for the tree."""
    try:
        tree.assign(path, piece.logical, piece.end, [piece], change.caller)
    except OSError:
        return False
    return True


def _goal(change: Change, inode: Inode, before: Piece | None, logical: int, goal: int) -> int:
    """The preferred place of a block: as far behind that of the extent before as it is behind it in the file."""
    if before is not None:
        near = before.physical + logical - before.logical
        if change.superblock.is_data_block(near):
            return near
    return goal or change.filesystem.groups.block_near_inode(inode.ino)

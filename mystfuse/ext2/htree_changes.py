"""Names added to indexed directories: leaves and index blocks are split when they are full, the index gets another
level, and a directory of one block that is full becomes an indexed one.

What stays in a leaf that is split moves towards its end, and what leaves it goes to a new block at the directory's end:
so that a listing that goes on by offsets misses nothing (it may show again what has moved).

Source: fs/ext4/namei.c (ext4_dx_add_entry, do_split, dx_insert_block, make_indexed_dir).
"""

from __future__ import annotations

import struct
from errno import ENOSPC

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_block
from mystfuse.ext2.block_map_changes import add_block
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER, EXT2_INDEX_FL
from mystfuse.ext2.directory import directory_block, max_directory_size
from mystfuse.ext2.directory_blocks import (
    DOTDOT_OFFSET,
    changed_block,
    entry_size,
    fill_room,
    find_room,
    finish_new_block,
    names_end,
    put_entry,
    raw_entries,
    seal_directory_block,
    set_rec_len,
)
from mystfuse.ext2.htree import (
    COUNTS,
    ENTRY,
    ENTRY_SIZE,
    INFO_LENGTH,
    INFO_OFFSET,
    NODE_START,
    Path,
    Step,
    UnusableIndex,
    find_path,
    leaf_block,
    max_levels,
    node_limit,
    root_limit,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.name_hash import VERSIONS
from mystfuse.ext2.superblock import Superblock

_HEADER = struct.Struct("<IHBB")
_INFO = struct.Struct("<IBBBB")  # reserved_zero hash_version info_length indirect_levels unused_flags
_LEVELS_OFFSET = INFO_OFFSET + 6


def usable_path(change: Change, directory: Inode, name: bytes) -> Path | None:
    """The way to the leaf for a new name; None if the index is to be given up, as the kernel's driver does where no
    checksum says what an index block is.

    Raises:
        CorruptFilesystem: the index is broken, and the file system has metadata_csum; or a block of it is.
        BlocksMissing, MystfuseError
    """
    absent, change.transaction.absent = change.transaction.absent, None
    if absent is not None and absent[:2] == (directory.ino, name) and isinstance(absent[2], Path):
        return absent[2]
    try:
        return find_path(change.superblock, change.transaction, directory, name)
    except UnusableIndex:
        if change.superblock.checksums is not None:
            raise
        return None


def insert_by_hash(change: Change, directory: Inode, path: Path, name: bytes, ino: int, file_type: int) -> Inode:
    """Enter ``name`` into the leaf that ``path`` leads to; returns the directory's inode, perhaps grown, not written.

    Raises:
        OSError: ENOSPC, no room for another block, or the index has as many levels as it may have.
        BlocksMissing, MystfuseError
    """
    superblock, transaction = change.superblock, change.transaction
    logical = path.leaf
    number, block = leaf_block(superblock, transaction, directory, path)
    room = find_room(superblock, directory, block, logical, entry_size(name))
    if room is None:
        while path.steps[-1].node.is_full:
            directory = _grow_index(change, directory, path)
            path = find_path(superblock, transaction, directory, name)
        directory, logical, number = _split_leaf(change, directory, path, number, block)
        block = transaction.block(number)
        room = find_room(superblock, directory, block, logical, entry_size(name))
        if room is None:
            raise CorruptFilesystem(f"directory inode {directory.ino}: half of block {logical} has no room for a name")
    change.allocator.check_writable(transaction, [number])
    fill_room(changed_block(change, directory, number), room, ino, name, file_type)
    change.filesystem.name_indexes.note_name(transaction, directory.ino, logical, name)
    return directory


def make_index(change: Change, directory: Inode) -> Inode | None:
    """Make a directory of one block an indexed one: its names go to a second block, the only leaf so far.

    Returns:
        The directory's inode, grown, not written; None if it stays linear: its file system has no index, or one by an
        unknown hash, or the block does not begin as usual.

    Raises:
        OSError: ENOSPC, no room for another block.
        BlocksMissing, MystfuseError
    """
    superblock, transaction = change.superblock, change.transaction
    name_hash = superblock.name_hash
    if name_hash is None or name_hash.default_version >= VERSIONS:
        return None
    number = map_block(superblock, transaction, directory, 0)
    block = directory_block(superblock, directory, transaction, 0, number)
    offsets = [offset for offset, _, _ in raw_entries(superblock, directory, block, 0)]
    if offsets[1:2] != [DOTDOT_OFFSET] or len(offsets) < 3 or (block[8:10], block[20:23]) != (b".\0", b"..\0"):
        return None
    change.allocator.check_writable(transaction, [number])
    start, end = offsets[2], names_end(superblock)
    directory, leaf, leaf_number, new = _append(change, directory)
    new[: end - start] = block[start:end]
    set_rec_len(new, offsets[-1] - start, end - (offsets[-1] - start))
    finish_new_block(change, directory, leaf_number, new)
    root = changed_block(change, directory, number)
    set_rec_len(root, DOTDOT_OFFSET, superblock.block_size - DOTDOT_OFFSET)
    root[INFO_OFFSET:] = bytes(superblock.block_size - INFO_OFFSET)
    _INFO.pack_into(root, INFO_OFFSET, 0, name_hash.default_version, INFO_LENGTH, 0, 0)
    entries = INFO_OFFSET + INFO_LENGTH
    ENTRY.pack_into(root, entries, 0, leaf)
    COUNTS.pack_into(root, entries, root_limit(superblock, entries), 1)
    change.filesystem.name_indexes.note_all_moved(transaction, directory.ino)
    return directory._replace(i_flags=directory.i_flags | EXT2_INDEX_FL)


def append_block(change: Change, directory: Inode) -> tuple[Inode, int, int, bytearray]:
    """Give a directory another block at its end.

    Returns:
        The inode, grown, not written; where the block is in the directory; its number; and the block: zeros.

    Raises:
        OSError: ENOSPC, there is no free block, or the directory is as large as one may be.
        BlocksMissing, CorruptFilesystem
    """
    superblock = change.superblock
    if directory.size + superblock.block_size > max_directory_size(superblock):
        raise OSError(ENOSPC, f"directory inode {directory.ino} is full")
    logical = directory.size // superblock.block_size
    grown, number, block = add_block(change, directory, logical)
    return grown._replace(size=grown.size + superblock.block_size), logical, number, block


def _append(change: Change, directory: Inode) -> tuple[Inode, int, int, bytearray]:
    grown, logical, number, block = append_block(change, directory)
    change.filesystem.name_indexes.note_block(change.transaction, directory.ino, logical)
    return grown, logical, number, block


def _split_leaf(change: Change, directory: Inode, path: Path, number: int, block: Block) -> tuple[Inode, int, int]:
    """Move the names with the higher hashes of a leaf to a new one; returns the directory's inode, and of the two the
    leaf for the path's hash: where it is in the directory, and its number."""
    superblock, transaction = change.superblock, change.transaction
    old = bytes(block)
    entries = _entries_by_hash(change, directory, path, old)
    if len(entries) < 2:
        raise CorruptFilesystem(f"directory inode {directory.ino}: block {path.leaf} has no names that could move")
    split = _split_point([entry & 0xFFFF for entry in entries], superblock.block_size)
    border = entries[split] >> 32
    is_continued = border == entries[split - 1] >> 32
    change.allocator.check_writable(transaction, [number, path.steps[-1].node.number])
    directory, new_logical, new_number, new = _append(change, directory)
    _pack(superblock, old, entries[split:], new)
    finish_new_block(change, directory, new_number, new)
    kept = changed_block(change, directory, number)
    tail = kept[names_end(superblock) :]
    kept[:] = bytes(len(kept))
    _pack(superblock, old, entries[:split], kept)
    kept[names_end(superblock) :] = tail
    _insert_child(change, directory, path.steps[-1], border | is_continued, new_logical)
    change.filesystem.name_indexes.note_move(
        transaction, directory.ino, path.leaf, new_logical, lambda: _names(superblock, old, entries[split:])
    )
    return (directory, new_logical, new_number) if path.hash >= border else (directory, path.leaf, number)


def _entries_by_hash(change: Change, directory: Inode, path: Path, block: bytes) -> list[int]:
    """As ``kernels.pure.directory_hash.hashed_entries``; raises CorruptFilesystem if the block is broken."""
    superblock = change.superblock
    name_hash = superblock.name_hash
    assert name_hash is not None
    entries = name_hash.entries(path.version, block, names_end(superblock), superblock.has_filetype)
    if entries is not None:
        return entries
    entries = []
    for offset, rec_len, used in raw_entries(superblock, directory, block, path.leaf):
        if used:
            name = _name(superblock, block, offset)
            if not name or len(name) > 255 or used > rec_len:
                raise CorruptFilesystem(f"directory inode {directory.ino}: an entry of block {path.leaf} is broken")
            entries.append(name_hash.of(path.version, name) << 32 | offset << 16 | used)
    return sorted(entries)


def _split_point(sizes: list[int], block_size: int) -> int:
    """The first of the entries that move, so that each half has room for any name."""
    moved = 0
    for index in range(len(sizes) - 1, -1, -1):
        # An entry goes to the half that more than half of it is in.
        if moved + sizes[index] // 2 > block_size // 2:
            return index + 1
        moved += sizes[index]
    return len(sizes) // 2


def _pack(superblock: Superblock, old: bytes, entries: list[int], to: bytearray) -> None:
    """Put entries of a leaf into an empty block, at its end, in the order in which they were."""
    end = names_end(superblock)
    for entry in sorted(entries, key=_offset, reverse=True):
        offset, size = entry >> 16 & 0xFFFF, entry & 0xFFFF
        end -= size
        to[end : end + size] = old[offset : offset + size]
        set_rec_len(to, end, size)
    put_entry(to, 0, 0, end, b"", 0)


def _offset(entry: int) -> int:
    return entry >> 16 & 0xFFFF


def _names(superblock: Superblock, block: bytes, entries: list[int]) -> list[bytes]:
    return [_name(superblock, block, _offset(entry)) for entry in entries]


def _name(superblock: Superblock, block: bytes, offset: int) -> bytes:
    _, _, size, high = _HEADER.unpack_from(block, offset)
    if not superblock.has_filetype:
        size |= high << 8
    return block[offset + EXT2_DIR_ENTRY_HEADER : offset + EXT2_DIR_ENTRY_HEADER + size]


def _insert_child(change: Change, directory: Inode, step: Step, value: int, logical: int) -> None:
    """Enter a block behind the one that a path leads to, in an index block that has room."""
    node, slot = step
    block = changed_block(change, directory, node.number)
    place, end = node.start + (slot + 1) * ENTRY_SIZE, node.start + node.used * ENTRY_SIZE
    block[place + ENTRY_SIZE : end + ENTRY_SIZE] = block[place:end]
    ENTRY.pack_into(block, place, value, logical)
    COUNTS.pack_into(block, node.start, node.limit, node.used + 1)


def _grow_index(change: Change, directory: Inode, path: Path) -> Inode:
    """Make room in the index, in one step: split the highest full index block whose parent has room, or if there is
    none add a level below the root. The path is to be found again."""
    superblock, steps = change.superblock, path.steps
    depth = len(steps) - 1
    while depth and steps[depth - 1].node.is_full:
        depth -= 1
    if not depth and len(steps) >= max_levels(superblock):
        raise OSError(ENOSPC, f"directory inode {directory.ino}: its index is full")
    node = steps[depth].node
    change.allocator.check_writable(
        change.transaction, [step.node.number for step in steps[max(depth - 1, 0) : depth + 1]]
    )
    kept = node.used // 2 if depth else 0
    start = node.start + kept * ENTRY_SIZE
    moved = bytes(node.block[start : node.start + node.used * ENTRY_SIZE])
    directory, logical, number, new = _append(change, directory)
    put_entry(new, 0, 0, superblock.block_size, b"", 0)
    new[NODE_START : NODE_START + len(moved)] = moved
    COUNTS.pack_into(new, NODE_START, node_limit(superblock), len(moved) // ENTRY_SIZE)
    seal_directory_block(change, directory, number)
    block = changed_block(change, directory, node.number)
    if depth:
        COUNTS.pack_into(block, node.start, node.limit, kept)
        _insert_child(change, directory, steps[depth - 1], ENTRY.unpack_from(moved)[0], logical)
    else:
        block[_LEVELS_OFFSET] += 1
        ENTRY.pack_into(block, node.start, 0, logical)
        COUNTS.pack_into(block, node.start, node.limit, 1)
    return directory

"""Directories: blocks of entries, each with an inode number, its own length, and a name.

Hash-indexed directories are listed linearly: their index blocks look like empty entries, as the format intends. Names
are looked up by the index (``htree``). Source: fs/ext2/dir.c, fs/ext4/dir.c (ext4_check_dir_entry), fs/ext4/ext4.h
(ext4_rec_len_from_disk).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.block_map import map_block, map_blocks
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER, EXT2_NAME_LEN
from mystfuse.ext2.encrypted_names import shown_name
from mystfuse.ext2.inline_data import inline_directory
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.directory_names import find_entry
from mystfuse.kernels.interface import NOT_FOUND

log = logging.getLogger(__name__)

MAX_DIRECTORY_SIZE = 1 << 29
"""Bytes: a larger directory counts as broken (10 million names need about 400 MB)."""
LARGE_DIRECTORY_SIZE = (1 << 32) - 65536
"""Bytes of one with large_dir."""
DIRECTORY_AHEAD = 32 * 1024
"""Bytes of a directory that a listing fetches together."""
OWNER = "directory inode"
"""What a directory's block belongs to, see ``BlocksMissing.owner``."""
_MIN_REC_LEN = 12
_HEADER = struct.Struct("<IHBB")
_REC_LEN = struct.Struct("<4xH")
_INODE = struct.Struct("<I")
_HASHES = struct.Struct("<II")


_DOTS = ((0, b"."), (12, b".."))


class Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    ino: int
    offset: int
    """Byte offset in the directory at which it begins."""
    next_offset: int
    """The offset of the next entry, where a listing goes on."""


def max_directory_size(superblock: Superblock) -> int:
    """Bytes that a directory has at most: with large_dir as many as positions in a listing can tell apart."""
    return MAX_DIRECTORY_SIZE if "large_dir" not in superblock.features else LARGE_DIRECTORY_SIZE


def block_count(superblock: Superblock, inode: Inode) -> int:
    """How many blocks directory ``inode`` has.

    Raises:
        CorruptFilesystem: its size is not a sensible multiple of the block size.
    """
    size, block_size = inode.size, superblock.block_size
    if inode.is_inline:
        return 1
    if (
        not size
        or size % block_size
        or (size > MAX_DIRECTORY_SIZE and size > max_directory_size(superblock))
        or (size > superblock.size)
    ):
        raise CorruptFilesystem(
            f"directory inode {inode.ino}: its size {size} is not a sensible multiple of {block_size}"
        )
    return size // block_size


def listing_size(superblock: Superblock, inode: Inode) -> int:
    """The offset at which a listing of a directory ends: its size, or a block's if its entries are in its inode."""
    return superblock.block_size if inode.is_inline else inode.size


def parse_block(superblock: Superblock, inode: Inode, block: Block, logical: int) -> Iterator[Entry]:
    """The names in block number ``logical`` of a directory, ``.`` and ``..`` left out.

    An entry with an impossible name (empty, with ``/`` or NUL, misplaced ``.`` or ``..``) is logged and skipped.

    Raises:
        CorruptFilesystem: an entry's length is invalid, so that the next entry cannot be found. All entries in front of
            it have been yielded.
    """
    block = bytes(block)
    has_filetype = superblock.has_filetype
    block_size = superblock.block_size
    base = logical * block_size
    is_encrypted = inode.is_encrypted
    unpack = _HEADER.unpack_from
    new = tuple.__new__
    offset = 0
    while offset < block_size:
        if offset + _MIN_REC_LEN > block_size:
            raise _corrupt(inode, base + offset, "an entry does not fit its block")
        ino, rec_len, name_len, file_type = unpack(block, offset)
        if rec_len < _MIN_REC_LEN or rec_len & 3 or offset + rec_len > block_size:
            rec_len = _check_rec_len(inode, rec_len, block_size, base, offset)
        if ino:
            if not has_filetype:
                name_len |= file_type << 8
            start = offset + EXT2_DIR_ENTRY_HEADER
            if name_len > rec_len - EXT2_DIR_ENTRY_HEADER or name_len > EXT2_NAME_LEN:
                raise _corrupt(inode, base + offset, f"name_len {name_len} does not fit rec_len {rec_len}")
            name = block[start : start + name_len]
            if is_encrypted and not (logical == 0 and (offset, name) in _DOTS):
                name = _shown_name(superblock, inode, block, offset, name)
            # As _is_possible, and a named tuple without its constructor: this runs for every name.
            if name and b"/" not in name and b"\0" not in name and name != b"." and name != b"..":
                yield new(Entry, (name, ino, base + offset, base + offset + rec_len))
            elif not (logical == 0 and (offset, name) in _DOTS):
                log.warning("directory inode %d, byte %d: skipped impossible name %r", inode.ino, base + offset, name)
        offset += rec_len


def _shown_name(superblock: Superblock, inode: Inode, block: Block, offset: int, name: bytes) -> bytes:
    """What stands for the name of the entry at byte ``offset`` of a block of an encrypted directory (fs/ext4/dir.c,
    is_dx_dir; fs/ext4/namei.c, htree_dirblock_to_tree). A directory whose index has another hash than new ones get is
    shown with that of new ones.

    Raises:
        CorruptFilesystem: it is too short to be encrypted.
    """
    hashes = 0, 0
    if inode.is_casefolded:
        # Behind the name, since they cannot be found from what is encrypted.
        place = offset + EXT2_DIR_ENTRY_HEADER + (len(name) + 3 & ~3)
        if place + _HASHES.size <= len(block):
            hashes = _HASHES.unpack_from(block, place)
    elif superblock.name_hash is not None and (inode.is_indexed or inode.size == superblock.block_size):
        hashes = superblock.name_hash.both(name)
    return shown_name(inode.ino, hashes, name)


def names_in(superblock: Superblock, block: bytes) -> Iterator[tuple[bytes, int, int]]:
    """All names that can be made out in a directory's block, ``.`` and ``..`` included, whatever else is wrong with it:
    (name, inode number, file type; 0 if entries have none)."""
    offset, end, has_filetype = 0, len(block), superblock.has_filetype
    while offset + _MIN_REC_LEN <= end:
        ino, rec_len, name_len, file_type = _HEADER.unpack_from(block, offset)
        if rec_len < _MIN_REC_LEN:
            # The only entry of a block of 64 KiB, or a broken one.
            rec_len = end
        if not has_filetype:
            name_len, file_type = name_len | file_type << 8, 0
        start = offset + EXT2_DIR_ENTRY_HEADER
        name = block[start : min(start + name_len, end)]
        if ino and name and len(name) <= EXT2_NAME_LEN and b"/" not in name and b"\0" not in name:
            yield name, ino, file_type
        offset += rec_len


def rec_lengths(
    superblock: Superblock, inode: Inode, block: Block, logical: int, offset: int = 0
) -> Iterator[tuple[int, int]]:
    """The entries of a directory's block, free ones included, from the one at ``offset`` on: (byte offset in the block,
    rec_len).

    Raises:
        CorruptFilesystem: a length is invalid. All entries in front of it have been yielded.
    """
    block_size = superblock.block_size
    base = logical * block_size
    unpack = _REC_LEN.unpack_from
    while offset < block_size:
        if offset + _MIN_REC_LEN > block_size:
            raise _corrupt(inode, base + offset, "an entry does not fit its block")
        (rec_len,) = unpack(block, offset)
        if rec_len < _MIN_REC_LEN or rec_len & 3 or offset + rec_len > block_size:
            rec_len = _check_rec_len(inode, rec_len, block_size, base, offset)
        yield offset, rec_len
        offset += rec_len


def _check_rec_len(inode: Inode, rec_len: int, block_size: int, base: int, offset: int) -> int:
    """The true length of an entry whose rec_len looks wrong.

    Raises:
        CorruptFilesystem: it is wrong.
    """
    if block_size == 65536 and rec_len in (65535, 0) and not offset:
        return 65536
    raise _corrupt(inode, base + offset, f"rec_len {rec_len} is invalid")


class Found(NamedTuple):
    """A name in a block of a directory."""

    ino: int
    offset: int
    """Of its entry, in the block."""
    previous: int
    """Of the entry in front of it; -1 for the first of a block."""


def find_in_block(superblock: Superblock, inode: Inode, block: Block, logical: int, name: bytes) -> Found | None:
    """Where ``name`` is in one block of a directory; None if it is not there.

    Raises:
        CorruptFilesystem: as ``rec_lengths``, when the block may hold the name.
    """
    if inode.is_encrypted:
        return _find_encrypted(superblock, inode, block, logical, name)
    place = find_entry(block, superblock.has_filetype, name)
    if place >= 0:
        (ino,) = _INODE.unpack_from(block, place >> 32)
        return Found(ino, place >> 32, (place & 0xFFFFFFFF) - 1)
    if place == NOT_FOUND:
        return None
    position = block.find(name)
    previous = -1
    if position < 0 or not _is_possible(name):
        return None
    for offset, rec_len in rec_lengths(superblock, inode, block, logical):
        # Only an entry at these bytes can have the name.
        while position < offset + EXT2_DIR_ENTRY_HEADER:
            position = block.find(name, position + 1)
            if position < 0:
                return None
        if position == offset + EXT2_DIR_ENTRY_HEADER:
            ino, _, name_len, file_type = _HEADER.unpack_from(block, offset)
            if not superblock.has_filetype:
                name_len |= file_type << 8
            if ino and name_len == len(name) <= rec_len - EXT2_DIR_ENTRY_HEADER:
                return Found(ino, offset, previous)
        previous = offset
    return None


def _find_encrypted(superblock: Superblock, inode: Inode, block: Block, logical: int, name: bytes) -> Found | None:
    """The same in an encrypted directory, by the name that is shown."""
    base = logical * superblock.block_size
    for entry in parse_block(superblock, inode, block, logical):
        if entry.name == name:
            place = entry.offset - base
            offsets = [offset for offset, _ in rec_lengths(superblock, inode, block, logical)]
            return Found(entry.ino, place, next((offset for offset in reversed(offsets) if offset < place), -1))
    return None


def list_entries(
    superblock: Superblock, blocks: Blocks, inode: Inode, offset: int, max_entries: int
) -> tuple[list[Entry], int]:
    """Names from byte ``offset`` of a directory on, at most ``max_entries``.

    ``offset`` may point anywhere: entries that begin before it are left out, so that a listing can go on where it
    stopped even if the directory has changed. A long stretch of empty blocks is crossed in several calls.

    Returns:
        Some entries, perhaps none, and the offset to go on from: the directory's size when there are no more.

    Raises:
        BlocksMissing, CorruptFilesystem
    """
    block_size = superblock.block_size
    count = block_count(superblock, inode)
    entries: list[Entry] = []
    first = offset // block_size
    numbers = map_blocks(superblock, blocks, inode, first, min(max(DIRECTORY_AHEAD // block_size, 1), count - first))
    if len(set(numbers) - {0}) < len(numbers) - numbers.count(0):
        raise CorruptFilesystem(f"directory inode {inode.ino} has a block twice")
    for logical, number in enumerate(numbers, first):
        try:
            block = directory_block(superblock, inode, blocks, logical, number, numbers)
            for entry in parse_block(superblock, inode, block, logical):
                if len(entries) == max_entries:
                    return entries, entry.offset
                if entry.offset >= offset:
                    entries.append(entry)
        except MystfuseError:
            if not entries:
                raise
            # A listing returns the names in front of damage, and fails when it goes on from there.
            return entries, entries[-1].next_offset
    return entries, (first + len(numbers)) * block_size


def directory_block(
    superblock: Superblock, inode: Inode, blocks: Blocks, logical: int, number: int, ahead: Iterable[int] = ()
) -> Block:
    """Block ``logical`` of a directory, which its map has at block ``number``.

    Raises:
        BlocksMissing: it is not in memory.
        CorruptFilesystem: there is a hole, or its checksum does not match.
    """
    if not number:
        if inode.is_inline:
            return inline_directory(superblock, inode)
        raise CorruptFilesystem(f"directory inode {inode.ino}: block {logical} is a hole")
    try:
        block = blocks.block(number, (other for other in ahead if other) if ahead else ())
    except BlocksMissing as missing:
        raise missing.of(OWNER, inode.ino)  # noqa: B904  # it is the same exception
    if superblock.checksums is not None and blocks.is_sealed(number):
        superblock.checksums.check_directory(inode.ino, inode.i_generation, logical, block)
    return block


def want_blocks(inode: Inode, blocks: Blocks, numbers: Iterable[int]) -> None:
    """Make sure that blocks of a directory are in memory; raises as ``Blocks.want``."""
    try:
        blocks.want(numbers)
    except BlocksMissing as missing:
        raise missing.of(OWNER, inode.ino)  # noqa: B904  # it is the same exception


def read_parent(superblock: Superblock, blocks: Blocks, inode: Inode) -> int:
    """The inode number of ``..``.

    Raises:
        BlocksMissing: the first block is not in memory.
        CorruptFilesystem: the directory does not begin with ``.`` and ``..``.
    """
    block_count(superblock, inode)
    block = directory_block(superblock, inode, blocks, 0, map_block(superblock, blocks, inode, 0))
    ino, _, name_len, _ = _HEADER.unpack_from(block, 12)
    if not ino or name_len != 2 or block[20:22] != b"..":
        raise _corrupt(inode, 12, "the second entry is not ..")
    return int(ino)


def _is_possible(name: bytes) -> bool:
    return bool(name) and b"/" not in name and b"\0" not in name and name != b"." and name != b".."


def _corrupt(inode: Inode, offset: int, what: str) -> CorruptFilesystem:
    return CorruptFilesystem(f"directory inode {inode.ino}, byte {offset}: {what}")

"""The orphan file of ext4: its blocks list the inodes that a crash kept from being freed, or cut to their size.

Source: Documentation/filesystems/ext4/orphan.rst, and fs/ext4/orphan.c (ext4_init_orphan_info, ext4_orphan_cleanup,
ext4_orphan_file_block_csum) for what is refused.
"""

from __future__ import annotations

import struct

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Block, Blocks
from mystfuse.ext2.change import Change
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock, change_superblock
from mystfuse.kernels.checksums import crc32c

MAX_BYTES = 8 << 20
"""Of the file: e2fsprogs makes none that is longer than 2 MiB, the kernel takes 8."""
_TAIL = struct.Struct("<II")  # ob_magic ob_checksum
_MAGIC = 0x0B10CA04
_INO = struct.Struct("<I")
_PLACE = struct.Struct("<Q")
_RO_COMPAT, _RO_COMPAT_OFFSET = struct.Struct("<I"), 100
_ORPHAN_PRESENT = 0x10000


def orphan_file_blocks(filesystem: FileSystem, blocks: Blocks) -> list[int]:
    """The numbers of the orphan file's blocks.

    Raises:
        BlocksMissing
        CorruptFilesystem: the file cannot be an orphan file.
    """
    superblock = filesystem.superblock
    inode = _file(filesystem, blocks)
    count, rest = divmod(inode.size, superblock.block_size)
    if not inode.is_regular or rest or not 0 < inode.size <= MAX_BYTES:
        raise CorruptFilesystem(f"inode {inode.ino} cannot be the orphan file: it has {inode.size} bytes")
    numbers = map_blocks(superblock, blocks, inode, 0, count)
    if not all(numbers):
        raise CorruptFilesystem(f"inode {inode.ino}: the orphan file has holes")
    return numbers


def _file(filesystem: FileSystem, blocks: Blocks) -> Inode:
    return filesystem.inode_table.parse_reserved(blocks, filesystem.superblock.s_orphan_file_inum)


def listed_orphans(filesystem: FileSystem, blocks: Blocks, number: int) -> list[int]:
    """The inodes that block ``number`` of the orphan file lists.

    Raises:
        BlocksMissing
        CorruptFilesystem: the block is broken, or lists what cannot be an orphan.
    """
    superblock = filesystem.superblock
    block = blocks.block(number)
    start = len(block) - _TAIL.size
    magic, checksum = _TAIL.unpack_from(block, start)
    if magic != _MAGIC:
        raise CorruptFilesystem(f"orphan file: block {number} has the magic number {magic:#x}")
    if superblock.checksums is not None and checksum != _checksum(superblock, _file(filesystem, blocks), number, block):
        raise CorruptFilesystem(f"orphan file: the checksum of block {number} does not match")
    found = [ino for (ino,) in _INO.iter_unpack(block[:start]) if ino]
    for ino in found:
        if not superblock.s_first_ino <= ino <= superblock.s_inodes_count:
            raise CorruptFilesystem(f"inode {ino} cannot be an orphan")
    return found


def clear_orphan_block(change: Change, number: int) -> None:
    """Make block ``number`` of the orphan file an empty one: the inodes that it lists are dealt with."""
    inode = _file(change.filesystem, change.transaction)
    block = change.transaction.change(number)
    change.allocator.check_writable(change.transaction, [number])
    start = len(block) - _TAIL.size
    block[:start] = bytes(start)
    if change.superblock.checksums is not None:
        _TAIL.pack_into(block, start, _MAGIC, _checksum(change.superblock, inode, number, block))


def clear_orphan_present(change: Change) -> None:
    """Note that the orphan file lists nothing any more."""
    block, offset = change_superblock(change.superblock, change.transaction)
    position = offset + _RO_COMPAT_OFFSET
    (flags,) = _RO_COMPAT.unpack_from(block, position)
    _RO_COMPAT.pack_into(block, position, flags & ~_ORPHAN_PRESENT)


def _checksum(superblock: Superblock, inode: Inode, number: int, block: Block) -> int:
    assert superblock.checksums is not None
    seed = superblock.checksums.inode_seed(inode.ino, inode.i_generation)
    return crc32c(_PLACE.pack(number) + block[: len(block) - _TAIL.size], seed)

"""Whether a directory whose names are encrypted has any: for that, no name has to be read, nor a key (fs/ext4/namei.c,
ext4_empty_dir)."""

from __future__ import annotations

import struct

from mystfuse.errors import EncryptedContents
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.directory import block_count, directory_block, rec_lengths, want_blocks, with_open_map
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

_MOST = 4 << 20
"""Bytes of a directory that are searched."""
_DOTS = frozenset({0, 12})
"""Where ``.`` and ``..`` are in the first block."""
_INO = struct.Struct("<I")


def has_no_names(superblock: Superblock, blocks: Blocks, directory: Inode) -> bool:
    """Whether an encrypted directory holds nothing but ``.`` and ``..``.

    Raises:
        EncryptedContents: it is too large to be searched for that.
        BlocksMissing, MystfuseError
    """
    opened, count = with_open_map(directory), block_count(superblock, directory)
    if count * superblock.block_size > _MOST:
        raise EncryptedContents(f"directory inode {directory.ino} is encrypted, and mystfuse has no key for it")
    numbers = map_blocks(superblock, blocks, opened, 0, count)
    want_blocks(directory, blocks, [number for number in numbers if number])
    for logical, number in enumerate(numbers):
        block = directory_block(superblock, opened, blocks, logical, number)
        for offset, _ in rec_lengths(superblock, opened, block, logical):
            if _INO.unpack_from(block, offset)[0] and (logical or offset not in _DOTS):
                return False
    return True

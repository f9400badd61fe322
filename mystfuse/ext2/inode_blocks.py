"""What an inode says about its blocks, whatever else is wrong with it: for finding out which inode a block belongs to.

Unlike ``Inode.parse`` this also reads inodes that no name may refer to, as that of the bad blocks. Layout: as there.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Sequence
from itertools import count as counting
from itertools import groupby
from operator import sub
from typing import NamedTuple

from mystfuse.ext2.constants import (
    EXT2_N_BLOCKS,
    EXT2_NDIR_BLOCKS,
    EXT2_ROOT_INO,
    EXT4_EA_INODE_FL,
    EXT4_EXTENTS_FL,
    EXT4_INLINE_DATA_FL,
)
from mystfuse.ext2.superblock import Superblock

_FIELDS = struct.Struct(
    "<H2xI18x"  # i_mode i_size
    "HII4x"  # i_links_count i_blocks i_flags
    "60s4xII"  # i_block i_file_acl i_size_high
    "6xH"  # l_i_file_acl_high
)
_LINKS = struct.Struct("<26xH")
_ROOTS = struct.Struct(f"<{EXT2_N_BLOCKS}I")
_NO_MAP = EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
FILE, DIRECTORY, SYMLINK = (_KINDS[kind] for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK))
RESERVED_INODE = "reserved inode"
ATTRIBUTE_VALUE = "attribute value"
UNKNOWN_KIND = "inode"
KINDS_OF_ENTRIES = {
    number: _KINDS[kind]
    for number, kind in enumerate(
        (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK), 1
    )
}
"""By the file type in a directory entry (fs/ext2/ext2.h, EXT2_FT_REG_FILE and on)."""
RESERVED_INODES = {1: "bad blocks", 3: "user quotas", 4: "group quotas", 7: "reserved for growth", 8: "journal"}
"""What the inodes below the first ordinary one are for (fs/ext4/ext4.h)."""


class InodeBlocks(NamedTuple):
    """An inode in use, as far as its blocks go."""

    ino: int
    kind: str
    """``file``, ``directory``, ``symbolic link``, ...; ``reserved inode``; ``attribute value``."""
    size: int
    """Bytes."""
    file_acl: int
    """The block of its extended attributes; 0 for none."""
    roots: Sequence[int]
    """Its 15 block pointers; none if it has no block map."""
    tree: bytes = b""
    """i_block, if it is the root of an extent tree."""
    is_inline: bool = False
    """Whether its contents are in the inode itself."""


def inodes_in_use(superblock: Superblock, block: bytes, first_ino: int) -> Iterator[InodeBlocks]:
    """The inodes in use in a block of the inode table, which begins with inode ``first_ino``."""
    size, sectors = superblock.s_inode_size, superblock.block_size // 512
    links = _LINKS.unpack_from
    has_long_pointers = "64bit" in superblock.features
    sized = {FILE, DIRECTORY} if "large_dir" in superblock.features else {FILE}
    for ino, offset in enumerate(range(0, len(block), size), first_ino):
        is_reserved = (ino < superblock.s_first_ino and ino != EXT2_ROOT_INO) or ino in superblock.hidden_inodes
        if not links(block, offset)[0] and not is_reserved:
            continue
        mode, i_size, _, i_blocks, flags, i_block, file_acl, size_high, acl_high = _FIELDS.unpack_from(block, offset)
        if has_long_pointers:
            file_acl |= acl_high << 32
        kind = _KINDS.get(mode & 0o170000, UNKNOWN_KIND)
        has_map = kind in (FILE, DIRECTORY) or (kind == SYMLINK and i_blocks > (sectors if file_acl else 0))
        if kind == SYMLINK and "ea_inode" in superblock.features:
            has_map = i_size >= len(i_block)
        if is_reserved:
            kind, has_map = RESERVED_INODE, any(i_block)
            if not has_map and not file_acl:
                continue
        has_size_high = kind in sized
        if flags & EXT4_EA_INODE_FL and kind == FILE:
            kind = ATTRIBUTE_VALUE
        roots = _ROOTS.unpack(i_block) if has_map and not flags & _NO_MAP else ()
        tree = i_block if flags & EXT4_EXTENTS_FL else b""
        is_inline = bool(flags & EXT4_INLINE_DATA_FL)
        yield InodeBlocks(ino, kind, i_size | (has_size_high and size_high << 32), file_acl, roots, tree, is_inline)


def direct_pointers(inode: InodeBlocks) -> Sequence[int]:
    """The pointers to the first 12 blocks."""
    return inode.roots[:EXT2_NDIR_BLOCKS]


def indirect_roots(superblock: Superblock, inode: InodeBlocks) -> Iterator[tuple[int, int, int]]:
    """The indirect blocks in the inode itself: (block number, how many levels of indirection, the first of the file's
    blocks that it leads to)."""
    per_block = superblock.block_size // 4
    logical = EXT2_NDIR_BLOCKS
    for level, number in enumerate(inode.roots[EXT2_NDIR_BLOCKS:], 1):
        if number:
            yield number, level, logical
        logical += per_block**level


def runs_of(pointers: Sequence[int], logical: int) -> Iterator[tuple[int, int, int]]:
    """Pointers to the blocks of a file from block ``logical`` on, as runs: (block number, blocks, the first's place in
    the file). Holes are left out."""
    position = 0
    for _, group in groupby(map(sub, pointers, counting())):
        length = len(list(group))
        if pointers[position]:
            yield pointers[position], length, logical + position
        elif length > 1:
            # Behind a hole, the numbers 1, 2, ... would look like its continuation.
            for index in range(position + 1, position + length):
                yield pointers[index], 1, logical + index
        position += length

"""Extended attributes: in the inode's body behind i_extra_isize, then in one block that inodes may share.

Source: fs/ext4/xattr.h (``ext4_xattr_entry``, ``ext4_xattr_header``) and fs/ext4/xattr.c.
"""

from __future__ import annotations

import logging
import struct

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.acl import acl_to_xattr
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_XATTR_MAGIC
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock

log = logging.getLogger(__name__)

POSIX_ACL_ACCESS = b"system.posix_acl_access"
POSIX_ACL_DEFAULT = b"system.posix_acl_default"

_NAME_INDEX = {
    1: b"user.",
    2: POSIX_ACL_ACCESS,
    3: POSIX_ACL_DEFAULT,
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
_ENTRY = struct.Struct("<BBHIII")  # e_name_len e_name_index e_value_offs e_value_inum e_value_size e_hash
_BLOCK_HEADER = struct.Struct("<IIIII12x")  # h_magic h_refcount h_blocks h_hash h_checksum


def read_xattrs(superblock: Superblock, blocks: Blocks, inode: Inode) -> dict[bytes, bytes]:
    """All extended attributes of an inode by full name (``user.comment``), ACLs in their attribute form.

    Raises:
        BlocksMissing: the attributes' block is not in memory.
        CorruptFilesystem: entries that lie outside their place.
    """
    found: dict[bytes, bytes] = {}
    if len(inode.extra) > 4 and int.from_bytes(inode.extra[:4], "little") == EXT2_XATTR_MAGIC:
        # Value offsets in the body count from behind the magic number.
        _parse_entries(inode, inode.extra[4:], 0, found)
    if inode.i_file_acl:
        if not superblock.is_data_block(inode.i_file_acl):
            raise CorruptFilesystem(f"inode {inode.ino}: i_file_acl {inode.i_file_acl} is outside the file system")
        block = blocks.block(inode.i_file_acl)
        h_magic, _, h_blocks, _, _ = _BLOCK_HEADER.unpack_from(block)
        if h_magic != EXT2_XATTR_MAGIC or h_blocks != 1:
            raise CorruptFilesystem(f"inode {inode.ino}: block {inode.i_file_acl} does not hold extended attributes")
        _parse_entries(inode, block, _BLOCK_HEADER.size, found)
    return found


def _parse_entries(inode: Inode, area: bytes, position: int, found: dict[bytes, bytes]) -> None:
    """Add the entries that start at ``position`` of ``area`` to ``found``; values are at offsets into ``area``."""
    values_size = 0
    while position + 4 <= len(area) and area[position : position + 4] != b"\0\0\0\0":
        if position + _ENTRY.size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: an extended attribute is cut short")
        name_len, name_index, value_offs, value_inum, value_size, _ = _ENTRY.unpack_from(area, position)
        name_start = position + _ENTRY.size
        if name_start + name_len > len(area) or value_inum or value_offs + value_size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: an extended attribute lies outside its place")
        values_size += value_size
        if values_size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: extended attributes share their values")
        suffix = area[name_start : name_start + name_len]
        prefix = _NAME_INDEX.get(name_index)
        if prefix is None or b"\0" in suffix or (not suffix) == prefix.endswith(b"."):
            log.warning("inode %d: skipped impossible extended attribute %d %r", inode.ino, name_index, suffix)
        else:
            value = area[value_offs : value_offs + value_size]
            if name_index in (2, 3):
                value = acl_to_xattr(value, inode.ino)
            found.setdefault(prefix + suffix, value)
        position = name_start + (name_len + 3 & ~3)

"""Extended attributes: in the inode's body behind i_extra_isize, then in one block that inodes may share.

Source: fs/ext4/xattr.h (``ext4_xattr_entry``, ``ext4_xattr_header``) and fs/ext4/xattr.c.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from errno import EINVAL, EOPNOTSUPP
from functools import partial
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.acl import acl_to_xattr
from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks, BlocksMissing, together
from mystfuse.ext2.constants import EXT2_XATTR_MAGIC, EXT4_EA_INODE_FL
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.checksums import crc32c

log = logging.getLogger(__name__)

POSIX_ACL_ACCESS = b"system.posix_acl_access"
POSIX_ACL_DEFAULT = b"system.posix_acl_default"

INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SYSTEM = 2, 3, 7
_NAME_INDEX = {
    1: b"user.",
    INDEX_ACL_ACCESS: POSIX_ACL_ACCESS,
    INDEX_ACL_DEFAULT: POSIX_ACL_DEFAULT,
    4: b"trusted.",
    6: b"security.",
    INDEX_SYSTEM: b"system.",
}
_INDEX_ENCRYPTION = 9
MAX_VALUE, _MAX_VALUES = 64 << 10, 8 << 20
"""Bytes of values in inodes of their own: of one (include/uapi/linux/limits.h, XATTR_SIZE_MAX), of all of a file."""
_BLOCKS_BESIDES, _MAX_BESIDES = 8, 32 << 20
"""Blocks that an operation needs at most for one such value besides it, and bytes of those for all of a file."""
ENTRY = struct.Struct("<BBHIII")  # e_name_len e_name_index e_value_offs e_value_inum e_value_size e_hash
BLOCK_HEADER = struct.Struct("<IIIII12x")  # h_magic h_refcount h_blocks h_hash h_checksum


class Attribute(NamedTuple):
    """An extended attribute as it is stored."""

    name_index: int
    suffix: bytes
    """The name without the index's prefix."""
    value: bytes
    inode: int = 0
    """With ea_inode, the inode that the value is in, if it is in one."""
    size: int = 0
    """The value's bytes there."""
    hash: int = 0
    """The e_hash of the entry then."""


def read_xattrs(
    superblock: Superblock, blocks: Blocks, inode: Inode, read_inode: Callable[[Blocks, int], Inode]
) -> dict[bytes, bytes]:
    """All extended attributes of an inode by full name (``user.comment``), ACLs in their attribute form.

    Args:
        read_inode: reads one that no name refers to.

    Raises:
        BlocksMissing: the attributes' block is not in memory.
        CorruptFilesystem: entries that lie outside their place.
    """
    found: dict[bytes, bytes] = {}
    attributes = read_all(superblock, blocks, inode)
    for attribute in _with_values(superblock, blocks, inode, attributes, read_inode):
        name = full_name(attribute)
        if attribute.name_index == _INDEX_ENCRYPTION or (inode.is_inline and is_inline_data(attribute)):
            # Of the file system's own.
            continue
        if name is None:
            log.warning(
                "inode %d: skipped impossible extended attribute %d %r",
                inode.ino,
                attribute.name_index,
                attribute.suffix,
            )
        elif attribute.name_index in (INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT):
            found.setdefault(name, acl_to_xattr(attribute.value, inode.ino))
        else:
            found.setdefault(name, attribute.value)
    return found


def _with_values(
    superblock: Superblock,
    blocks: Blocks,
    inode: Inode,
    attributes: Sequence[Attribute],
    read_inode: Callable[[Blocks, int], Inode],
) -> Sequence[Attribute]:
    """The attributes, all with their values: those that are in inodes of their own are read."""
    if not any(attribute.inode for attribute in attributes):
        return attributes
    if not may_be_together(superblock, attributes):
        raise CorruptFilesystem(f"inode {inode.ino}: its extended attributes have over {_MAX_VALUES} bytes")
    read = partial(_read_value, superblock, blocks, inode, read_inode)
    values = iter(together(partial(read, attribute) for attribute in attributes if attribute.inode))
    return [attribute._replace(value=next(values)) if attribute.inode else attribute for attribute in attributes]


def may_be_together(superblock: Superblock, attributes: Sequence[Attribute]) -> bool:
    """Whether one file may have so many and so long values in inodes of their own that an operation can hold them."""
    sizes = [attribute.size for attribute in attributes if attribute.inode]
    besides = len(sizes) * _BLOCKS_BESIDES * superblock.block_size
    return sum(sizes) <= _MAX_VALUES and besides <= _MAX_BESIDES


def _read_value(
    superblock: Superblock,
    blocks: Blocks,
    owner: Inode,
    read_inode: Callable[[Blocks, int], Inode],
    attribute: Attribute,
) -> bytes:
    """The value of an attribute in an inode of its own (fs/ext4/xattr.c, ext4_xattr_inode_get)."""
    inode, size = read_inode(blocks, attribute.inode), superblock.block_size
    if not inode.i_flags & EXT4_EA_INODE_FL or inode.size != attribute.size or not inode.is_regular:
        raise CorruptFilesystem(f"inode {owner.ino}: inode {attribute.inode} does not hold an extended attribute")
    numbers = map_blocks(superblock, blocks, inode, 0, -(-inode.size // size))
    if 0 in numbers:
        raise CorruptFilesystem(f"inode {inode.ino}: the value of an extended attribute has a hole")
    try:
        value = b"".join(blocks.all(numbers))[: inode.size]
    except BlocksMissing as missing:
        raise missing.of("extended attributes of inode", owner.ino)  # noqa: B904  # it is the same exception
    # The value's checksum is in i_atime; Lustre had its owner in i_mtime and i_generation instead.
    is_of_lustre = (inode.mtime_ns // 1_000_000_000, inode.i_generation) == (owner.ino, owner.i_generation)
    checksum = crc32c(value, superblock.checksum_seed)
    if not is_of_lustre and checksum != inode.atime_ns // 1_000_000_000 & 0xFFFFFFFF:
        raise CorruptFilesystem(f"inode {inode.ino}: the checksum of the extended attribute in it does not match")
    return value


def is_inline_data(attribute: Attribute) -> bool:
    """Whether it is no attribute, but the rest of a file's contents; see ``inline_data``."""
    return attribute.name_index == INDEX_SYSTEM and attribute.suffix == b"data"


def find_attribute(
    superblock: Superblock,
    blocks: Blocks,
    inode: Inode,
    name_index: int,
    read_inode: Callable[[Blocks, int], Inode],
) -> bytes | None:
    """The value, as it is stored, of the attribute that its index alone names (an ACL); None if there is none.

    Args:
        read_inode: as of ``read_xattrs``.

    Raises:
        BlocksMissing, CorruptFilesystem: as ``read_xattrs``.
    """
    for attribute in read_all(superblock, blocks, inode):
        if attribute.name_index == name_index:
            if attribute.inode:
                return _read_value(superblock, blocks, inode, read_inode, attribute)
            return attribute.value
    return None


def read_all(superblock: Superblock, blocks: Blocks, inode: Inode) -> list[Attribute]:
    """All attributes as they are stored, those in the body first; raises as ``read_xattrs``."""
    return read_body(inode, may_refer(superblock)) + read_block(superblock, blocks, inode)


def may_refer(superblock: Superblock) -> bool:
    """Whether values may be in inodes of their own."""
    return "ea_inode" in superblock.features


def full_name(attribute: Attribute) -> bytes | None:
    """The attribute's name as programs know it; None if it has none that is valid."""
    prefix = _NAME_INDEX.get(attribute.name_index)
    suffix = attribute.suffix
    if prefix is None or b"\0" in suffix or (not suffix) == prefix.endswith(b"."):
        return None
    return prefix + suffix


def split_name(name: bytes) -> tuple[int, bytes]:
    """The index and suffix that a full name is stored under.

    Raises:
        OSError: EOPNOTSUPP, no attribute can have that name; EINVAL, nothing follows the prefix (fs/xattr.c,
            xattr_resolve_name).
    """
    for index, prefix in _NAME_INDEX.items():
        if prefix.endswith(b"."):
            if name.startswith(prefix) and index != INDEX_SYSTEM:
                if name == prefix:
                    raise OSError(EINVAL, f"{name!r} is only the beginning of a name")
                return index, name[len(prefix) :]
        elif name == prefix:
            return index, b""
    raise OSError(EOPNOTSUPP, f"no extended attribute can be called {name!r}")


def read_body(inode: Inode, has_references: bool = False) -> list[Attribute]:
    """The attributes in the inode's own body.

    Args:
        has_references: whether values may be in inodes of their own.
    """
    if len(inode.extra) <= 4 or int.from_bytes(inode.extra[:4], "little") != EXT2_XATTR_MAGIC:
        return []
    # Value offsets in the body count from behind the magic number.
    return _parse_entries(inode, inode.extra[4:], 0, has_references)


def read_block(superblock: Superblock, blocks: Blocks, inode: Inode) -> list[Attribute]:
    """The attributes in the inode's attribute block; none if it has no such block."""
    if not inode.i_file_acl:
        return []
    try:
        block = bytes(blocks.block(check_xattr_block(superblock, inode)))
    except BlocksMissing as missing:
        raise missing.of("extended attributes of inode", inode.ino)  # noqa: B904  # it is the same exception
    h_magic, _, h_blocks, _, _ = BLOCK_HEADER.unpack_from(block)
    if h_magic != EXT2_XATTR_MAGIC or h_blocks != 1:
        raise CorruptFilesystem(f"inode {inode.ino}: block {inode.i_file_acl} does not hold extended attributes")
    if superblock.checksums is not None:
        superblock.checksums.check_xattrs(inode.ino, inode.i_file_acl, block)
    return _parse_entries(inode, block, BLOCK_HEADER.size, may_refer(superblock))


def check_xattr_block(superblock: Superblock, inode: Inode) -> int:
    """The number of the inode's attribute block; CorruptFilesystem if it is outside the file system."""
    if not superblock.is_data_block(inode.i_file_acl):
        raise CorruptFilesystem(f"inode {inode.ino}: i_file_acl {inode.i_file_acl} is outside the file system")
    return inode.i_file_acl


def _parse_entries(inode: Inode, area: bytes, position: int, has_references: bool) -> list[Attribute]:
    """The entries that start at ``position`` of ``area``; values are at offsets into ``area``."""
    found: list[Attribute] = []
    values_size, lowest = 0, len(area)
    while position + 4 <= len(area) and area[position : position + 4] != b"\0\0\0\0":
        if position + ENTRY.size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: an extended attribute is cut short")
        name_len, name_index, value_offs, value_inum, value_size, e_hash = ENTRY.unpack_from(area, position)
        name_start = position + ENTRY.size
        if value_inum and has_references:
            name = area[name_start : name_start + name_len]
            if len(name) != name_len or value_size > MAX_VALUE:
                raise CorruptFilesystem(f"inode {inode.ino}: an extended attribute in an inode of its own is invalid")
            found.append(Attribute(name_index, name, b"", value_inum, value_size, e_hash))
            position = name_start + (name_len + 3 & ~3)
            continue
        if name_start + name_len > len(area) or value_inum or value_offs + value_size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: an extended attribute lies outside its place")
        if value_size:
            lowest = min(lowest, value_offs)
        values_size += value_size
        if values_size > len(area):
            raise CorruptFilesystem(f"inode {inode.ino}: extended attributes share their values")
        found.append(
            Attribute(name_index, area[name_start : name_start + name_len], area[value_offs : value_offs + value_size])
        )
        position = name_start + (name_len + 3 & ~3)
    if lowest < position:
        raise CorruptFilesystem(f"inode {inode.ino}: the value of an extended attribute lies over the names")
    return found

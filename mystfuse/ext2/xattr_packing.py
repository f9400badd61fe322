"""Extended attributes as they are stored: in an inode's body, and in an attribute block with its hashes.

Source: fs/ext4/xattr.c (ext4_xattr_set_entry, ext4_xattr_hash_entry, ext4_xattr_rehash).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from errno import ENOSPC

from mystfuse.ext2.constants import EXT2_XATTR_MAGIC
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import BLOCK_HEADER, ENTRY, Attribute

_END_SIZE = 4
"""Zero bytes that end a list of entries."""
_MAGIC_SIZE = 4


def pack_body(inode: Inode, attributes: Sequence[Attribute]) -> bytes | None:
    """The inode's body holding these attributes; None if they do not fit."""
    if len(inode.extra) <= _MAGIC_SIZE:
        return None if attributes else inode.extra
    area = _pack_entries(attributes, len(inode.extra) - _MAGIC_SIZE, 0, hashed=False)
    if area is None:
        return None
    # Without attributes there is no magic number either, as in a new inode.
    return EXT2_XATTR_MAGIC.to_bytes(_MAGIC_SIZE, "little") + area if attributes else bytes(len(inode.extra))


def room_in_body(inode: Inode, attributes: Sequence[Attribute], suffix: bytes) -> int:
    """The longest value of another attribute that fits the inode's body beside these; negative if not even an empty one
    does."""
    used = _MAGIC_SIZE + _END_SIZE + entry_size(suffix)
    return len(inode.extra) - used - sum(map(stored_size, attributes))


def entry_size(suffix: bytes) -> int:
    """Bytes of an entry without its value."""
    return ENTRY.size + len(suffix) + 3 & ~3


def stored_size(attribute: Attribute) -> int:
    """Bytes of an entry and its value."""
    return entry_size(attribute.suffix) + (len(attribute.value) + 3 & ~3)


def pack_block(superblock: Superblock, attributes: Sequence[Attribute], reserve: int = 0) -> bytearray:
    """An attribute block of one inode, without its checksum, holding these attributes.

    Args:
        reserve: bytes at the block's beginning that no value may use.

    Raises:
        OSError: ENOSPC, they do not fit.
    """
    ordered = sorted(attributes, key=lambda attribute: (attribute.name_index, len(attribute.suffix), attribute.suffix))
    area = _pack_entries(ordered, superblock.block_size, BLOCK_HEADER.size, hashed=True, reserve=reserve)
    if area is None:
        raise OSError(ENOSPC, "the extended attributes do not fit one block")
    block_hash = 0
    for attribute in ordered:
        block_hash = _rotate(block_hash, 16) ^ _stored_hash(attribute)
    return bytearray(BLOCK_HEADER.pack(EXT2_XATTR_MAGIC, 1, 1, block_hash, 0) + area[BLOCK_HEADER.size :])


def _pack_entries(
    attributes: Sequence[Attribute], size: int, position: int, hashed: bool, reserve: int = 0
) -> bytes | None:
    """Entries from ``position`` of ``size`` bytes on, values from the end down; None if they do not fit."""
    area = bytearray(size)
    end = size
    for attribute in attributes:
        suffix, value = attribute.suffix, attribute.value
        length = entry_size(suffix)
        end -= len(value) + 3 & ~3
        if position + length + _END_SIZE > end or end < reserve:
            return None
        offset = end if value else 0
        ENTRY.pack_into(
            area,
            position,
            len(suffix),
            attribute.name_index,
            offset,
            attribute.inode,
            attribute.size if attribute.inode else len(value),
            _stored_hash(attribute) if hashed or attribute.inode else 0,
        )
        area[position + ENTRY.size : position + ENTRY.size + len(suffix)] = suffix
        area[end : end + len(value)] = value
        position += length
    return bytes(area)


def _stored_hash(attribute: Attribute) -> int:
    """The e_hash of an entry: of one whose value is in an inode of its own, as it was made."""
    return attribute.hash if attribute.inode else entry_hash(attribute.suffix, attribute.value)


def entry_hash(suffix: bytes, value: bytes) -> int:
    """The e_hash of an entry: over its name, then over its value in words of 4 bytes."""
    result = 0
    for byte in suffix:
        result = _rotate(result, 5) ^ byte
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        result = _rotate(result, 16) ^ word
    return result


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & 0xFFFFFFFF

"""Changing extended attributes: into the inode's body while there is room, else into the inode's attribute block.

A block that several inodes share is copied before it is changed. Source: fs/ext4/xattr.c (ext4_xattr_set_handle,
ext4_xattr_hash_entry, ext4_xattr_rehash).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from errno import EACCES, EEXIST, ENODATA, ENOSPC, EPERM, ERANGE

from mystfuse.ext2.acl import Acl
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_NAME_LEN, EXT2_XATTR_MAGIC
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import (
    BLOCK_HEADER,
    ENTRY,
    POSIX_ACL_ACCESS,
    POSIX_ACL_DEFAULT,
    Attribute,
    check_xattr_block,
    read_block,
    read_body,
    split_name,
)

_REFCOUNT_OFFSET = 4


def set_xattr(change: Change, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an extended attribute by its full name; an access ACL changes the mode as well.

    Args:
        flags: of setxattr(2).

    Raises:
        OSError: EEXIST (XATTR_CREATE), ENODATA (XATTR_REPLACE); ENOSPC, ERANGE, EOPNOTSUPP as ``set_attribute``;
            EINVAL, not a valid ACL; EACCES, a default ACL for something that is not a directory; EPERM, immutable or
            append-only.
        BlocksMissing, MystfuseError
    """
    inode = _changeable(change, ino)
    if flags:
        exists = _has_attribute(change, inode, name)
        if exists and flags & os.XATTR_CREATE:
            raise OSError(EEXIST, f"inode {ino} has an attribute {name!r}")
        if not exists and flags & os.XATTR_REPLACE:
            raise OSError(ENODATA, f"inode {ino} has no attribute {name!r}")
    stored: bytes | None = value
    if name in (POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT):
        acl = Acl.parse(value) if len(value) > 4 else None
        stored = acl.stored() if acl else None
        if name == POSIX_ACL_DEFAULT and not inode.is_directory:
            raise OSError(EACCES, f"inode {ino} is not a directory and can have no default ACL")
        if name == POSIX_ACL_ACCESS and acl:
            mode = inode.i_mode & ~0o777 | acl.mode
            if not change.caller.is_root and not change.caller.is_in_group(inode.gid):
                mode &= ~stat.S_ISGID
            inode = inode._replace(i_mode=mode)
            if acl.is_minimal:
                stored = None
    if stored is None:
        try:
            inode = remove_attribute(change, inode, name)
        except OSError as error:
            if error.errno != ENODATA:
                raise
    else:
        inode = set_attribute(change, inode, name, stored)
    change.write_inode(inode._replace(ctime_ns=change.now_ns))


def _has_attribute(change: Change, inode: Inode, name: bytes) -> bool:
    index, suffix = _split(name)
    attributes = (*read_body(inode), *read_block(change.superblock, change.transaction, inode))
    return any((attribute.name_index, attribute.suffix) == (index, suffix) for attribute in attributes)


def remove_xattr(change: Change, ino: int, name: bytes) -> None:
    """Remove an extended attribute by its full name.

    Raises:
        OSError: ENODATA, it does not exist (a missing ACL is no error); EOPNOTSUPP; EPERM, immutable or append-only.
        BlocksMissing, MystfuseError
    """
    inode = _changeable(change, ino)
    try:
        inode = remove_attribute(change, inode, name)
    except OSError as error:
        if error.errno != ENODATA or name not in (POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT):
            raise
    change.write_inode(inode._replace(ctime_ns=change.now_ns))


def _changeable(change: Change, ino: int) -> Inode:
    inode = change.inode(ino)
    if inode.is_immutable or inode.is_append_only:
        raise OSError(EPERM, f"inode {ino} is immutable or append-only")
    return inode


def set_attribute(change: Change, inode: Inode, name: bytes, value: bytes) -> Inode:
    """Give an inode an extended attribute, as it is to be stored; returns the inode, not written.

    Raises:
        OSError: ENOSPC, it does not fit; ERANGE, its name is too long; EOPNOTSUPP, no attribute has such a name.
        BlocksMissing, MystfuseError
    """
    index, suffix = _split(name)
    attribute = Attribute(index, suffix, value)
    body = _without(read_body(inode), index, suffix)
    in_block = read_block(change.superblock, change.transaction, inode)
    packed = _pack_body(inode, [*body, attribute])
    if packed is not None:
        return _store_block(change, inode._replace(extra=packed), in_block, _without(in_block, index, suffix))
    without = inode._replace(extra=_pack_body(inode, body) or inode.extra)
    wanted = [*_without(in_block, index, suffix), attribute]
    return _store_block(change, without, in_block, wanted)


def remove_attribute(change: Change, inode: Inode, name: bytes) -> Inode:
    """Take an extended attribute from an inode; returns the inode, not written.

    Raises:
        OSError: ENODATA, it has none of that name; EOPNOTSUPP, ERANGE as ``set_attribute``.
        BlocksMissing, MystfuseError
    """
    index, suffix = _split(name)
    body, in_block = read_body(inode), read_block(change.superblock, change.transaction, inode)
    body_left, block_left = _without(body, index, suffix), _without(in_block, index, suffix)
    if len(body_left) == len(body) and len(block_left) == len(in_block):
        raise OSError(ENODATA, f"inode {inode.ino} has no attribute {name!r}")
    if len(body_left) != len(body):
        inode = inode._replace(extra=_pack_body(inode, body_left) or inode.extra)
    return _store_block(change, inode, in_block, block_left)


def drop_block(change: Change, inode: Inode) -> Inode:
    """Detach the inode's attribute block, and free it if no other inode shares it."""
    if not inode.i_file_acl:
        return inode
    transaction = change.transaction
    number = check_xattr_block(change.superblock, inode)
    read_block(change.superblock, transaction, inode)
    (refcount,) = struct.unpack_from("<I", transaction.block(number), _REFCOUNT_OFFSET)
    if refcount > 1:
        change.allocator.check_writable(transaction, [number])
        struct.pack_into("<I", transaction.change(number), _REFCOUNT_OFFSET, refcount - 1)
    else:
        change.allocator.free_blocks(transaction, [number])
    return inode._replace(i_file_acl=0, i_blocks=inode.i_blocks_after(-1, change.superblock.block_size))


def _split(name: bytes) -> tuple[int, bytes]:
    index, suffix = split_name(name)
    if len(suffix) > EXT2_NAME_LEN:
        raise OSError(ERANGE, f"the name of an extended attribute has {len(suffix)} bytes")
    return index, suffix


def _without(attributes: Sequence[Attribute], index: int, suffix: bytes) -> list[Attribute]:
    return [attribute for attribute in attributes if (attribute.name_index, attribute.suffix) != (index, suffix)]


def _store_block(change: Change, inode: Inode, present: list[Attribute], wanted: list[Attribute]) -> Inode:
    """Make the inode's attribute block hold ``wanted``, if it differs."""
    if wanted == present:
        return inode
    if not wanted:
        return drop_block(change, inode)
    transaction, packed = change.transaction, _pack_block(change.superblock, wanted)
    if inode.i_file_acl:
        (refcount,) = struct.unpack_from("<I", transaction.block(inode.i_file_acl), _REFCOUNT_OFFSET)
        if refcount <= 1:
            change.allocator.check_writable(transaction, [inode.i_file_acl])
            transaction.put(inode.i_file_acl, packed)
            return inode
        inode = drop_block(change, inode)
    goal = change.filesystem.groups.block_near_inode(inode.ino)
    number = change.allocator.take_block(transaction, change.caller, goal)
    transaction.put(number, packed)
    return inode._replace(i_file_acl=number, i_blocks=inode.i_blocks_after(1, change.superblock.block_size))


def _pack_body(inode: Inode, attributes: list[Attribute]) -> bytes | None:
    """The inode's body holding these attributes; None if they do not fit."""
    if len(inode.extra) <= 4:
        return None if attributes else inode.extra
    area = _pack_entries(attributes, len(inode.extra) - 4, 0, hashed=False)
    if area is None:
        return None
    # Without attributes there is no magic number either, as in a new inode.
    return EXT2_XATTR_MAGIC.to_bytes(4, "little") + area if attributes else bytes(len(inode.extra))


def _pack_block(superblock: Superblock, attributes: list[Attribute]) -> bytes:
    ordered = sorted(attributes, key=lambda attribute: (attribute.name_index, len(attribute.suffix), attribute.suffix))
    area = _pack_entries(ordered, superblock.block_size, BLOCK_HEADER.size, hashed=True)
    if area is None:
        raise OSError(ENOSPC, "the extended attributes do not fit one block")
    block_hash = 0
    for attribute in ordered:
        block_hash = _rotate(block_hash, 16) ^ entry_hash(attribute)
    return BLOCK_HEADER.pack(EXT2_XATTR_MAGIC, 1, 1, block_hash, 0) + area[BLOCK_HEADER.size :]


def _pack_entries(attributes: Sequence[Attribute], size: int, position: int, hashed: bool) -> bytes | None:
    """Entries from ``position`` of ``size`` bytes on, values from the end down; None if they do not fit."""
    area = bytearray(size)
    end = size
    for attribute in attributes:
        name_index, suffix, value, _, _ = attribute
        length = ENTRY.size + len(suffix) + 3 & ~3
        end -= len(value) + 3 & ~3
        # Four zero bytes end the list.
        if position + length + 4 > end:
            return None
        offset = end if value else 0
        ENTRY.pack_into(
            area, position, len(suffix), name_index, offset, 0, len(value), entry_hash(attribute) if hashed else 0
        )
        area[position + ENTRY.size : position + ENTRY.size + len(suffix)] = suffix
        area[end : end + len(value)] = value
        position += length
    return bytes(area)


def entry_hash(attribute: Attribute) -> int:
    """The e_hash of an entry: over its name, then over its value in words of 4 bytes."""
    result = 0
    for byte in attribute.suffix:
        result = _rotate(result, 5) ^ byte
    value = attribute.value + bytes(-len(attribute.value) % 4)
    for (word,) in struct.iter_unpack("<I", value):
        result = _rotate(result, 16) ^ word
    return result


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & 0xFFFFFFFF

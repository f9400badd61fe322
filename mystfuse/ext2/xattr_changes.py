"""Changing extended attributes: into the inode's body while there is room, else into the inode's attribute block, or
with ea_inode a value that does not fit there into an inode of its own.

A block that several inodes share is copied before it is changed. Source: fs/ext4/xattr.c (ext4_xattr_set_handle,
ext4_xattr_block_set).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from errno import E2BIG, EACCES, EEXIST, ENODATA, ENOSPC, EPERM, ERANGE

from mystfuse.ext2.acl import Acl
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_NAME_LEN
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.value_inodes import add_references, drop_references, store_value
from mystfuse.ext2.xattr import (
    MAX_VALUE,
    POSIX_ACL_ACCESS,
    POSIX_ACL_DEFAULT,
    Attribute,
    check_xattr_block,
    may_be_together,
    may_refer,
    read_all,
    read_block,
    read_body,
    split_name,
)
from mystfuse.ext2.xattr_packing import pack_block, pack_body

_REFCOUNT, _REFCOUNT_OFFSET = struct.Struct("<I"), 4
_NOT_LARGE = 56
"""By so many bytes a value that is tried in an attribute block first is shorter than a block (fs/ext4/xattr.h,
EXT4_XATTR_MIN_LARGE_EA_SIZE)."""
_MOST_RESERVED = 1024
"""Bytes of an attribute block kept for names, of an eighth of it (fs/ext4/xattr.h, EXT4_XATTR_BLOCK_RESERVE)."""


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
    attributes = read_all(change.superblock, change.transaction, inode)
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
        OSError: ENOSPC, it does not fit; E2BIG, it is longer than an inode of its own may be; ERANGE, its name is too
            long; EOPNOTSUPP, no attribute has such a name.
        BlocksMissing, MystfuseError
    """
    index, suffix = _split(name)
    superblock = change.superblock
    attribute = Attribute(index, suffix, value)
    if not may_refer(superblock):
        return _place(change, inode, attribute)
    if len(value) > MAX_VALUE:
        raise OSError(E2BIG, f"an extended attribute of {len(value)} bytes")
    if len(value) + 3 & ~3 <= superblock.block_size - _NOT_LARGE:
        try:
            # So that long values leave room for the names of others.
            return _place(change, inode, attribute, min(superblock.block_size // 8, _MOST_RESERVED))
        except OSError as error:
            if error.errno != ENOSPC or not value:
                raise
    return _place(change, inode, store_value(change, inode, index, suffix, value))


def _place(change: Change, inode: Inode, attribute: Attribute, reserve: int = 0) -> Inode:
    """Put an attribute into the inode's body, or without room there into its attribute block, in the place of the one
    of that name.

    Raises:
        OSError: ENOSPC, nothing has been changed.
    """
    index, suffix = attribute.name_index, attribute.suffix
    body = read_body(inode, may_refer(change.superblock))
    in_block = read_block(change.superblock, change.transaction, inode)
    body_left, block_left = _without(body, index, suffix), _without(in_block, index, suffix)
    if attribute.inode and not may_be_together(change.superblock, [*body_left, *block_left, attribute]):
        raise OSError(ENOSPC, f"inode {inode.ino} has too many extended attributes in inodes of their own")
    packed = pack_body(inode, [*body_left, attribute])
    if packed is not None:
        inode = _store_block(change, inode._replace(extra=packed), in_block, block_left)
    else:
        without = inode._replace(extra=pack_body(inode, body_left) or inode.extra)
        inode = _store_block(change, without, in_block, [*block_left, attribute], reserve if attribute.value else 0)
    drop_references(change, _removed(body, body_left))
    return _counting(change.superblock, inode, [attribute], _removed(body + in_block, body_left + block_left))


def _counting(superblock: Superblock, inode: Inode, gained: Sequence[Attribute], lost: Sequence[Attribute]) -> Inode:
    """The inode, not written, whose i_blocks counts the blocks of values in inodes of their own, as the quota does
    (fs/ext4/xattr.c, ext4_xattr_inode_alloc_quota)."""
    size = superblock.block_size
    count = sum(-(-one.size // size) for one in gained) - sum(-(-one.size // size) for one in lost)
    return inode._replace(i_blocks=inode.i_blocks_after(count, size)) if count else inode


def remove_attribute(change: Change, inode: Inode, name: bytes) -> Inode:
    """Take an extended attribute from an inode; returns the inode, not written.

    Raises:
        OSError: ENODATA, it has none of that name; EOPNOTSUPP, ERANGE as ``set_attribute``.
        BlocksMissing, MystfuseError
    """
    index, suffix = _split(name)
    body = read_body(inode, may_refer(change.superblock))
    in_block = read_block(change.superblock, change.transaction, inode)
    body_left, block_left = _without(body, index, suffix), _without(in_block, index, suffix)
    if len(body_left) == len(body) and len(block_left) == len(in_block):
        raise OSError(ENODATA, f"inode {inode.ino} has no attribute {name!r}")
    if len(body_left) != len(body):
        inode = inode._replace(extra=pack_body(inode, body_left) or inode.extra)
        drop_references(change, _removed(body, body_left))
    inode = _store_block(change, inode, in_block, block_left)
    return _counting(change.superblock, inode, [], _removed(body + in_block, body_left + block_left))


def has_value_inodes(superblock: Superblock, inode: Inode) -> bool:
    """Whether the inode's body refers to values in inodes of their own."""
    return may_refer(superblock) and any(attribute.inode for attribute in read_body(inode, True))


def drop_attributes(change: Change, inode: Inode) -> Inode:
    """Free what the attributes of an inode have that is about to be freed itself.

    Raises:
        BlocksMissing, MystfuseError
    """
    if has_value_inodes(change.superblock, inode):
        drop_references(change, read_body(inode, True))
    return _drop_block(change, inode)


def _drop_block(change: Change, inode: Inode) -> Inode:
    """Detach the inode's attribute block, and free it if no other inode shares it."""
    if not inode.i_file_acl:
        return inode
    transaction = change.transaction
    number = check_xattr_block(change.superblock, inode)
    attributes = read_block(change.superblock, transaction, inode)
    (refcount,) = _REFCOUNT.unpack_from(transaction.block(number), _REFCOUNT_OFFSET)
    if refcount > 1:
        change.allocator.check_writable(transaction, [number])
        block = transaction.change(number)
        _REFCOUNT.pack_into(block, _REFCOUNT_OFFSET, refcount - 1)
        _set_checksum(change.superblock, number, block)
    else:
        drop_references(change, attributes)
        change.allocator.free_blocks(transaction, [number])
    return inode._replace(i_file_acl=0, i_blocks=inode.i_blocks_after(-1, change.superblock.block_size))


def _split(name: bytes) -> tuple[int, bytes]:
    index, suffix = split_name(name)
    if len(suffix) > EXT2_NAME_LEN:
        raise OSError(ERANGE, f"the name of an extended attribute has {len(suffix)} bytes")
    return index, suffix


def _without(attributes: Sequence[Attribute], index: int, suffix: bytes) -> list[Attribute]:
    return [attribute for attribute in attributes if (attribute.name_index, attribute.suffix) != (index, suffix)]


def _removed(before: Sequence[Attribute], after: Sequence[Attribute]) -> list[Attribute]:
    return [attribute for attribute in before if attribute not in after]


def _store_block(
    change: Change, inode: Inode, present: Sequence[Attribute], wanted: Sequence[Attribute], reserve: int = 0
) -> Inode:
    """Make the inode's attribute block hold ``wanted``, if it differs.

    Raises:
        OSError: ENOSPC, nothing has been changed.
    """
    if wanted == present:
        return inode
    if not wanted:
        return _drop_block(change, inode)
    superblock, transaction, block = (
        change.superblock,
        change.transaction,
        pack_block(change.superblock, wanted, reserve),
    )
    number = inode.i_file_acl
    if number and _REFCOUNT.unpack_from(transaction.block(number), _REFCOUNT_OFFSET)[0] <= 1:
        change.allocator.check_writable(transaction, [number])
        drop_references(change, _removed(present, wanted))
    else:
        goal = change.filesystem.groups.block_near_inode(inode.ino)
        number = change.allocator.take_block(transaction, change.caller, goal)
        # Both blocks refer to their values now.
        add_references(change, [attribute for attribute in wanted if attribute in present])
        inode = _drop_block(change, inode)
        inode = inode._replace(i_file_acl=number, i_blocks=inode.i_blocks_after(1, superblock.block_size))
    _set_checksum(superblock, number, block)
    transaction.put(number, bytes(block))
    return inode


def _set_checksum(superblock: Superblock, number: int, block: bytearray) -> None:
    if superblock.checksums is not None:
        superblock.checksums.set_xattrs(number, block)

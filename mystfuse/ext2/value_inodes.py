"""Values of extended attributes in inodes of their own (ea_inode): made, counted and freed.

The inode has EXT4_EA_INODE_FL and no name. How many attributes refer to it is in i_ctime (the upper half) and
l_i_version, the value's checksum in i_atime. Source: Documentation/filesystems/ext4/attributes.rst and fs/ext4/xattr.c
(ext4_xattr_inode_create, ext4_xattr_inode_update_ref, ext4_xattr_inode_hash). Values are never shared here, as they
may be by the kernel, whose shared ones are counted.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from errno import ENOSPC
from functools import partial

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.allocation import runs_of
from mystfuse.ext2.block_map_changes import map_for_writing
from mystfuse.ext2.blocks import together
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_GOOD_OLD_INODE_SIZE, EXT2_N_BLOCKS, EXT4_EA_INODE_FL, EXT4_EXTENTS_FL
from mystfuse.ext2.extent_format import EMPTY_ROOT
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.release_inodes import free_inodes
from mystfuse.ext2.truncate import MAX_TRIMMED, trim_blocks
from mystfuse.ext2.xattr import Attribute, may_be_together
from mystfuse.ext2.xattr_packing import entry_hash
from mystfuse.kernels.checksums import crc32c

_VERSION_OFFSET = 36
"""Of l_i_version."""
_SECOND = 1_000_000_000


def store_value(change: Change, owner: Inode, name_index: int, suffix: bytes, value: bytes) -> Attribute:
    """Put the value of an attribute of ``owner`` into a new inode; returns the attribute that refers to it.

    Raises:
        OSError: ENOSPC, there is no inode, or no room for the value.
        BlocksMissing, MystfuseError
    """
    filesystem, transaction, superblock = change.filesystem, change.transaction, change.superblock
    mode = stat.S_IFREG | 0o600
    value_hash = crc32c(value, superblock.checksum_seed)
    extra_isize, has_extents = superblock.new_extra_isize, "extent" in superblock.features
    inode = Inode(
        filesystem.allocator.take_inode(transaction, owner, mode),
        mode,
        owner.uid,
        owner.gid,
        len(value),
        _signed(value_hash) * _SECOND,  # atime_ns
        change.now_ns,  # mtime_ns
        0,  # ctime_ns
        1,  # i_links_count
        0,  # i_blocks
        EXT4_EA_INODE_FL | (EXT4_EXTENTS_FL if has_extents else 0),
        EMPTY_ROOT if has_extents else bytes(4 * EXT2_N_BLOCKS),
        filesystem.next_generation(),
        0,  # i_file_acl
        bytes(superblock.s_inode_size - EXT2_GOOD_OLD_INODE_SIZE - extra_isize),
        extra_isize,
    )
    filesystem.inode_table.write_new(transaction, inode)
    inode = _fill(change, inode, value)
    _write(change, inode, 1)
    transaction.on_commit.append(partial(filesystem.forget, inode.ino))
    entry = entry_hash(suffix, value_hash.to_bytes(4, "little"))
    return Attribute(name_index, suffix, b"", inode.ino, len(value), entry)


def _fill(change: Change, inode: Inode, value: bytes) -> Inode:
    transaction, size = change.transaction, change.superblock.block_size
    count = -(-len(value) // size)
    # It counts as metadata, not as file data, of which less may be written where there is less room.
    transaction.budget = max(transaction.budget, count)
    inode, pointers, _ = map_for_writing(change, inode, 0, count)
    if len(pointers) < count:
        raise OSError(ENOSPC, f"no room for an extended attribute of {len(value)} bytes")
    content, position = memoryview(value.ljust(count * size, b"\0")), 0
    for number, length in runs_of(pointers):
        for index in range(length):
            transaction.put(number + index, content[position : position + size])
            position += size
    return inode


def add_references(change: Change, attributes: Iterable[Attribute]) -> None:
    """Count that there is one more attribute for each value in an inode of its own.

    Raises:
        BlocksMissing, MystfuseError
    """
    together(partial(_add_reference, change, attribute) for attribute in _referring(change, attributes))


def _add_reference(change: Change, attribute: Attribute) -> None:
    inode, count = _read(change, attribute)
    _write(change, inode, count + 1)


def drop_references(change: Change, attributes: Iterable[Attribute]) -> None:
    """Count that there is one attribute less for each value in an inode of its own, and free those without any.

    Raises:
        BlocksMissing, MystfuseError
    """
    together(partial(_drop_reference, change, attribute) for attribute in _referring(change, attributes))


def _drop_reference(change: Change, attribute: Attribute) -> None:
    inode, count = _read(change, attribute)
    if count > 1:
        _write(change, inode, count - 1)
        return
    inode, end = trim_blocks(change, inode, 0, MAX_TRIMMED)
    if end:
        raise CorruptFilesystem(f"inode {inode.ino}: the value of an extended attribute has over {MAX_TRIMMED} blocks")
    free_inodes(change, [inode._replace(i_links_count=0)])


def _referring(change: Change, attributes: Iterable[Attribute]) -> list[Attribute]:
    """Those of a file's attributes whose values are in inodes of their own.

    Raises:
        CorruptFilesystem: they are more than a file may have.
    """
    referring = [attribute for attribute in attributes if attribute.inode]
    if not may_be_together(change.superblock, referring):
        raise CorruptFilesystem(
            f"a file has {len(referring)} extended attributes in inodes of their own, or too long ones"
        )
    return referring


def _read(change: Change, attribute: Attribute) -> tuple[Inode, int]:
    """The inode of a value, and how many attributes refer to it.

    Raises:
        CorruptFilesystem: it is something else, or none does.
    """
    table, transaction = change.filesystem.inode_table, change.transaction
    inode = table.parse_reserved(transaction, attribute.inode)
    if (
        not inode.i_flags & EXT4_EA_INODE_FL
        or not inode.is_regular
        or not inode.i_links_count
        or inode.ino < change.superblock.s_first_ino
    ):
        raise CorruptFilesystem(f"inode {inode.ino} does not hold an extended attribute")
    count = table.field(transaction, inode.ino, _VERSION_OFFSET) | (inode.ctime_ns // _SECOND & 0xFFFFFFFF) << 32
    if not count:
        raise CorruptFilesystem(f"inode {inode.ino} holds an extended attribute, but counts none")
    return inode, count


def _write(change: Change, inode: Inode, count: int) -> None:
    change.filesystem.inode_table.set_field(change.transaction, inode.ino, _VERSION_OFFSET, count & 0xFFFFFFFF)
    change.write_inode(inode._replace(ctime_ns=_signed(count >> 32) * _SECOND))


def _signed(number: int) -> int:
    """The seconds of a time whose 32-bit field holds ``number``."""
    return (number + (1 << 31) & 0xFFFFFFFF) - (1 << 31)

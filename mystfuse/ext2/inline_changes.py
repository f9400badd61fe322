"""Changing contents that are in the inode itself: while they fit they stay there, else they go into a block.

Source: Documentation/filesystems/ext4/inlinedata.rst and fs/ext4/inline.c (ext4_get_max_inline_size,
ext4_prepare_inline_data, ext4_inline_data_truncate, ext4_convert_inline_data).
"""

from __future__ import annotations

from functools import partial

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map_changes import add_block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_N_BLOCKS, EXT4_EXTENTS_FL, EXT4_INLINE_DATA_FL
from mystfuse.ext2.extent_format import EMPTY_ROOT
from mystfuse.ext2.inline_data import capacity, read_inline
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import INDEX_SYSTEM, Attribute, is_inline_data, may_refer, read_body
from mystfuse.ext2.xattr_packing import pack_body, room_in_body

HEAD_SIZE = 4 * EXT2_N_BLOCKS
"""Bytes of the contents that are in i_block."""
_LEAST_VALUE = 4
"""Bytes that must be left in the body for ``system.data``, even if i_block has room."""
_NAME = b"data"


def room_inline(superblock: Superblock, inode: Inode) -> int:
    """How many bytes of contents an inode has room for in itself; 0 if it can have none there."""
    room = room_in_body(inode, _others(superblock, inode), _NAME)
    return HEAD_SIZE + room if room >= _LEAST_VALUE else 0


def with_contents(superblock: Superblock, inode: Inode, contents: bytes) -> Inode:
    """The inode, not written, with contents in itself, for which there is room.

    Raises:
        CorruptFilesystem: its attributes only seemed to leave so much.
    """
    value = Attribute(INDEX_SYSTEM, _NAME, contents[HEAD_SIZE:])
    return inode._replace(
        i_flags=inode.i_flags & ~EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL,
        i_block=contents[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0"),
        extra=_packed(inode, [value, *_others(superblock, inode)]),
    )


def without_contents(superblock: Superblock, inode: Inode) -> Inode:
    """The inode, not written, with an empty extent tree or block map in the place of its contents; raises as
    ``with_contents``."""
    has_extents = "extent" in superblock.features
    return inode._replace(
        i_flags=inode.i_flags & ~EXT4_INLINE_DATA_FL | (EXT4_EXTENTS_FL if has_extents else 0),
        i_block=EMPTY_ROOT if has_extents else bytes(HEAD_SIZE),
        extra=_packed(inode, _others(superblock, inode)),
    )


def _others(superblock: Superblock, inode: Inode) -> list[Attribute]:
    return [attribute for attribute in read_body(inode, may_refer(superblock)) if not is_inline_data(attribute)]


def _packed(inode: Inode, attributes: list[Attribute]) -> bytes:
    extra = pack_body(inode, attributes)
    if extra is None:
        raise CorruptFilesystem(f"inode {inode.ino}: the extended attributes in it take more room than there is")
    return extra


def move_out(change: Change, inode: Inode) -> Inode:
    """The inode, not written, with its contents in a block.

    Raises:
        OSError: ENOSPC
        BlocksMissing, MystfuseError
    """
    contents = read_inline(inode)
    inode, _, block = add_block(change, without_contents(change.superblock, inode), 0)
    block[: len(contents)] = contents
    return inode


def write_inline(change: Change, inode: Inode, offset: int, data: memoryview) -> tuple[Inode, bool]:
    """Write to a file from byte ``offset`` on if all of it is, or can be, in the inode itself.

    Returns:
        The inode, neither written nor with another size, and whether ``data`` is in it. If not, it has a block map.

    Raises:
        OSError: ENOSPC, its contents need a block, and there is none.
        BlocksMissing, MystfuseError
    """
    superblock, filesystem, end = change.superblock, change.filesystem, offset + len(data)
    if not inode.is_inline:
        if not filesystem.is_new_file(inode.ino):
            return inode, False
        change.transaction.on_commit.append(partial(filesystem.note_contents, inode.ino))
    # What the size goes beyond that counts as zeros.
    if end > room_inline(superblock, inode):
        return (move_out(change, inode) if inode.is_inline else inode), False
    contents = bytearray(read_inline(inode) if inode.is_inline else b"").ljust(end, b"\0")
    contents[offset:end] = data
    return with_contents(superblock, inode, bytes(contents)), True


def resize_inline(change: Change, inode: Inode, size: int) -> tuple[Inode, bool]:
    """Give a file whose contents are in the inode another size, if they stay there.

    Returns:
        The inode, not written, and whether it has the size. If not, it has a block map.

    Raises:
        OSError: ENOSPC, its contents need a block, and there is none.
        BlocksMissing, MystfuseError
    """
    if size > capacity(inode):
        return move_out(change, inode), False
    contents = read_inline(inode)[:size].ljust(size, b"\0")
    return with_contents(change.superblock, inode, contents)._replace(size=size), True

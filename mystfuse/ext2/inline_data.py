"""Contents in the inode itself: the first 60 bytes in i_block, the others in the attribute ``system.data``.

Source: Documentation/filesystems/ext4/inlinedata.rst and fs/ext4/inline.c. A directory has four bytes for the inode
number of ``..``, and then entries in each of the two places, as in a block.
"""

from __future__ import annotations

import struct

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import check_not_encrypted
from mystfuse.ext2.constants import EXT2_DIR_ENTRY_HEADER
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import is_inline_data, read_body

_HEADER = struct.Struct("<IHBB")  # inode rec_len name_len file_type
_DIRECTORY_TYPE = 2
_MIN_REC_LEN = 12
_PARENT_SIZE = 4
DIRECTORY_OFFSET = 2 * _MIN_REC_LEN
"""Where entries begin in the block that ``inline_directory`` shows: behind ``.`` and ``..``."""


def read_inline(inode: Inode) -> bytes:
    """The contents of an inode that has them in itself: as many bytes as its size says, or fewer, zeros being left out.

    Raises:
        CorruptFilesystem: its attributes are broken.
        EncryptedContents: it is encrypted, which the kernel does not do to such an inode.
    """
    check_not_encrypted(inode)
    return (inode.i_block + _rest(inode))[: inode.size]


def capacity(inode: Inode) -> int:
    """How many bytes of contents an inode that has them in itself has room for, without moving its attributes.

    Raises:
        CorruptFilesystem: as ``read_inline``.
    """
    return len(inode.i_block) + len(_rest(inode))


def inline_areas(inode: Inode) -> tuple[bytes, bytes]:
    """The two places that have the entries of a directory.

    Raises:
        CorruptFilesystem: as ``inline_directory``.
    """
    areas = inode.i_block[_PARENT_SIZE:], _rest(inode)
    for area in areas:
        _check_entries(inode, area)
    return areas


def inline_directory(superblock: Superblock, inode: Inode, tail: int = 0) -> bytes:
    """The block that a directory would have whose entries are in its inode.

    Args:
        tail: bytes at its end that are kept free for a checksum.

    Raises:
        CorruptFilesystem: the entries are broken.
    """
    (parent,) = struct.unpack_from("<I", inode.i_block)
    areas = inline_areas(inode)
    has_filetype = superblock.has_filetype
    block = b"".join((_entry(inode.ino, b".", has_filetype), _entry(parent, b"..", has_filetype), *areas))
    left = superblock.block_size - tail - len(block)
    if left < _MIN_REC_LEN:
        raise CorruptFilesystem(f"directory inode {inode.ino}: its inline entries are too many for a block")
    return block + _HEADER.pack(0, left, 0, 0) + bytes(left - EXT2_DIR_ENTRY_HEADER + tail)


def _rest(inode: Inode) -> bytes:
    return next((attribute.value for attribute in read_body(inode, True) if is_inline_data(attribute)), b"")


def _entry(ino: int, name: bytes, has_filetype: bool) -> bytes:
    return _HEADER.pack(ino, _MIN_REC_LEN, len(name), _DIRECTORY_TYPE if has_filetype else 0) + name.ljust(4, b"\0")


def _check_entries(inode: Inode, area: bytes) -> None:
    """Raise CorruptFilesystem unless entries fill an area to its end."""
    offset = 0
    while offset < len(area):
        rec_len = _HEADER.unpack_from(area, offset)[1] if offset + _MIN_REC_LEN <= len(area) else 0
        if rec_len < _MIN_REC_LEN or rec_len % 4 or offset + rec_len > len(area):
            raise CorruptFilesystem(f"directory inode {inode.ino}: rec_len {rec_len} of an inline entry is invalid")
        offset += rec_len

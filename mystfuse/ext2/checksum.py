"""The checksums of metadata that ext4 has with metadata_csum (crc32c), and of group descriptors with uninit_bg (crc16).

Source: Documentation/filesystems/ext4/checksums.rst, and for the bytes that each covers fs/ext4/super.c,
inode.c, extents.c, namei.c, xattr.c and bitmap.c. Every check raises CorruptFilesystem with the structure's name.
"""

from __future__ import annotations

import struct

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.constants import EXT2_GOOD_OLD_INODE_SIZE
from mystfuse.kernels.checksums import crc16, crc32c

_TWO = struct.Struct("<II")
_NUMBER = struct.Struct("<I")
_WIDE = struct.Struct("<Q")
_SHORT = struct.Struct("<H")
_DESCRIPTOR_CHECKSUM = 30
"""The offset of bg_checksum."""
_GENERATION = 100
_CHECKSUM_LOW, _CHECKSUM_HIGH, _EXTRA_ISIZE = 124, 130, 128
DIRECTORY_TAIL = 12
"""Bytes at the end of a block of names that its checksum takes."""
_TAIL = struct.Struct("<IHBBI")  # det_reserved_zero1 det_rec_len det_reserved_zero2 det_reserved_ft det_checksum
_TAIL_TYPE = 0xDE
_ENTRY_SIZE = 8
_COUNTS = struct.Struct("<HH")  # limit count, in the place of the first dx_entry's hash
_SUPERBLOCK_CHECKSUM = 1020
_XATTR_CHECKSUM = 16
"""The offset of h_checksum."""


class MetadataChecksums:
    """Checks metadata of one file system.

    Args:
        seed: s_checksum_seed, or the crc32c of the UUID.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _of_descriptor(self, group: int, data: bytes) -> int:
        crc = crc32c(_NUMBER.pack(group) + data[:_DESCRIPTOR_CHECKSUM] + b"\0\0" + data[32:], self.seed)
        return crc & 0xFFFF

    def check_descriptor(self, group: int, data: bytes) -> None:
        """A group descriptor of 32 bytes or more (ext4_group_desc_csum)."""
        if self._of_descriptor(group, data) != _SHORT.unpack_from(data, _DESCRIPTOR_CHECKSUM)[0]:
            raise CorruptFilesystem(f"group {group}: the checksum of its descriptor does not match")

    def set_descriptor(self, group: int, block: bytearray, offset: int, size: int) -> None:
        """The same for one of ``size`` bytes at byte ``offset`` of a block, which has been changed."""
        crc = self._of_descriptor(group, bytes(block[offset : offset + size]))
        _SHORT.pack_into(block, offset + _DESCRIPTOR_CHECKSUM, crc)

    def _of_inode(self, ino: int, data: bytes) -> tuple[int, bool]:
        """What the checksum of an inode should be, and whether it has 32 bits, not 16."""
        crc = crc32c(_NUMBER.pack(ino) + data[_GENERATION : _GENERATION + 4], self.seed)
        head = data[:_CHECKSUM_LOW] + b"\0\0" + data[_CHECKSUM_LOW + 2 : EXT2_GOOD_OLD_INODE_SIZE]
        is_wide = len(data) > EXT2_GOOD_OLD_INODE_SIZE and _SHORT.unpack_from(data, _EXTRA_ISIZE)[0] >= 4
        if is_wide:
            head += data[EXT2_GOOD_OLD_INODE_SIZE:_CHECKSUM_HIGH] + b"\0\0" + data[_CHECKSUM_HIGH + 2 :]
        else:
            head += data[EXT2_GOOD_OLD_INODE_SIZE:]
        crc = crc32c(head, crc)
        return (crc if is_wide else crc & 0xFFFF), is_wide

    def check_inode(self, ino: int, data: bytes) -> None:
        """An inode of s_inode_size bytes (ext4_inode_csum_verify)."""
        wanted, is_wide = self._of_inode(ino, data)
        (stored,) = _SHORT.unpack_from(data, _CHECKSUM_LOW)
        if is_wide:
            stored |= _SHORT.unpack_from(data, _CHECKSUM_HIGH)[0] << 16
        if wanted != stored:
            raise CorruptFilesystem(f"inode {ino}: its checksum does not match")

    def set_inode(self, ino: int, block: bytearray, offset: int, size: int) -> None:
        """The same for one at byte ``offset`` of a block of the inode table, which has been changed."""
        crc, is_wide = self._of_inode(ino, bytes(block[offset : offset + size]))
        _SHORT.pack_into(block, offset + _CHECKSUM_LOW, crc & 0xFFFF)
        if is_wide:
            _SHORT.pack_into(block, offset + _CHECKSUM_HIGH, crc >> 16)

    def inode_seed(self, ino: int, generation: int) -> int:
        """What the checksums of an inode's own blocks begin with."""
        return crc32c(_TWO.pack(ino, generation), self.seed)

    def check_extents(self, ino: int, generation: int, number: int, block: Block) -> None:
        """A block of an inode's extent tree, whose eh_max fits it (ext4_extent_block_csum)."""
        (eh_max,) = _SHORT.unpack_from(block, 4)
        end = 12 + 12 * eh_max
        (stored,) = _NUMBER.unpack_from(block, end)
        if crc32c(block[:end], self.inode_seed(ino, generation)) != stored:
            raise CorruptFilesystem(f"inode {ino}: the checksum of extent block {number} does not match")

    def set_extents(self, ino: int, generation: int, block: bytearray) -> None:
        """Give such a block its checksum.

        Raises:
            CorruptFilesystem: there is no room for one: the file has the block as contents, too.
        """
        (eh_max,) = _SHORT.unpack_from(block, 4)
        end = 12 + 12 * eh_max
        if end + _NUMBER.size > len(block):
            raise CorruptFilesystem(f"inode {ino}: a block of its extent tree holds something else")
        _NUMBER.pack_into(block, end, crc32c(bytes(block[:end]), self.inode_seed(ino, generation)))

    def check_directory(self, ino: int, generation: int, logical: int, block: Block) -> None:
        """A block of a directory, of names or of its index (ext4_dirblock_csum_verify, ext4_dx_csum_verify)."""
        seed = self.inode_seed(ino, generation)
        start = len(block) - DIRECTORY_TAIL
        zero_1, rec_len, zero_2, kind, stored = _TAIL.unpack_from(block, start)
        is_tail = (zero_1, rec_len, zero_2, kind) == (0, DIRECTORY_TAIL, 0, _TAIL_TYPE)
        if is_tail and crc32c(block[:start], seed) == stored:
            return
        # A block of the index may have been one of names, whose tail is still there.
        counts = _index_counts(block)
        if counts:
            limit, count = _COUNTS.unpack_from(block, counts)
            tail = counts + limit * _ENTRY_SIZE
            if count <= limit and tail + _ENTRY_SIZE <= len(block):
                reserved, stored = _TWO.unpack_from(block, tail)
                covered = bytes(block[: counts + count * _ENTRY_SIZE]) + _TWO.pack(reserved, 0)
                if crc32c(covered, seed) == stored:
                    return
        raise CorruptFilesystem(f"directory inode {ino}: the checksum of block {logical} does not match")

    def _of_xattrs(self, number: int, block: Block) -> int:
        covered = _WIDE.pack(number) + block[:_XATTR_CHECKSUM] + bytes(4) + block[_XATTR_CHECKSUM + 4 :]
        return crc32c(covered, self.seed)

    def set_directory(self, ino: int, generation: int, block: bytearray) -> None:
        """The same for one that has been changed (ext4_dirblock_csum_set, ext4_dx_csum_set).

        Raises:
            CorruptFilesystem: there is no room for a checksum.
        """
        seed = self.inode_seed(ino, generation)
        start = len(block) - DIRECTORY_TAIL
        if counts := _index_counts(block):
            limit, count = _COUNTS.unpack_from(block, counts)
            tail = counts + limit * _ENTRY_SIZE
            if count <= limit and tail + _ENTRY_SIZE <= len(block):
                _NUMBER.pack_into(block, tail + 4, 0)
                covered = block[: counts + count * _ENTRY_SIZE] + block[tail : tail + _ENTRY_SIZE]
                _NUMBER.pack_into(block, tail + 4, crc32c(covered, seed))
                return
        elif _TAIL.unpack_from(block, start)[:4] == (0, DIRECTORY_TAIL, 0, _TAIL_TYPE):
            _NUMBER.pack_into(block, start + 8, crc32c(block[:start], seed))
            return
        raise CorruptFilesystem(f"directory inode {ino}: a block has no room for its checksum")

    def check_xattrs(self, ino: int, number: int, block: Block) -> None:
        """A block of extended attributes (ext4_xattr_block_csum)."""
        if self._of_xattrs(number, block) != _NUMBER.unpack_from(block, _XATTR_CHECKSUM)[0]:
            raise CorruptFilesystem(f"inode {ino}: the checksum of attribute block {number} does not match")

    def set_xattrs(self, number: int, block: bytearray) -> None:
        """Give such a block, which has been changed, its checksum."""
        _NUMBER.pack_into(block, _XATTR_CHECKSUM, self._of_xattrs(number, block))

    def check_bitmap(self, what: str, group: int, bits: int, block: Block, stored: int, is_wide: bool) -> None:
        """A bitmap (ext4_block_bitmap_csum_verify, ext4_inode_bitmap_csum_verify).

        Args:
            bits: how many of it count.
            stored: the checksum in the descriptor.
            is_wide: whether that has 32 bits, not 16.
        """
        if self.of_bitmap(bits, block, is_wide) != stored:
            raise CorruptFilesystem(f"group {group}: the checksum of its {what} does not match")

    def of_bitmap(self, bits: int, block: Block, is_wide: bool) -> int:
        """What the same checksum should be."""
        crc = crc32c(block[: bits // 8], self.seed)
        return crc if is_wide else crc & 0xFFFF


def put_directory_tail(block: bytearray) -> None:
    """Make the end of a block of names look as one that has a checksum (ext4_initialize_dirent_tail)."""
    _TAIL.pack_into(block, len(block) - DIRECTORY_TAIL, 0, DIRECTORY_TAIL, 0, _TAIL_TYPE, 0)


def _index_counts(block: Block) -> int:
    """Where a block of a directory's index has its limit and count; 0 if it is none (fs/ext4/namei.c,
    get_dx_countlimit)."""
    size = len(block)
    (rec_len,) = _SHORT.unpack_from(block, 4)
    if rec_len == size or (size == 65536 and rec_len in (0, 65535)):
        return 8
    if rec_len != 12:
        return 0
    (second,) = _SHORT.unpack_from(block, 16)
    if second != size - 12 and not (size == 65536 and second == 65524):
        return 0
    zero, _, info_length = struct.unpack_from("<IBB", block, 24)
    return 32 if not zero and info_length == 8 else 0


def check_descriptor_16(uuid: bytes, group: int, data: bytes) -> None:
    """A group descriptor with a crc16 (fs/ext4/super.c, ext4_group_desc_csum, without metadata_csum)."""
    if _of_descriptor_16(uuid, group, data) != _SHORT.unpack_from(data, _DESCRIPTOR_CHECKSUM)[0]:
        raise CorruptFilesystem(f"group {group}: the checksum of its descriptor does not match")


def set_descriptor_16(uuid: bytes, group: int, block: bytearray, offset: int, size: int) -> None:
    """The same for one of ``size`` bytes at byte ``offset`` of a block, which has been changed."""
    crc = _of_descriptor_16(uuid, group, bytes(block[offset : offset + size]))
    _SHORT.pack_into(block, offset + _DESCRIPTOR_CHECKSUM, crc)


def _of_descriptor_16(uuid: bytes, group: int, data: bytes) -> int:
    return crc16(uuid + _NUMBER.pack(group) + data[:_DESCRIPTOR_CHECKSUM] + data[32:], 0xFFFF)


def set_superblock(block: bytearray, offset: int) -> None:
    """The superblock, at byte ``offset`` of a block, which has been changed (fs/ext4/super.c, ext4_superblock_csum)."""
    crc = crc32c(bytes(block[offset : offset + _SUPERBLOCK_CHECKSUM]), 0xFFFFFFFF)
    _NUMBER.pack_into(block, offset + _SUPERBLOCK_CHECKSUM, crc)

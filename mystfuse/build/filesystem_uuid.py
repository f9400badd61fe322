"""Another UUID for a file system that is being copied: in the superblock, and in its copies in block groups.

With metadata_csum, all checksums begin with one of the UUID: the old one is kept as s_checksum_seed, as tune2fs does.
With uninit_bg alone, those of group descriptors are of the UUID itself, and are made anew.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from uuid import UUID

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.checksum import check_descriptor_16, set_descriptor_16, set_superblock
from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.fixed_blocks import descriptor_copies
from mystfuse.ext2.superblock import Superblock

# Offsets in a superblock: kernel, fs/ext4/ext4.h, struct ext4_super_block.
_S_MAGIC, _S_FEATURE_INCOMPAT, _S_UUID, _S_CHECKSUM_SEED = 56, 96, 104, 624
_UUID_SIZE = 16
_METADATA_CSUM_SEED = 0x2000

Read = Callable[[int, int], bytes]
"""Gives bytes by position and length, exactly as many."""


def with_uuid(read: Read, superblock: Superblock, uuid: UUID) -> Read:
    """``read`` with another UUID in each superblock, and what goes with it in each block of group descriptors, that a
    piece holds as a whole. What is not one (a copy that is damaged) stays as it is.

    Args:
        superblock: with the old UUID.

    Raises:
        UnsupportedFeature: with ea_inode and without metadata_csum, checksums of attributes' values begin with the
            UUID, and there is no other place for the old one.
    """
    if "ea_inode" in superblock.features and superblock.checksums is None:
        raise UnsupportedFeature("ea_inode without metadata_csum: the file system's UUID cannot change")
    places = [SUPERBLOCK_OFFSET, *_copies(superblock)]
    has_checksum_16 = "uninit_bg" in superblock.features and superblock.checksums is None
    tables = sorted(_tables(superblock)) if has_checksum_16 else []

    def read_with_uuid(position: int, length: int) -> bytes:
        data = bytearray(read(position, length))
        end = position + len(data)
        for place in places[bisect_left(places, position) : bisect_right(places, end - SUPERBLOCK_SIZE)]:
            _set_uuid(data, place - position, superblock, uuid)
        for place, group in tables[bisect_left(tables, (position, 0)) : bisect_left(tables, (end, 0))]:
            if place + superblock.block_size <= end:
                _set_checksums(data, place - position, group, superblock, uuid)
        return bytes(data)

    return read_with_uuid


def _set_uuid(data: bytearray, start: int, superblock: Superblock, uuid: UUID) -> None:
    if int.from_bytes(data[start + _S_MAGIC : start + _S_MAGIC + 2], "little") != EXT2_SUPER_MAGIC:
        return
    data[start + _S_UUID : start + _S_UUID + _UUID_SIZE] = uuid.bytes
    if superblock.checksums is not None:
        (incompat,) = struct.unpack_from("<I", data, start + _S_FEATURE_INCOMPAT)
        struct.pack_into("<I", data, start + _S_FEATURE_INCOMPAT, incompat | _METADATA_CSUM_SEED)
        struct.pack_into("<I", data, start + _S_CHECKSUM_SEED, superblock.checksums.seed)
        set_superblock(data, start)


def _set_checksums(data: bytearray, start: int, group: int, superblock: Superblock, uuid: UUID) -> None:
    """Make the checksums anew that were right, of a block of descriptors from group ``group`` on."""
    size = superblock.descriptor_size
    for number in range(group, min(group + superblock.descriptors_per_block, superblock.groups_count)):
        offset = start + (number - group) * size
        try:
            check_descriptor_16(superblock.s_uuid.bytes, number, bytes(data[offset : offset + size]))
        except CorruptFilesystem:
            continue
        set_descriptor_16(uuid.bytes, number, data, offset, size)


def _copies(superblock: Superblock) -> list[int]:
    """Where the copies of the superblock are, in bytes."""
    return [
        (superblock.s_first_data_block + group * superblock.s_blocks_per_group) * superblock.block_size
        for group in range(1, superblock.groups_count)
        if superblock.group_has_superblock(group)
    ]


def _tables(superblock: Superblock) -> list[tuple[int, int]]:
    """Where blocks of group descriptors are, copies included, in bytes, and the first group in each."""
    return [
        (number * superblock.block_size, index * superblock.descriptors_per_block)
        for index in range(superblock.descriptor_blocks)
        for number in (superblock.descriptor_block(index), *descriptor_copies(superblock, index))
    ]

"""The fields of the superblock that only ext4 has, checked against the format's limits.

Layout: kernel, fs/ext4/ext4.h ``struct ext4_super_block``.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.checksum import MetadataChecksums
from mystfuse.ext2.constants import EXT2_GOOD_OLD_INODE_SIZE
from mystfuse.ext2.features import of_ext4
from mystfuse.kernels.checksums import crc32c

_LAYOUT = struct.Struct(
    "<I4xI"  # s_log_cluster_size s_clusters_per_group
    "214xH4xI"  # s_desc_size s_first_meta_bg
    "72xII"  # s_blocks_count_hi s_r_blocks_count_hi
    "4xHH6xH"  # s_min_extra_isize s_want_extra_isize s_mmp_update_interval
    "Q5xB"  # s_mmp_block s_checksum_type
    "210xIII"  # s_overhead_clusters s_backup_bgs[2]
    "24xII"  # s_prj_quota_inum s_checksum_seed
    "12xI"  # s_orphan_file_inum
)
_LAYOUT_OFFSET = 28
_MAX_CLUSTER_LOG_SIZE = 20
"""Of 1024 bytes (fs/ext4/ext4.h, EXT4_MAX_CLUSTER_LOG_SIZE: 30, of single bytes)."""
_UUID_OFFSET = 104
_LONG_DESCRIPTOR_SIZE = 64
_CRC32C = 1
"""The one s_checksum_type."""
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_OFFSET = 1020


class ExtendedFields(NamedTuple):
    """Fields that only ext4 uses."""

    s_log_cluster_size: int
    s_clusters_per_group: int
    s_desc_size: int
    s_first_meta_bg: int
    s_blocks_count_hi: int
    s_r_blocks_count_hi: int
    s_min_extra_isize: int
    s_want_extra_isize: int
    s_mmp_update_interval: int
    s_mmp_block: int
    s_checksum_type: int
    s_overhead_clusters: int
    s_backup_bg_0: int
    s_backup_bg_1: int
    s_prj_quota_inum: int
    s_checksum_seed: int
    s_orphan_file_inum: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> ExtendedFields:
        """Those in the 1024 bytes of a superblock."""
        return cls._make(_LAYOUT.unpack_from(data, _LAYOUT_OFFSET))


def check_extended(
    data: bytes | memoryview,
    fields: ExtendedFields,
    features: frozenset[str],
    log_block_size: int,
    blocks_per_group: int,
    inode_size: int,
) -> dict[str, Any]:
    """The fields of ``Superblock`` that only ext4 has, checked (fs/ext4/super.c, ext4_handle_clustersize,
    ext4_verify_csum_type, ext4_superblock_csum, ext4_block_group_meta_init and ext4_inode_info_init).

    Raises:
        CorruptFilesystem: they contradict each other, or the superblock's checksum does not match.
    """
    if not of_ext4(features):
        return {}
    found: dict[str, Any] = {
        "s_first_meta_bg": fields.s_first_meta_bg,
        "s_overhead_clusters": fields.s_overhead_clusters,
        "s_backup_bgs": (fields.s_backup_bg_0, fields.s_backup_bg_1),
        "s_orphan_file_inum": fields.s_orphan_file_inum if "orphan_file" in features else 0,
        "s_mmp_block": fields.s_mmp_block if "mmp" in features else 0,
        "hidden_inodes": _hidden_inodes(fields, features),
    }
    if "extra_isize" in features and inode_size > EXT2_GOOD_OLD_INODE_SIZE:
        wanted = max(fields.s_min_extra_isize, fields.s_want_extra_isize)
        if wanted > inode_size - EXT2_GOOD_OLD_INODE_SIZE or wanted % 4:
            raise CorruptFilesystem(f"EXT2 superblock: s_want_extra_isize {wanted} is invalid")
        found["wanted_extra_isize"] = wanted
    if "metadata_csum" in features:
        if fields.s_checksum_type != _CRC32C:
            raise CorruptFilesystem(f"EXT2 superblock: s_checksum_type {fields.s_checksum_type} is unknown")
        (checksum,) = _CHECKSUM.unpack_from(data, _CHECKSUM_OFFSET)
        if crc32c(bytes(data[:_CHECKSUM_OFFSET]), 0xFFFFFFFF) != checksum:
            raise CorruptFilesystem("EXT2 superblock: its checksum does not match")
        if "metadata_csum_seed" in features:
            seed = fields.s_checksum_seed
        else:
            seed = crc32c(bytes(data[_UUID_OFFSET : _UUID_OFFSET + 16]), 0xFFFFFFFF)
        found["checksums"] = MetadataChecksums(seed)
    if "64bit" in features:
        size = fields.s_desc_size
        if not _LONG_DESCRIPTOR_SIZE <= size <= 1024 or size & (size - 1):
            raise CorruptFilesystem(f"EXT2 superblock: s_desc_size {size} is invalid")
        found["descriptor_size"] = size
    if "bigalloc" in features:
        shift = fields.s_log_cluster_size - log_block_size
        if not 0 <= shift <= _MAX_CLUSTER_LOG_SIZE or fields.s_clusters_per_group << shift != blocks_per_group:
            raise CorruptFilesystem(
                f"EXT2 superblock: clusters of s_log_cluster_size {fields.s_log_cluster_size}, "
                f"{fields.s_clusters_per_group} in a group of {blocks_per_group} blocks, are invalid"
            )
        found["blocks_per_cluster"] = 1 << shift
    return found


def _hidden_inodes(fields: ExtendedFields, features: frozenset[str]) -> frozenset[int]:
    numbers = {"project": fields.s_prj_quota_inum, "orphan_file": fields.s_orphan_file_inum}
    return frozenset(number for feature, number in numbers.items() if number and feature in features)

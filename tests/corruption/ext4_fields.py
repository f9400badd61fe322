"""Fields of ext4 and values that tests put into them, by their offsets (Documentation/filesystems/ext4)."""

from __future__ import annotations

import random

from tests.corruption.bases import DEEP
from tests.corruption.ext4_layout import EA_INODE, EXTENTS, INDEX, INLINE

Field = tuple[str, str, int]
"""Name, struct format, byte offset."""

SUPER: tuple[Field, ...] = (
    ("s_inodes_count", "<I", 0), ("s_blocks_count_lo", "<I", 4), ("s_r_blocks_count_lo", "<I", 8),
    ("s_free_blocks_count_lo", "<I", 12), ("s_free_inodes_count", "<I", 16), ("s_first_data_block", "<I", 20),
    ("s_log_block_size", "<I", 24), ("s_log_cluster_size", "<I", 28), ("s_blocks_per_group", "<I", 32),
    ("s_clusters_per_group", "<I", 36), ("s_inodes_per_group", "<I", 40), ("s_state", "<H", 58),
    ("s_rev_level", "<I", 76), ("s_first_ino", "<I", 84), ("s_inode_size", "<H", 88), ("s_uuid", "<I", 104),
    ("s_reserved_gdt_blocks", "<H", 206), ("s_journal_inum", "<I", 224), ("s_journal_dev", "<I", 228),
    ("s_last_orphan", "<I", 232), ("s_hash_seed", "<I", 236), ("s_def_hash_version", "<B", 252),
    ("s_desc_size", "<H", 254), ("s_first_meta_bg", "<I", 260), ("s_blocks_count_hi", "<I", 336),
    ("s_free_blocks_count_hi", "<I", 344), ("s_min_extra_isize", "<H", 348), ("s_want_extra_isize", "<H", 350),
    ("s_flags", "<I", 352), ("s_mmp_interval", "<H", 358), ("s_mmp_block", "<Q", 360),
    ("s_log_groups_per_flex", "<B", 372), ("s_checksum_type", "<B", 373), ("s_usr_quota_inum", "<I", 0x240),
    ("s_overhead", "<I", 0x248), ("s_backup_bgs", "<I", 0x24C), ("s_lpf_ino", "<I", 0x268),
    ("s_prj_quota_inum", "<I", 0x26C), ("s_checksum_seed", "<I", 0x270), ("s_encoding", "<H", 0x27C),
    ("s_orphan_file_inum", "<I", 0x280),
)  # fmt: skip
BITS = {92: (1, 2, 4, 0x10, 0x20, 0x200, 0x400, 0x1000), 100: (1, 2, 8, 16, 32, 64, 0x100, 0x200, 0x400, 0x1000,
         0x2000, 0x4000, 0x8000, 0x10000),
         96: (2, 4, 0x10, 0x40, 0x80, 0x100, 0x200, 0x400, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000)}  # fmt: skip
"""Bits of features, by the offset of their field."""
GROUP: tuple[Field, ...] = (
    ("bg_block_bitmap_lo", "<I", 0), ("bg_inode_bitmap_lo", "<I", 4), ("bg_inode_table_lo", "<I", 8),
    ("bg_free_blocks_count_lo", "<H", 12), ("bg_free_inodes_count_lo", "<H", 14), ("bg_used_dirs_count_lo", "<H", 16),
    ("bg_flags", "<H", 18), ("bg_flags", "<H", 18), ("bg_block_bitmap_csum_lo", "<H", 24),
    ("bg_inode_bitmap_csum_lo", "<H", 26), ("bg_itable_unused_lo", "<H", 28), ("bg_checksum", "<H", 30),
)  # fmt: skip
GROUP_64: tuple[Field, ...] = (
    ("bg_block_bitmap_hi", "<I", 32), ("bg_inode_bitmap_hi", "<I", 36), ("bg_inode_table_hi", "<I", 40),
    ("bg_free_blocks_count_hi", "<H", 44), ("bg_free_inodes_count_hi", "<H", 46), ("bg_used_dirs_count_hi", "<H", 48),
    ("bg_itable_unused_hi", "<H", 50), ("bg_block_bitmap_csum_hi", "<H", 56), ("bg_inode_bitmap_csum_hi", "<H", 58),
)  # fmt: skip
INODE: tuple[Field, ...] = (
    ("i_mode", "<H", 0), ("i_size_lo", "<I", 4), ("i_size_lo", "<I", 4), ("i_atime", "<I", 8), ("i_dtime", "<I", 20),
    ("i_links_count", "<H", 26), ("i_blocks_lo", "<I", 28), ("i_flags", "<I", 32), ("i_version", "<I", 36),
    ("i_generation", "<I", 100), ("i_file_acl_lo", "<I", 104), ("i_size_high", "<I", 108), ("i_blocks_high", "<H", 116),
    ("i_file_acl_high", "<H", 118), ("i_checksum_lo", "<H", 124),
)  # fmt: skip
INODE_EXTRA: tuple[Field, ...] = (
    ("i_extra_isize", "<H", 128), ("i_extra_isize", "<H", 128), ("i_checksum_hi", "<H", 130),
    ("i_mtime_extra", "<I", 136), ("i_crtime_extra", "<I", 148), ("i_version_hi", "<I", 152), ("i_projid", "<I", 156),
)  # fmt: skip
FLAGS = (EXTENTS, INLINE, INDEX, EA_INODE, 0x800, 0x100000, 0x40000000, 0x40000, 0x20000000, 0x10, 0x20, 0x2000000)
"""EXT4_EXTENTS_FL to EXT4_DAX_FL, with ENCRYPT, VERITY, CASEFOLD, HUGE_FILE, PROJINHERIT, IMMUTABLE, APPEND."""
HEADER: tuple[Field, ...] = (
    ("eh_magic", "<H", 0), ("eh_entries", "<H", 2), ("eh_entries", "<H", 2), ("eh_max", "<H", 4), ("eh_depth", "<H", 6),
    ("eh_depth", "<H", 6), ("eh_generation", "<I", 8),
)  # fmt: skip
LENGTHS = (0, 1, 2, 84, 340, 32767, 32768, 32769, 32770, 65535)
XATTR_ENTRY: tuple[Field, ...] = (
    ("e_name_len", "<B", 0), ("e_name_index", "<B", 1), ("e_value_offs", "<H", 2), ("e_value_inum", "<I", 4),
    ("e_value_inum", "<I", 4), ("e_value_size", "<I", 8), ("e_hash", "<I", 12), ("e_name", "<I", 16),
)  # fmt: skip
FILES = ("plain", "empty", "tiny", "small", "direct", "pieces", "few", "unwritten", "huge", "sparse", "dir/first",
         f"{DEEP}/bottom", "shared-one", "attributes", "acl/file")  # fmt: skip
DIRECTORIES = ("", "dir", "hollow", "htree", "acl", "lost+found", *(DEEP[: 2 * depth + 1] for depth in range(6)))
OTHERS = ("fast", "slow", "middle", "fifo", "char", "block")
TREES = ("pieces", "pieces", "pieces", "few", "htree", "unwritten", "sparse", "direct", "")


def any_path(source: random.Random) -> str:
    return source.choice((*FILES, *DIRECTORIES, *OTHERS))

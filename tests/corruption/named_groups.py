"""Named damage to superblocks, group descriptors, bitmaps and the root."""

from __future__ import annotations

import stat

from tests.corruption.bases import Layout
from tests.corruption.case import case
from tests.support.ext2_editor import ROOT

# The superblock.


@case("refused not an EXT2 file system")
def zero_super(layout: Layout) -> None:
    """A superblock of zeros."""
    layout.data[1024:2048] = bytes(1024)


@case("refused s_log_block_size")
def block_size_of_64_mib(layout: Layout) -> None:
    """s_log_block_size 16."""
    layout.set_super("<I", 24, 16)


@case("refused s_inode_size")
def zero_inode_size(layout: Layout) -> None:
    """s_inode_size 0."""
    layout.set_super("<H", 88, 0)


@case("refused s_inode_size")
def odd_inode_size(layout: Layout) -> None:
    """s_inode_size 200."""
    layout.set_super("<H", 88, 200)


@case("refused s_inodes_per_group")
def zero_inodes_per_group(layout: Layout) -> None:
    """s_inodes_per_group 0."""
    layout.set_super("<I", 40, 0)


@case("refused s_blocks_per_group")
def zero_blocks_per_group(layout: Layout) -> None:
    """s_blocks_per_group 0: f_zero_group."""
    layout.set_super("<I", 32, 0)


@case("refused s_blocks_per_group")
def too_many_blocks_per_group(layout: Layout) -> None:
    """s_blocks_per_group past what a bitmap can hold."""
    layout.set_super("<I", 32, 8 * 1024 + 8)


@case("refused s_inodes_count")
def one_block_per_group(layout: Layout) -> None:
    """s_blocks_per_group 1: thousands of groups."""
    layout.set_super("<I", 32, 1)


@case("refused s_inodes_count")
def inodes_count_off_by_one(layout: Layout) -> None:
    """s_inodes_count one more than the groups have."""
    layout.set_super("<I", 0, layout.inodes_count + 1)


@case("refused bytes")
def too_many_blocks(layout: Layout) -> None:
    """s_blocks_count past the end of the image."""
    layout.set_super("<I", 4, layout.blocks_count + 1)


@case("refused s_blocks_count")
def no_blocks(layout: Layout) -> None:
    """s_blocks_count 0."""
    layout.set_super("<I", 4, 0)


@case("refused s_first_data_block")
def first_data_block_elsewhere(layout: Layout) -> None:
    """s_first_data_block 7."""
    layout.set_super("<I", 20, 7)


@case("refused s_first_ino")
def first_ino_below_the_root(layout: Layout) -> None:
    """s_first_ino 2."""
    layout.set_super("<I", 84, 2)


@case("list / ok", "stat plain EUCLEAN", "list dir absent")
def first_ino_past_everything(layout: Layout) -> None:
    """s_first_ino is the last inode: every other is reserved."""
    layout.set_super("<I", 84, layout.inodes_count)


@case("refused revision")
def revision_of_the_future(layout: Layout) -> None:
    """s_rev_level 2."""
    layout.set_super("<I", 76, 2)


@case("refused")
def incompatible_features(layout: Layout) -> None:
    """All bits of s_feature_incompat."""
    layout.set_super("<I", 96, 0xFFFFFFFF)


@case("refused compression")
def compression(layout: Layout) -> None:
    """s_feature_incompat says compression, which no inode uses."""
    layout.set_super("<I", 96, layout.get("<I", 1024 + 96) | 0x1)


@case("read plain ok", "list dir ok")
def nonsense_that_nobody_uses(layout: Layout) -> None:
    """s_desc_size, s_first_meta_bg, s_log_groups_per_flex, s_min_extra_isize, s_def_hash_version: all bits."""
    for form, offset in (("<H", 254), ("<I", 260), ("<B", 372), ("<H", 348), ("<B", 252)):
        layout.set_super(form, offset, 0xFFFFFFFF >> {"<I": 0, "<H": 16, "<B": 24}[form])


@case("read plain ok", "writing create ENOSPC")
def reserved_blocks_and_free_counts(layout: Layout) -> None:
    """s_free_blocks_count and s_free_inodes_count 0, s_r_blocks_count all bits: f_summary_counts."""
    layout.set_super("<IIII", 4, layout.blocks_count, 0xFFFFFFFF, 0, 0)


@case("read plain ok", "writing create ok")
def free_counts_too_high(layout: Layout) -> None:
    """s_free_blocks_count and s_free_inodes_count all bits."""
    layout.set_super("<II", 12, 0xFFFFFFFF, 0xFFFFFFFF)


@case("read plain ok", "writing create ok")
def errors_say_panic(layout: Layout) -> None:
    """s_state with errors, s_errors panic."""
    layout.set_super("<HH", 58, 2, 3)


@case("read plain ok", "writing create ok")
def orphan_list_in_a_circle(layout: Layout) -> None:
    """s_last_orphan names an inode whose i_dtime names itself: f_badorphan."""
    ino = layout.number("single")
    layout.set_super("<I", 232, ino)
    layout.set_inode("single", "<I", 20, ino)


@case("read plain ok")
def orphan_list_outside(layout: Layout) -> None:
    """s_last_orphan past the last inode."""
    layout.set_super("<I", 232, layout.inodes_count + 10)


# Group descriptors and bitmaps.


@case("refused bg_inode_table")
def inode_table_outside(layout: Layout) -> None:
    """bg_inode_table of the first group past the end: f_badtable, f_illitable."""
    layout.set_group(0, "<I", 8, layout.blocks_count + 1)


@case("refused bg_inode_table")
def inode_table_zero(layout: Layout) -> None:
    """bg_inode_table of the first group 0: f_misstable."""
    layout.set_group(0, "<I", 8, 0)


@case("refused bg_inode_table")
def inode_table_of_another_group(layout: Layout) -> None:
    """bg_inode_table of the first group is the second's."""
    layout.set_group(0, "<I", 8, layout.get("<I", layout.descriptor(1) + 8))


@case("refused")
def inode_table_shifted(layout: Layout) -> None:
    """bg_inode_table of the first group two blocks later."""
    layout.set_group(0, "<I", 8, layout.get("<I", layout.descriptor(0) + 8) + 2)


@case("refused bg_block_bitmap")
def block_bitmap_outside(layout: Layout) -> None:
    """bg_block_bitmap of the first group outside: f_illbbitmap."""
    layout.set_group(0, "<I", 0, layout.blocks_count)


@case("refused bg_inode_bitmap")
def inode_bitmap_outside(layout: Layout) -> None:
    """bg_inode_bitmap of the first group outside: f_illibitmap."""
    layout.set_group(0, "<I", 4, 1)


@case("read plain ok", "writing create ok")
def block_bitmap_is_the_inode_table(layout: Layout) -> None:
    """bg_block_bitmap of the second group is a block of its inode table: f_dupfsblks."""
    layout.set_group(1, "<I", 0, layout.get("<I", layout.descriptor(1) + 8) + 1)


@case("read plain ok", "writing create ok")
def both_bitmaps_in_one_block(layout: Layout) -> None:
    """bg_inode_bitmap of the first group is its block bitmap."""
    layout.set_group(0, "<I", 4, layout.get("<I", layout.descriptor(0)))


@case("stat dir EUCLEAN", "read plain ok")
def a_whole_group_gone(layout: Layout) -> None:
    """The descriptor of the group that ``dir`` has its inode in is zeros."""
    group = (layout.number("dir") - 1) // layout.inodes_per_group
    assert group
    position = layout.descriptor(group)
    layout.data[position : position + 32] = bytes(32)


@case("read plain ok", "writing create EUCLEAN")
def free_counts_of_groups(layout: Layout) -> None:
    """The counts of every group: all bits."""
    for group in range(layout.groups):
        layout.set_group(group, "<HHH", 12, 0xFFFF, 0xFFFF, 0xFFFF)


@case("read plain ok", "read single ok", "writing unlink ok")
def everything_is_free(layout: Layout) -> None:
    """All bitmaps are zeros."""
    for group in range(layout.groups):
        for which in (0, 1):
            start = layout.bitmap(group, which)
            layout.data[start : start + layout.block_size] = bytes(layout.block_size)


@case("read plain ok", "writing create ENOSPC")
def nothing_is_free(layout: Layout) -> None:
    """All bitmaps are ones, the counts say otherwise: f_end-bitmap."""
    for group in range(layout.groups):
        for which in (0, 1):
            start = layout.bitmap(group, which)
            layout.data[start : start + layout.block_size] = b"\xff" * layout.block_size


@case("read plain ok", "writing unlink ok")
def blocks_of_a_file_are_free(layout: Layout) -> None:
    """The block bitmap says that a file's blocks are free."""
    for index in range(5):
        layout.flip_block_bit(layout.pointer_of("direct", index))


@case("read plain ok", "writing create ok")
def inode_of_a_file_is_free(layout: Layout) -> None:
    """The inode bitmap says that a file's inode is free."""
    for path in ("plain", "dir", "single"):
        layout.flip_inode_bit(layout.number(path))


# The root.


@case("refused")
def no_root(layout: Layout) -> None:
    """The root's inode is zeros: f_noroot."""
    position = layout.inode(ROOT)
    layout.data[position : position + layout.inode_size] = bytes(layout.inode_size)


@case("refused")
def root_is_a_file(layout: Layout) -> None:
    """The root's i_mode is a regular file's: f_badroot."""
    layout.put("<H", layout.inode(ROOT), stat.S_IFREG | 0o755)


@case("refused")
def root_has_no_links(layout: Layout) -> None:
    """The root's i_links_count is 0."""
    layout.put("<H", layout.inode(ROOT) + 26, 0)


@case("list / EUCLEAN")
def root_has_no_blocks(layout: Layout) -> None:
    """The root's block pointers are 0."""
    layout.put("<15I", layout.inode(ROOT) + 40, *[0] * 15)


@case("list / EUCLEAN", "missing / EUCLEAN")
def root_block_outside(layout: Layout) -> None:
    """The root's block is outside the file system: f_badroot2."""
    layout.put("<I", layout.inode(ROOT) + 40, layout.blocks_count)


@case("list / ok", "dots / ok")
def root_dotdot_elsewhere(layout: Layout) -> None:
    """``..`` of the root is another directory."""
    layout.put("<I", layout.block(ROOT) + 12, layout.number("dir"))

"""Named damage: what e2fsck's passes look for, as far as it can be in plain EXT2, each with what a mount has to answer.

The sorts are those of e2fsprogs' regression tests (tests/f_*: bad superblocks and descriptors, bitmaps, inodes, shared
and outside blocks, directories, htree, extended attributes, links, orphans) and the problems that e2fsck's five passes
name (e2fsck/problem.c). The images are made here.

What is expected is written as "operation path outcome", the path from the root, ``/`` for the root itself; "refused"
and a part of the message for what is not mounted; "writing operation outcome" for what has to come up while writing.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass

from tests.corruption.bases import DEEP, Layout
from tests.support.ext2_editor import ROOT


@dataclass(frozen=True)
class Case:
    """One damage and what has to come of it."""

    name: str
    what: str
    expected: tuple[str, ...]
    damage: Callable[[Layout], None]
    base: str
    is_dangerous: bool
    """Whether the kernel had better not be asked."""

    def make(self, bases: dict[str, bytes]) -> bytes:
        layout = Layout(bases[self.base])
        self.damage(layout)
        return bytes(layout.data)


CASES: dict[str, Case] = {}


def case(
    *expected: str, base: str = "1k", is_dangerous: bool = False
) -> Callable[[Callable[[Layout], None]], Callable[[Layout], None]]:
    """Enter a damage into ``CASES``, under its function's name."""

    def enter(damage: Callable[[Layout], None]) -> Callable[[Layout], None]:
        name = damage.__name__
        assert name not in CASES and damage.__doc__
        CASES[name] = Case(name, damage.__doc__.strip().rstrip("."), expected, damage, base, is_dangerous)
        return damage

    return enter


# The superblock.


@case("refused s_magic")
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


@case("refused inline_data")
def inline_data(layout: Layout) -> None:
    """s_feature_incompat says inline_data, which no inode uses."""
    layout.set_super("<I", 96, layout.get("<I", 1024 + 96) | 0x8000)


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


# Inodes.


@case("stat single EUCLEAN", "read plain ok", "list / ok")
def unknown_type(layout: Layout) -> None:
    """i_mode with a type that there is not: f_badinode, f_messy_inode."""
    layout.set_inode("single", "<H", 0, 0x3000 | 0o644)


@case("stat single EUCLEAN", "stat char EUCLEAN")
def zero_inode(layout: Layout) -> None:
    """Inodes of zeros that have names."""
    for path in ("single", "char"):
        position = layout.at(path)
        layout.data[position : position + layout.inode_size] = bytes(layout.inode_size)


@case("stat single EIO", "stat dir EIO", "read plain ok")
def extents_without_the_feature(layout: Layout) -> None:
    """EXT4_EXTENTS_FL in a file's and a directory's i_flags."""
    for path in ("single", "dir"):
        layout.set_inode(path, "<I", 32, 0x80000)


@case("read single ok", "list dir ok")
def imagic_and_unknown_flags(layout: Layout) -> None:
    """i_flags with everything that is not a feature's: f_imagic."""
    for path in ("single", "dir"):
        layout.set_inode(path, "<I", 32, 0xFFFFFFFF & ~(0x800 | 0x80000 | 0x200000 | 0x10000000))


@case("read single ok", "stat double EUCLEAN")
def deleted_but_named(layout: Layout) -> None:
    """i_dtime in a file with links (is read), and in one without."""
    for path, links in (("single", 1), ("double", 0)):
        layout.set_inode(path, "<I", 20, 1_500_000_000)
        layout.set_inode(path, "<H", 26, links)


@case("stat dir/first EUCLEAN", "read dir/second ok", "read dir/hard ok", "writing unlink ok")
def wrong_link_counts(layout: Layout) -> None:
    """i_links_count 0, 65535, and 1 where there are two names."""
    for path, links in (("dir/first", 0), ("dir/second", 65535), ("plain", 1), ("dir", 65535), ("hollow", 1)):
        layout.set_inode(path, "<H", 26, links)


@case("read single ok", "read double ok", "writing append EUCLEAN")
def wrong_block_counts(layout: Layout) -> None:
    """i_blocks 0 and all bits: f_dup, pass 1."""
    layout.set_inode("single", "<I", 28, 0)
    layout.set_inode("double", "<I", 28, 0xFFFFFFFF)


@case("read single EUCLEAN", "read direct ok", "stat plain EUCLEAN")
def sizes_of_files(layout: Layout) -> None:
    """i_size past the largest file, shorter than the blocks, and negative."""
    layout.set_inode("single", "<I", 108, 0x7FFFFFFF)
    layout.set_inode("direct", "<I", 4, 1)
    layout.set_inode("plain", "<I", 108, 0x80000000)


@case("stat plain EUCLEAN", "stat dir EUCLEAN", "read single ok")
def extra_isize(layout: Layout) -> None:
    """i_extra_isize past the inode, and one that is not a multiple of 4."""
    layout.set_inode("plain", "<H", 128, 0xFFFC)
    layout.set_inode("dir", "<H", 128, 33)


@case("stat plain ok", "list dir ok")
def times(layout: Layout) -> None:
    """Times with all bits: nanoseconds over a second, years past 2446."""
    for path in ("plain", "dir"):
        layout.set_inode(path, "<III", 8, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF)
        layout.set_inode(path, "<IIIII", 132, *[0xFFFFFFFF] * 5)


@case("stat fifo ok", "stat char ok", "stat block ok", "writing unlink ok")
def special_files_with_blocks(layout: Layout) -> None:
    """A FIFO and devices with i_blocks and pointers of somebody else."""
    for path in ("fifo", "char", "block"):
        layout.set_inode(path, "<I", 28, 64)
        for index in range(2, 15):
            layout.set_pointer(path, index, layout.pointer_of("direct"))


# Block maps.


@case("read direct EUCLEAN", "list dir EUCLEAN", "stat dir/first absent", "readlink slow EUCLEAN")
def blocks_outside(layout: Layout) -> None:
    """Pointers past the end, and to the superblock: f_overfsblks, f_16384_block."""
    layout.set_pointer("direct", 2, layout.blocks_count)
    layout.set_pointer("dir", 0, 0xFFFFFFFF)
    layout.set_pointer("slow", 0, 1)


@case("read single EUCLEAN", "read double EUCLEAN")
def indirect_blocks_outside(layout: Layout) -> None:
    """Pointers to indirect blocks past the end."""
    layout.set_pointer("single", 12, layout.blocks_count + 5)
    layout.set_pointer("double", 13, 0x80000000)


@case("writing write EUCLEAN", "writing truncate EUCLEAN", "read plain ok")
def blocks_in_metadata(layout: Layout) -> None:
    """Files that have bitmaps, descriptors and inode tables as their blocks: f_badbblks, f_dupfsblks."""
    for group in range(layout.groups):
        for field in range(3):
            layout.set_pointer("direct", 3 * group % 12 + field, layout.get("<I", layout.descriptor(group) + 4 * field))
    layout.set_inode("direct", "<I", 4, 12 * layout.block_size)
    layout.set_pointer("single", 12, layout.get("<I", layout.descriptor(0) + 8))
    layout.set_pointer("plain", 1, layout.first_data_block + 1)
    for path in ("plain",):
        layout.set_inode(path, "<I", 4, 4500)


@case("read direct ok", "read plain ok", "read single ok", "read double ok", "writing unlink ok")
def blocks_of_many(layout: Layout) -> None:
    """Two files share every block, others one, one file has a block twice: f_dup, f_dup2, f_dup3."""
    first, second = layout.at("direct") + 40, layout.at("dir/second") + 40
    layout.data[second : second + 60] = layout.data[first : first + 60]
    layout.set_inode("dir/second", "<I", 4, layout.block_size * 5)
    layout.set_pointer("plain", 1, layout.pointer_of("direct", 3))
    layout.set_pointer("single", 11, layout.pointer_of("single", 0))
    layout.set_pointer("double", 1, layout.pointer_of("single", 12))


@case("read direct ok", "list dir ok")
def file_and_directory_share(layout: Layout) -> None:
    """A file has a directory's block: writing to it makes names."""
    layout.set_pointer("direct", 0, layout.pointer_of("dir"))
    layout.set_pointer("acl", 0, layout.pointer_of("hollow"))


@case("read single ok", "read double ok", is_dangerous=True)
def cyclic_indirect_blocks(layout: Layout) -> None:
    """Indirect blocks that are their own children, at each depth, in a file of 4 GiB."""
    for path, index in (("single", 12), ("double", 13)):
        block = layout.data_of(path, index)
        number = block // layout.block_size
        layout.put(f"<{layout.block_size // 4}I", block, *[number] * (layout.block_size // 4))
        for root in (12, 13, 14):
            layout.set_pointer(path, root, number)
        layout.set_inode(path, "<I", 4, 0xFFFFFC00)


@case("read double ok", "writing truncate ok", "writing unlink ok", base="4k")
def a_map_with_a_block_here_and_there(layout: Layout) -> None:
    """No damage, but a file whose indirect blocks hold one pointer each, in every place: sparse over 4 GiB."""
    free = [number for number in range(1, layout.blocks_count) if layout.is_free(number)][-601:]
    top, *nodes = free[:301]
    for number in free:
        start = number * layout.block_size
        layout.data[start : start + layout.block_size] = bytes(layout.block_size)
        layout.flip_block_bit(number)
    layout.set_pointer("sparse", 13, top)
    for index, node in enumerate(nodes):
        layout.put("<I", top * layout.block_size + 4 * index, node)
        layout.put("<I", node * layout.block_size + 4 * (index % 1024), free[301 + index])
    layout.set_inode("sparse", "<I", 4, 0x50000000)
    layout.set_inode("sparse", "<I", 28, layout.get("<I", layout.at("sparse") + 28) + 601 * 8)
    layout.set_super("<I", 12, layout.get("<I", 1024 + 12) - 601)
    layout.set_group(0, "<H", 12, layout.get("<H", layout.descriptor(0) + 12) - 601)


# Directories.


@case("list dir EUCLEAN", "stat dir/first ok", "stat dir/third absent")
def rec_len_zero(layout: Layout) -> None:
    """rec_len 0 in the middle of a directory: f_baddir."""
    layout.put("<H", layout.entry("dir/second") + 4, 0)


@case("list dir EUCLEAN", "list acl EUCLEAN", "list hollow EUCLEAN")
def rec_len_wrong(layout: Layout) -> None:
    """rec_len past the block, not a multiple of 4, and below 12: f_baddir2, f_corrupt_dirent_tail."""
    layout.put("<H", layout.entry("dir/second") + 4, 4096)
    layout.put("<H", layout.entry("acl/file") + 4, 13)
    layout.put("<H", layout.data_of("hollow") + 12 + 4, 8)


@case("list dir EUCLEAN")
def name_len_wrong(layout: Layout) -> None:
    """A name longer than its entry."""
    layout.put("<B", layout.entry("dir/first") + 6, 255)


@case("list dir ok", "read dir/third ok", "stat dir/first absent")
def impossible_names(layout: Layout) -> None:
    """Names with a slash and with NUL: f_baddotdir, pass 2."""
    layout.put("<5s", layout.entry("dir/first") + 8, b"../ab")
    layout.put("<6s", layout.entry("dir/second") + 8, b"se\0ond")


@case("list dir ok", "read dir/third ok")
def empty_name_and_dots(layout: Layout) -> None:
    """An empty name, a second ``.``, a second ``..``: f_dupdot."""
    first, second, third = (layout.entry(f"dir/{name}") for name in ("first", "second", "hard"))
    layout.put("<B", first + 6, 0)
    layout.put("<B1x1s", second + 6, 1, b".")
    layout.put("<B1x2s", third + 6, 2, b"..")


@case("list dir ok", "list / ok", "writing unlink ok")
def names_twice(layout: Layout) -> None:
    """A name twice in a directory, for two inodes: f_dup_de."""
    layout.put("<B1x5s", layout.entry("dir/second") + 6, 5, b"first")
    layout.put("<B1x5s", layout.entry("single") + 6, 5, b"plain")


@case("read dir/first ok", "list hollow ok", "readlink fast ok")
def wrong_file_types(layout: Layout) -> None:
    """file_type says something else than the inode: f_filetype."""
    for path, kind in (("dir/first", 2), ("hollow", 1), ("fast", 1), ("plain", 200), ("fifo", 7)):
        layout.put("<B", layout.entry(path) + 7, kind)


@case(
    "stat dir/first EUCLEAN", "stat dir/second EUCLEAN", "stat dir/third EUCLEAN", "stat plain EUCLEAN", "list dir ok"
)
def entries_to_what_is_not_there(layout: Layout) -> None:
    """Entries to inodes past the last, to reserved and free ones, and to the root: f_reserved_inode, pass 2."""
    for path, number in (
        ("dir/first", layout.inodes_count + 1),
        ("dir/second", 7),
        ("dir/third", layout.inodes_count - 1),
        ("plain", ROOT),
    ):
        layout.put("<I", layout.entry(path), number)


@case("stat dir/first EUCLEAN", "stat dir/second EUCLEAN")
def entries_to_inode_one(layout: Layout) -> None:
    """Entries to the inode of bad blocks, which FUSE calls the root: f_bbfile."""
    for path in ("dir/first", "dir/second"):
        layout.put("<IH", layout.entry(path), 1, layout.get("<H", layout.entry(path) + 4))


@case("list dir ok", "stat dir/first ELOOP", "read dir/third ok")
def directory_in_itself(layout: Layout) -> None:
    """A directory holds itself, under a name: f_selfloop."""
    layout.put("<I", layout.entry("dir/first"), layout.number("dir"))


@case(f"stat {DEEP}/bottom ELOOP")
def directories_in_a_loop(layout: Layout) -> None:
    """At the end of six directories is the second again: f_recnect_bad, pass 3."""
    layout.put("<I", layout.entry(f"{DEEP}/bottom"), layout.number("a/b"))


@case("list / ok", "list hollow ok")
def directory_is_its_own_parent(layout: Layout) -> None:
    """``..`` is the directory itself: f_lpf, pass 3."""
    for path in ("hollow", "a/b"):
        layout.put("<I", layout.data_of(path) + 12, layout.number(path))


@case("list dir ok", "list hollow ok", "list a/b ok")
def dotdot_elsewhere(layout: Layout) -> None:
    """``..`` is another directory, a file, a free inode, nothing: f_orphan_dotdot_ft."""
    for path, number in (
        ("dir", layout.number("htree")),
        ("hollow", layout.number("plain")),
        ("a/b", layout.inodes_count - 1),
        ("acl", 0),
    ):
        layout.put("<I", layout.data_of(path) + 12, number)


@case("read dir/first ok", "list hollow EUCLEAN")
def no_dots(layout: Layout) -> None:
    """A directory whose first entries are other names, and one of zeros: f_noexist, f_baddotdir."""
    layout.put("<B1x1s", layout.data_of("acl") + 6, 1, b"x")
    layout.put("<B1x2s", layout.data_of("acl") + 12 + 6, 2, b"yy")
    start = layout.data_of("hollow")
    layout.data[start : start + layout.block_size] = bytes(layout.block_size)


@case("list dir ok", "writing rmdir ok")
def directory_with_two_names(layout: Layout) -> None:
    """A hard link to a directory: f_dir_hardlink, pass 3."""
    layout.put("<I", layout.entry("dir/first"), layout.number("hollow"))
    layout.put("<B", layout.entry("dir/first") + 7, 2)


@case("list dir EUCLEAN", "list acl EUCLEAN", "list hollow EUCLEAN", "list a EUCLEAN")
def sizes_of_directories(layout: Layout) -> None:
    """i_size 0, one byte more, half a gigabyte, all bits: f_zero_dir, f_badinode."""
    for path, size in (("dir", 0), ("acl", 1025), ("hollow", 1 << 29), ("a", 0xFFFFFFFF)):
        layout.set_inode(path, "<I", 4, size)


@case("list lost+found EUCLEAN", "list htree EUCLEAN")
def holes_in_directories(layout: Layout) -> None:
    """A directory's block is a hole: f_holedir, f_holedir2."""
    layout.set_pointer("lost+found", 3, 0)
    layout.set_pointer("htree", 2, 0)


@case("list htree EUCLEAN", "missing htree EUCLEAN")
def directory_has_a_block_twice(layout: Layout) -> None:
    """All pointers of a directory are one block."""
    layout.put("<12I", layout.at("htree") + 40, *[layout.pointer_of("htree", 1)] * 12)


@case("list lost+found EUCLEAN", is_dangerous=True)
def directory_with_a_cyclic_map(layout: Layout) -> None:
    """A directory whose indirect block is its own child."""
    number = layout.pointer_of("single", 12)
    layout.put(f"<{layout.block_size // 4}I", number * layout.block_size, *[number] * (layout.block_size // 4))
    layout.set_pointer("lost+found", 12, number)
    layout.set_inode("lost+found", "<I", 4, 200 * layout.block_size)


@case("stat lost+found absent", "list / ok")
def no_lost_and_found(layout: Layout) -> None:
    """lost+found has no entry: f_lpf2."""
    layout.put("<I", layout.entry("lost+found"), 0)


# The hash index of a directory. It is not used here: its blocks look like empty entries.


@case("list htree ok", "missing htree ENOENT")
def htree_root_broken(layout: Layout) -> None:
    """dx_root: hash version, info length, depth, limit and count of all bits: f_h_badroot."""
    layout.put("<BBBB", layout.data_of("htree") + 28, 0xFF, 0xFF, 0xFF, 0xFF)
    layout.put("<HH", layout.data_of("htree") + 32, 0xFFFF, 0xFFFF)


@case("list htree ok", "missing htree ENOENT", is_dangerous=True)
def htree_in_a_circle(layout: Layout) -> None:
    """dx_root has depth 1, and all its entries are itself: f_h_badnode."""
    start = layout.data_of("htree")
    layout.put("<B", start + 30, 1)
    for index in range(layout.get("<H", start + 34)):
        layout.put("<I", start + 36 + 8 * index, 0)


@case("list htree ok", "missing htree ENOENT")
def htree_leaves_outside(layout: Layout) -> None:
    """dx entries past the end of the directory, and in the wrong order: f_h_unsorted."""
    start = layout.data_of("htree")
    layout.put("<I", start + 36, 0x00FFFFFF)
    layout.put("<I", start + 40, 0xFFFFFFFF)
    layout.put("<I", start + 44, 1)


@case("list dir ok", "read dir/third ok", "missing dir ENOENT")
def index_flag_without_an_index(layout: Layout) -> None:
    """EXT2_INDEX_FL in a directory of one block: f_h_reindex."""
    layout.set_inode("dir", "<I", 32, 0x1000)


# Symbolic links.


@case("readlink fast EUCLEAN", "readlink slow EUCLEAN")
def symlinks_of_64_kib(layout: Layout) -> None:
    """i_size 65536, fast and slow: f_badsymlinks."""
    for path in ("fast", "slow"):
        layout.set_inode(path, "<I", 4, 65536)


@case("readlink fast EUCLEAN", "readlink slow EUCLEAN", base="4k")
def empty_symlinks(layout: Layout) -> None:
    """i_size 0, fast and slow: f_badsymlinks2."""
    for path in ("fast", "slow"):
        layout.set_inode(path, "<I", 4, 0)


@case("readlink slow ok", "follow slow ENAMETOOLONG", "readlink fast ok")
def symlinks_without_an_end(layout: Layout) -> None:
    """A target that fills its block but for a byte, with no NUL; one that fills i_block."""
    start = layout.data_of("slow")
    layout.data[start : start + layout.block_size] = b"x" * layout.block_size
    layout.set_inode("slow", "<I", 4, layout.block_size - 1)
    layout.set_inode("fast", "<60s", 40, b"/" * 60)  # type: ignore[arg-type]
    layout.set_inode("fast", "<I", 4, 59)


@case("readlink fast EUCLEAN")
def fast_symlink_with_blocks(layout: Layout) -> None:
    """i_blocks makes a fast symlink a slow one: its target is taken for pointers."""
    layout.set_inode("fast", "<I", 28, 2)


@case("readlink slow ok")
def slow_symlink_without_blocks(layout: Layout) -> None:
    """i_blocks 0 makes a slow symlink a fast one: its pointers are taken for a target."""
    layout.set_inode("slow", "<I", 28, 0)
    layout.set_inode("slow", "<I", 4, 59)


@case("readlink slow EUCLEAN")
def slow_symlink_in_a_hole(layout: Layout) -> None:
    """A slow symlink without a block."""
    layout.set_pointer("slow", 0, 0)


# Extended attributes.


@case("xattr shared-one EUCLEAN", "xattr shared-two EUCLEAN", "read shared-one ok")
def xattr_magic(layout: Layout) -> None:
    """h_magic of a shared attribute block is wrong."""
    layout.put("<I", layout.xattr_block("shared-one"), 0xEA020001)


@case("xattr shared-one ok", "writing removexattr ok", "writing unlink ok")
def xattr_refcount_too_low(layout: Layout) -> None:
    """h_refcount 1 for two inodes: whoever goes first frees it: f_special_ea."""
    layout.put("<I", layout.xattr_block("shared-one") + 4, 1)


@case("xattr shared-one ok", "xattr attributes ok", "writing unlink ok")
def xattr_refcount_zero_and_huge(layout: Layout) -> None:
    """h_refcount 0 and all bits."""
    layout.put("<I", layout.xattr_block("shared-one") + 4, 0)
    layout.put("<I", layout.xattr_block("attributes") + 4, 0xFFFFFFFF)


@case("xattr shared-one EUCLEAN", base="4k")
def xattr_blocks_count(layout: Layout) -> None:
    """h_blocks 2."""
    layout.put("<I", layout.xattr_block("shared-one") + 8, 2)


@case("xattr shared-one ok")
def xattr_hashes(layout: Layout) -> None:
    """h_hash and e_hash wrong: f_ea_value_crash."""
    layout.put("<I", layout.xattr_block("shared-one") + 12, 0x12345678)
    layout.put("<I", layout.xattr_block("shared-one") + 32 + 12, 0x12345678)


@case("xattr shared-one EUCLEAN", "xattr attributes EUCLEAN")
def xattr_values_outside(layout: Layout) -> None:
    """e_value_offs and e_value_size past the block: f_boundscheck."""
    layout.put("<H", layout.xattr_block("shared-one") + 34, 0xFFF0)
    layout.put("<I", layout.xattr_block("attributes") + 40, 0xFFFFFFFF)


@case("xattr shared-one EUCLEAN")
def xattr_value_in_an_inode(layout: Layout) -> None:
    """e_value_inum, which is for ea_inode."""
    layout.put("<I", layout.xattr_block("shared-one") + 36, 20)


@case("xattr shared-one EUCLEAN", "read shared-one ok")
def xattr_value_over_the_entries(layout: Layout) -> None:
    """A value at the beginning of the block, over its own header."""
    layout.put("<HII", layout.xattr_block("shared-one") + 34, 0, 0, 100)


@case("xattr shared-one ok", "xattr attributes ok")
def xattr_names(layout: Layout) -> None:
    """A name index that there is not, and a name with NUL: f_unsorted_EAs."""
    layout.put("<B", layout.xattr_block("shared-one") + 33, 99)
    layout.put("<B", layout.xattr_block("attributes") + 32 + 16 + 1, 0)


@case("xattr attributes EUCLEAN", "read attributes ok")
def xattr_in_the_body_outside(layout: Layout) -> None:
    """e_value_offs past the inode: f_valid_ea_in_inode, f_write_ea_toobig."""
    layout.set_inode("attributes", "<H", 128 + 32 + 4 + 2, 0x7FFC)


@case("xattr plain EUCLEAN", "xattr dir EUCLEAN", "xattr char EUCLEAN", "read plain ok")
def xattr_block_is_something_else(layout: Layout) -> None:
    """i_file_acl is a file's data, a directory's block, and the inode table."""
    layout.set_inode("plain", "<I", 104, layout.pointer_of("direct"))
    layout.set_inode("dir", "<I", 104, layout.pointer_of("hollow"))
    layout.set_inode("char", "<I", 104, layout.get("<I", layout.descriptor(0) + 8))


@case("xattr plain EUCLEAN", "xattr dir EUCLEAN", "xattr fast EUCLEAN")
def xattr_block_outside(layout: Layout) -> None:
    """i_file_acl past the end, in the superblock, of all bits."""
    layout.set_inode("plain", "<I", 104, layout.blocks_count)
    layout.set_inode("dir", "<I", 104, 1)
    layout.set_inode("fast", "<I", 104, 0xFFFFFFFF)


@case("xattr shared-one ok", "read shared-one ok", "writing unlink ok")
def xattr_block_is_data_too(layout: Layout) -> None:
    """The attribute block is the data of the same file, and of another: f_dup4."""
    number = layout.get("<I", layout.at("shared-one") + 104)
    layout.set_pointer("shared-one", 0, number)
    layout.set_pointer("direct", 1, number)


@case("xattr acl/file EUCLEAN", "read acl/file ok", base="small-inodes")
def acl_of_a_wrong_version(layout: Layout) -> None:
    """An ACL whose version is 2."""
    block = layout.xattr_block("acl/file")
    layout.put("<I", block + layout.get("<H", block + 34), 2)


@case("xattr acl EUCLEAN", "list acl ok", "writing create EUCLEAN", base="small-inodes")
def default_acl_with_an_unknown_tag(layout: Layout) -> None:
    """A default ACL with a tag that there is not: nothing can be made in its directory."""
    block = layout.xattr_block("acl")
    layout.put("<H", block + layout.get("<H", block + 34) + 4, 0x7777)

"""Named damage to directories."""

from __future__ import annotations

from tests.corruption.bases import DEEP, Layout
from tests.corruption.case import case
from tests.support.ext2_editor import ROOT

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

"""Named damage to inodes, block maps, symbolic links and extended attributes."""

from __future__ import annotations

from tests.corruption.bases import Layout
from tests.corruption.case import case

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
    """Times with all bits set: nanoseconds over a second, years after 2446."""
    for path in ("plain", "dir"):
        layout.set_inode(path, "<III", 8, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF)
        layout.set_inode(path, "<IIIII", 132, *[0xFFFFFFFF] * 5)


@case("stat fifo ok", "stat char ok", "stat block ok", "writing unlink ok")
def special_files_with_blocks(layout: Layout) -> None:
    """A FIFO and devices with i_blocks and another file's pointers."""
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
    """h_refcount 1 for two inodes: the first to go frees the block: f_special_ea."""
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

"""Feature flags: which ones a file system uses, and which of them mystfuse has.

Names and bits: e2fsprogs, lib/e2p/feature.c and lib/ext2fs/ext2_fs.h.
"""

from __future__ import annotations

from mystfuse.errors import UnsupportedFeature

COMPAT = {
    0x0001: "dir_prealloc",
    0x0002: "imagic_inodes",
    0x0004: "has_journal",
    0x0008: "ext_attr",
    0x0010: "resize_inode",
    0x0020: "dir_index",
    0x0040: "lazy_bg",
    0x0080: "exclude_inode",
    0x0100: "snapshot_bitmap",
    0x0200: "sparse_super2",
    0x0400: "fast_commit",
    0x0800: "stable_inodes",
    0x1000: "orphan_file",
}
INCOMPAT = {
    0x00001: "compression",
    0x00002: "filetype",
    0x00004: "needs_recovery",
    0x00008: "journal_dev",
    0x00010: "meta_bg",
    0x00040: "extent",
    0x00080: "64bit",
    0x00100: "mmp",
    0x00200: "flex_bg",
    0x00400: "ea_inode",
    0x01000: "dirdata",
    0x02000: "metadata_csum_seed",
    0x04000: "large_dir",
    0x08000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
RO_COMPAT = {
    0x00001: "sparse_super",
    0x00002: "large_file",
    0x00004: "btree_dir",
    0x00008: "huge_file",
    0x00010: "uninit_bg",
    0x00020: "dir_nlink",
    0x00040: "extra_isize",
    0x00080: "has_snapshot",
    0x00100: "quota",
    0x00200: "bigalloc",
    0x00400: "metadata_csum",
    0x00800: "replica",
    0x01000: "read-only",
    0x02000: "project",
    0x04000: "shared_blocks",
    0x08000: "verity",
    0x10000: "orphan_present",
}

EXT2 = frozenset(
    {
        "has_journal",
        "ext_attr",
        "resize_inode",
        "dir_index",
        "filetype",
        "needs_recovery",
        "sparse_super",
        "large_file",
    }
)
"""Those of ext2 and ext3. With needs_recovery a journal is replayed; a clean one is a file like any other."""

_OF_EXT4 = frozenset(
    {
        "sparse_super2", "fast_commit", "stable_inodes", "orphan_file",
        "meta_bg", "extent", "64bit", "mmp", "flex_bg", "ea_inode", "metadata_csum_seed", "large_dir", "inline_data",
        "encrypt", "casefold",
        "huge_file", "uninit_bg", "dir_nlink", "extra_isize", "quota", "bigalloc", "metadata_csum", "read-only",
        "project", "shared_blocks", "verity", "orphan_present",
    }
)  # fmt: skip
SUPPORTED = EXT2 | _OF_EXT4
"""Those that are read."""
WRITABLE = EXT2 | {
    "64bit",
    "casefold",
    "dir_nlink",
    "ea_inode",
    "encrypt",
    "extent",
    "extra_isize",
    "fast_commit",
    "flex_bg",
    "huge_file",
    "inline_data",
    "large_dir",
    "meta_bg",
    "metadata_csum",
    "metadata_csum_seed",
    "mmp",
    "orphan_file",
    "orphan_present",
    "project",
    "sparse_super2",
    "stable_inodes",
    "uninit_bg",
    "verity",
}
"""Those that do not keep a file system from being written to."""


def feature_names(compat: int, incompat: int, ro_compat: int) -> frozenset[str]:
    """The names of all features whose bits are set; an unknown bit is named like e2fsprogs does (``FEATURE_I17``)."""
    names: set[str] = set()
    for known, letter, mask in ((COMPAT, "C", compat), (INCOMPAT, "I", incompat), (RO_COMPAT, "R", ro_compat)):
        for bit in range(32):
            if mask >> bit & 1:
                names.add(known.get(1 << bit, f"FEATURE_{letter}{bit}"))
    return frozenset(names)


def check_supported(names: frozenset[str]) -> None:
    """Raise UnsupportedFeature, naming them, if there are features that mystfuse cannot read."""
    if unsupported := sorted(names - SUPPORTED):
        raise UnsupportedFeature(
            f"the file system uses {', '.join(unsupported)}, which mystfuse does not have "
            "(mke2fs -t ext2 makes one that it reads)"
        )


def of_ext4(names: frozenset[str]) -> frozenset[str]:
    """The features that neither ext2 nor ext3 has."""
    return names - EXT2


def filesystem_type(names: frozenset[str]) -> str:
    """ext2, ext3 or ext4: the first that has all these features."""
    if of_ext4(names):
        return "ext4"
    return "ext3" if "has_journal" in names else "ext2"


def only_for_reading(names: frozenset[str]) -> list[str]:
    """The features of which mystfuse can only read what they make, in order."""
    return sorted(names - WRITABLE)

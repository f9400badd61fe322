"""Images that lack something, and what could become one."""

from __future__ import annotations

from tests.support.commands import run
from tests.support.other_files.makers import (
    MIB,
    OtherFile,
    cut,
    cut_ext2,
    detached_header,
    encrypted_image,
    ext,
    formatted,
    hash_tree_alone,
    lengthened,
    luks,
    with_broken_tree,
    with_full_journal,
    with_veritysetup,
)

IMAGES = {
    "ext2": OtherFile(
        "ext2",
        "an EXT2 file system (label lbl, 8 MiB) without a hash tree",
        ext("ext2"),
        "ext2",
        "ext2",
        leads_to="info",
    ),
    "ext2, 1 KiB": OtherFile(
        "ext2",
        "without a hash tree",
        lambda path: run("mke2fs", "-q", "-b", "1024", path, "5001"),
        "ext2",
        "ext2",
        leads_to="info",
    ),
    "ext3": OtherFile(
        "ext3",
        "an ext3 file system (label lbl, 8 MiB) without a hash tree",
        ext("ext3"),
        "ext3",
        "ext3",
        leads_to="info",
    ),
    "ext4": OtherFile(
        "ext4",
        "an ext4 file system (label lbl, 8 MiB) without a hash tree",
        ext("ext4"),
        "ext4",
        "ext4",
        leads_to="info",
    ),
    "full journal": OtherFile(
        "ext3", "whose journal has changes", with_full_journal, "needs journal recovery", "ext3", leads_to="info"
    ),
    "external journal": OtherFile(
        "jbd",
        "an external journal",
        formatted(8 * MIB, "mke2fs", "-q", "-O", "journal_dev"),
        "ext2 filesystem data",
        "jbd",
    ),
    "cut ext2": OtherFile("ext2", f"truncated: at least {3 * MIB} bytes are missing", cut_ext2, "ext2", "ext2"),
    "hash tree alone": OtherFile("verity-hash", "the hash tree of dm-verity", hash_tree_alone, "", "DM_verity_hash"),
    "veritysetup": OtherFile(
        "verity-image",
        f"with a hash tree of veritysetup's at byte {8 * MIB}",
        with_veritysetup(ext("ext2")),
        "ext2",
        "ext2",
    ),
    "veritysetup, ext4": OtherFile(
        "verity-image",
        f"with a hash tree of veritysetup's at byte {8 * MIB}",
        with_veritysetup(ext("ext4")),
        "ext4",
        "ext4",
    ),
    "luks1": OtherFile(
        "luks",
        "a LUKS1 container (aes-xts-plain64, 1 key slot) without",
        luks(1),
        "LUKS encrypted file, ver 1",
        "crypto_LUKS",
        leads_to="info",
    ),
    "luks2": OtherFile(
        "luks",
        "a LUKS2 container (aes-xts-plain64, 1 key slot) without",
        luks(2),
        "LUKS encrypted file, ver 2",
        "crypto_LUKS",
        leads_to="info",
    ),
    "luks, other cipher": OtherFile(
        "luks",
        "that mystfuse does not open (LUKS cipher 'aes-cbc-null'",
        luks(1, "--cipher=aes-cbc-null", "--key-size=256"),
        "LUKS",
        "crypto_LUKS",
    ),
    "luks1 header": OtherFile(
        "luks-header",
        "a detached LUKS1 header (aes-xts-plain64, 1 key slot)",
        detached_header(1),
        "LUKS",
        "crypto_LUKS",
    ),
    "luks2 header": OtherFile(
        "luks-header",
        "a detached LUKS2 header (aes-xts-plain64, 1 key slot)",
        detached_header(2),
        "LUKS",
        "crypto_LUKS",
    ),
    "veritysetup, luks": OtherFile(
        "verity-image",
        f"with a hash tree of veritysetup's at byte {20 * MIB}",
        with_veritysetup(luks(2)),
        "LUKS",
        "crypto_LUKS",
    ),
    "cut image": OtherFile(
        "truncated-image", "the signature block (fssig), its last 4096 bytes, is missing", cut(4096), "ext2", "ext2"
    ),
    "image cut in the fssig": OtherFile(
        "truncated-image", "a truncated image: 1 bytes are missing", cut(1), "ext2", "ext2"
    ),
    "image cut in the tree": OtherFile(
        "truncated-image", "at least 5904 bytes are missing", cut(10_000), "ext2", "ext2"
    ),
    "cut encrypted image": OtherFile(
        "truncated-image",
        "the signature block (fssig), its last 4096 bytes",
        cut(4096, encrypted_image),
        "LUKS",
        "crypto_LUKS",
    ),
    "lengthened image": OtherFile(
        "padded-image",
        f"an image with {5 * MIB + 77} bytes more behind its end",
        lengthened,
        "ext2",
        "ext2",
        leads_to="info",
    ),
    "broken tree": OtherFile("image", "an image that is damaged", with_broken_tree, "ext2", "ext2"),
}

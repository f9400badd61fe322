"""File systems that we do not read."""

from __future__ import annotations

from tests.support.other_files.makers import MIB, OtherFile, formatted, packed

FILE_SYSTEMS = {
    "squashfs": OtherFile(
        "squashfs",
        "(xz, ",
        packed("mksquashfs", ".", "TARGET", "-quiet", "-no-progress", "-comp", "xz"),
        "Squashfs",
        "squashfs",
        leads_to="image",
    ),
    "erofs": OtherFile(
        "erofs", "an erofs file system", packed("mkfs.erofs", "TARGET", "."), "EROFS", "erofs", leads_to="image"
    ),
    "xfs": OtherFile(
        "xfs", "an XFS file system (label lbl", formatted(320 * MIB, "mkfs.xfs", "-q", "-L", "lbl"), "XFS", "xfs"
    ),
    "btrfs": OtherFile(
        "btrfs",
        "a btrfs file system (label lbl",
        formatted(128 * MIB, "mkfs.btrfs", "-q", "-L", "lbl"),
        "BTRFS",
        "btrfs",
    ),
    "f2fs": OtherFile(
        "f2fs", "an F2FS file system (label lbl", formatted(64 * MIB, "mkfs.f2fs", "-q", "-l", "lbl"), "F2FS", "f2fs"
    ),
    "fat16": OtherFile(
        "fat",
        "a FAT16 file system (label LBL",
        formatted(16 * MIB, "mkfs.vfat", "-F", "16", "-n", "LBL"),
        "FAT (16 bit)",
        "vfat",
    ),
    "fat32": OtherFile(
        "fat",
        "a FAT32 file system (label LBL",
        formatted(64 * MIB, "mkfs.vfat", "-F", "32", "-n", "LBL"),
        "FAT (32 bit)",
        "vfat",
    ),
    "exfat": OtherFile(
        "exfat", "an exFAT file system", formatted(8 * MIB, "mkfs.exfat"), "DOS/MBR boot sector", "exfat"
    ),
    "ntfs": OtherFile("ntfs", "an NTFS file system", formatted(8 * MIB, "mkntfs", "-Q", "-F", "-q"), "NTFS", "ntfs"),
    "iso": OtherFile(
        "iso9660",
        "an ISO 9660 image (label LBL",
        packed("xorriso", "-as", "mkisofs", "-quiet", "-V", "LBL", "-R", "-o", "TARGET", "."),
        "ISO 9660",
        "iso9660",
        leads_to="image",
    ),
    "cramfs": OtherFile(
        "cramfs",
        "a cramfs file system (label lbl",
        packed("mkfs.cramfs", "-n", "lbl", ".", "TARGET"),
        "Linux Compressed ROM",
        "cramfs",
        leads_to="image",
    ),
    "romfs": OtherFile(
        "romfs",
        "a romfs file system (label lbl",
        packed("genromfs", "-V", "lbl", "-d", ".", "-f", "TARGET"),
        "romfs",
        "romfs",
    ),
    "swap": OtherFile("swap", "swap space", formatted(MIB, "mkswap", "-L", "lbl"), "swap file", "swap"),
}

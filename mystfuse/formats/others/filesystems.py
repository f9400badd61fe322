"""Other file systems than ext2, by their superblocks.

Sources: the kernel's headers named at each function; for FAT and NTFS, Microsoft's fatgen103 and the NTFS-3G headers;
for the names of fields, util-linux' libblkid, which is the tests' judge.
"""

from __future__ import annotations

from collections.abc import Callable

from mystfuse.formats.others.kind import (
    MAKE_IMAGE,
    Kind,
    Sample,
    facts_of,
    in_brackets,
    text_of,
    uuid_of,
)
from mystfuse.system.units import describe_bytes

_ADVICE = "make an image of what is in it"
LOOP_MOUNT = f"mkdir tree && mount -o ro,loop {{file}} tree && {MAKE_IMAGE} && umount tree"
"""For root: the kernel reads most file systems."""
AS_ROOT = f"{_ADVICE}, as root"


def _kind(name: str, title: str, *words: str, command: str = LOOP_MOUNT, **facts: str | int) -> Kind:
    said = in_brackets(str(facts.get("label", "")) and f"label {facts['label']}", *words)
    advice = AS_ROOT if command == LOOP_MOUNT else _ADVICE
    return Kind(name, f"{title}{said}", advice, (command,), facts_of(**facts))


def squashfs(sample: Sample) -> Kind | None:
    """fs/squashfs/squashfs_fs.h, struct squashfs_super_block."""
    if sample.start[:4] not in (b"hsqs", b"sqsh"):
        return None
    if sample.start[:4] == b"sqsh":
        return Kind("squashfs", "a squashfs file system of the big-endian kind, which nobody reads any more")
    compressions = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
    used = sample.number(40, 8)
    facts: dict[str, str | int] = {
        "bytes": used,
        "block_size": sample.number(12, 4),
        "inodes": sample.number(4, 4),
        "compression": compressions.get(sample.number(20, 2), "unknown"),
        "version": f"{sample.number(28, 2)}.{sample.number(30, 2)}",
    }
    words = [str(facts["compression"]), describe_bytes(used)]
    if used > sample.size:
        words.append(f"truncated: {used - sample.size} bytes are missing")
    return _kind(
        "squashfs", "a squashfs file system", *words, command=f"unsquashfs -d tree {{file}} && {MAKE_IMAGE}", **facts
    )


def erofs(sample: Sample) -> Kind | None:
    """fs/erofs/erofs_fs.h, struct erofs_super_block, at byte 1024."""
    if sample.number(1024, 4) != 0xE0F5E1E2:
        return None
    facts: dict[str, str | int] = {
        "label": text_of(sample.start[1088:1104]),
        "uuid": uuid_of(sample.start[1072:1088]),
        "block_size": 1 << min(sample.number(1036, 1), 31),
        "inodes": sample.number(1040, 8),
    }
    return _kind(
        "erofs", "an erofs file system", command=f"fsck.erofs --extract=tree {{file}} && {MAKE_IMAGE}", **facts
    )


def xfs(sample: Sample) -> Kind | None:
    """fs/xfs/libxfs/xfs_format.h, struct xfs_dsb, big-endian."""
    if sample.start[:4] != b"XFSB":
        return None
    block_size = sample.number(4, 4, "big")
    size = block_size * sample.number(8, 8, "big")
    return _kind(
        "xfs",
        "an XFS file system",
        describe_bytes(size),
        label=text_of(sample.start[108:120]),
        uuid=uuid_of(sample.start[32:48]),
        bytes=size,
        block_size=block_size,
    )


def btrfs(sample: Sample) -> Kind | None:
    """fs/btrfs/fs.h, struct btrfs_super_block, at byte 65536."""
    block = sample.start[0x10000:0x11000]
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    size = int.from_bytes(block[0x70:0x78], "little")
    return _kind(
        "btrfs",
        "a btrfs file system",
        describe_bytes(size),
        label=text_of(block[0x12B:0x22B]),
        uuid=uuid_of(block[32:48]),
        bytes=size,
    )


def f2fs(sample: Sample) -> Kind | None:
    """include/linux/f2fs_fs.h, struct f2fs_super_block, at byte 1024; its label is in UTF-16."""
    block = sample.start[1024:3072]
    if block[:4] != (0xF2F52010).to_bytes(4, "little"):
        return None
    label = block[0x7C : 0x7C + 1024].decode("utf-16-le", "replace").split("\0", 1)[0]
    return _kind("f2fs", "an F2FS file system", label=label, uuid=uuid_of(block[0x6C:0x7C]))


def fat(sample: Sample) -> Kind | None:
    """FAT and exFAT boot sectors (fatgen103; fs/exfat/exfat_raw.h, struct boot_sector)."""
    start = sample.start
    if start[510:512] != b"\x55\xaa":
        return None
    if start[3:11] == b"EXFAT   ":
        size = sample.number(72, 8) << min(sample.number(108, 1), 12)
        return _kind("exfat", "an exFAT file system", describe_bytes(size), bytes=size)
    if start[0] not in (0xEB, 0xE9):
        return None
    for name, at, label in (("FAT32", 0x52, 0x47), ("FAT16", 0x36, 0x2B), ("FAT12", 0x36, 0x2B)):
        if start[at : at + 5] == name.encode():
            volume = text_of(start[label : label + 11])
            return _kind("fat", f"a {name} file system", label="" if volume == "NO NAME" else volume, version=name)
    return None


def ntfs(sample: Sample) -> Kind | None:
    """NTFS-3G's layout.h, NTFS_BOOT_SECTOR."""
    if sample.start[3:11] != b"NTFS    ":
        return None
    size = sample.number(40, 8) * sample.number(11, 2)
    return _kind("ntfs", "an NTFS file system", describe_bytes(size), bytes=size)


def iso9660(sample: Sample) -> Kind | None:
    """ECMA-119, section 8.4, the primary volume descriptor; ECMA-167 (UDF) begins in the same place."""
    block = sample.start[0x8000:0x8800]
    if block[1:6] in (b"BEA01", b"NSR02", b"NSR03"):
        return _kind("udf", "a UDF file system")
    if block[1:6] != b"CD001":
        return None
    size = int.from_bytes(block[80:84], "little") * 2048
    words = [describe_bytes(size)]
    if size > sample.size:
        words.append(f"truncated: {size - sample.size} bytes are missing")
    return _kind(
        "iso9660",
        "an ISO 9660 image",
        *words,
        command=f"xorriso -osirrox on -indev {{file}} -extract / tree && chmod -R u+w tree && {MAKE_IMAGE}",
        label=text_of(block[40:72]),
        bytes=size,
    )


def cramfs(sample: Sample) -> Kind | None:
    """include/uapi/linux/cramfs_fs.h, struct cramfs_super; it may be behind a boot block of 512 bytes."""
    for offset in (0, 512):
        for order in ("little", "big"):
            if sample.number(offset, 4, order) == 0x28CD3D45 and sample.start[offset + 16 : offset + 32].startswith(
                b"Compressed ROMFS"
            ):
                size = sample.number(offset + 4, 4, order)
                return _kind(
                    "cramfs",
                    "a cramfs file system",
                    describe_bytes(size),
                    command=f"fsck.cramfs --extract=tree {{file}} && {MAKE_IMAGE}",
                    label=text_of(sample.start[offset + 48 : offset + 64]),
                    bytes=size,
                )
    return None


def romfs(sample: Sample) -> Kind | None:
    """include/uapi/linux/romfs_fs.h, struct romfs_super_block."""
    if sample.start[:8] != b"-rom1fs-":
        return None
    size = sample.number(8, 4, "big")
    return _kind("romfs", "a romfs file system", describe_bytes(size), label=text_of(sample.start[16:32]), bytes=size)


def flash(sample: Sample) -> Kind | None:
    """drivers/mtd/ubi/ubi-media.h (UBI_EC_HDR_MAGIC), fs/ubifs/ubifs-media.h, include/uapi/linux/jffs2.h."""
    for magic, name, title in (
        (b"UBI#", "ubi", "an UBI volume of flash memory"),
        (b"\x31\x18\x10\x06", "ubifs", "an UBIFS file system"),
        (b"\x85\x19\x03\x20", "jffs2", "a JFFS2 file system"),
    ):
        if sample.start.startswith(magic):
            return Kind(
                name, title, "unpack it, and make an image of what was in it (mystfuse mkext2 DIRECTORY NEW.img)"
            )
    return None


def others(sample: Sample) -> Kind | None:
    """File systems that the kernel mounts, of which we say the name alone."""
    start = sample.start
    for magic, offset, name, title in (
        (b"JFS1", 0x8000, "jfs", "a JFS file system"),
        (b"ReIsEr", 0x10034, "reiserfs", "a ReiserFS file system"),
        (b"\2\0\0\0\0\0\x34\x34", 0x400, "nilfs2", "a NILFS2 file system"),
        (bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), 0x1018, "bcachefs", "a bcachefs file system"),
    ):
        if start[offset : offset + len(magic)] == magic:
            return _kind(name, title)
    return None


def swap(sample: Sample) -> Kind | None:
    """include/linux/swap.h, union swap_header: at the end of a page of 4 to 64 KiB."""
    for page in (4096, 8192, 16384, 65536):
        if sample.start[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return Kind(
                "swap",
                "swap space",
                "it holds pages of memory, and no files",
                facts=facts_of(label=text_of(sample.start[1052:1068]), uuid=uuid_of(sample.start[1036:1052])),
            )
    return None


RECOGNIZERS: tuple[Callable[[Sample], Kind | None], ...] = (
    squashfs,
    erofs,
    xfs,
    btrfs,
    f2fs,
    iso9660,
    ntfs,
    fat,
    cramfs,
    romfs,
    flash,
    swap,
    others,
)

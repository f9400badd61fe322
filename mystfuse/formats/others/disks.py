"""Disks: tables of partitions, and the images of virtual machines and of Android."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from mystfuse.formats.others.kind import (
    Facts,
    Kind,
    Part,
    Sample,
    facts_of,
    in_brackets,
    text_of,
)
from mystfuse.system.units import describe_bytes

MAX_PARTITIONS = 128
"""Partitions that are listed: as many as a GPT has by default."""
MAX_LOGICAL = 60
"""Logical partitions of an MBR: a chain, of which others may have made a ring."""
SECTOR = 512
_MBR_TYPES = {
    0x01: "FAT12",
    0x04: "FAT16",
    0x05: "extended",
    0x06: "FAT16",
    0x07: "NTFS or exFAT",
    0x0B: "FAT32",
    0x0C: "FAT32",
    0x0E: "FAT16",
    0x0F: "extended",
    0x82: "Linux swap",
    0x83: "Linux",
    0x85: "extended",
    0x8E: "Linux LVM",
    0xA5: "FreeBSD",
    0xAF: "Apple HFS+",
    0xE8: "LUKS",
    0xEE: "GPT",
    0xEF: "EFI system",
    0xFD: "Linux RAID",
}
"""util-linux, include/pt-mbr-partnames.h."""
_EXTENDED = (0x05, 0x0F, 0x85)
_GPT_TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM64)",
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5": "Linux root verity (x86-64)",
    "df3300ce-d69f-4c92-978c-9bfb0f38d820": "Linux root verity (ARM64)",
    "8484680c-9521-48c6-9c11-b0720656f69e": "Linux usr (x86-64)",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6": "Linux usr verity (x86-64)",
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": "LUKS",
}
"""util-linux, include/pt-gpt-partnames.h; the UAPI group's Discoverable Partitions Specification."""


def gpt(sample: Sample) -> Kind | None:
    """UEFI specification 2.10, sections 5.3.2 and 5.3.3; sectors of 512 or 4096 bytes."""
    for sector in (512, 4096):
        header = sample.start[sector : sector + 92]
        if header[:8] == b"EFI PART":
            break
    else:
        return None
    first = int.from_bytes(header[72:80], "little") * sector
    count = int.from_bytes(header[80:84], "little")
    size = int.from_bytes(header[84:88], "little")
    parts: list[Part] = []
    if 128 <= size <= 4096:
        table = sample.at(first, min(count, MAX_PARTITIONS) * size)
        for number in range(len(table) // size):
            entry = table[number * size : (number + 1) * size]
            if not any(entry[:16]):
                continue
            start, last = (int.from_bytes(entry[at : at + 8], "little") for at in (32, 40))
            type_id = str(UUID(bytes_le=entry[:16]))
            name = entry[56:128].decode("utf-16-le", "replace").split("\0", 1)[0]
            type_name = _GPT_TYPES.get(type_id, type_id) + (f" {name!r}" if name else "")
            parts.append(Part(number + 1, type_name, start * sector, max(0, last + 1 - start) * sector))
    return _partitioned("gpt", "GPT", sample, parts, facts_of(sector_size=sector))


def mbr(sample: Sample) -> Kind | None:
    """The master boot record: four entries of 16 bytes from byte 446 on, each with a status of 0 or 0x80."""
    if sample.start[510:512] != b"\x55\xaa":
        return None
    entries = [sample.start[at : at + 16] for at in range(446, 510, 16)]
    if any(entry[0] not in (0, 0x80) for entry in entries):
        return None
    parts: list[Part] = []
    for number, entry in enumerate(entries, 1):
        part = _mbr_part(number, entry, 0)
        if part is not None:
            parts.append(part)
            if entry[4] in _EXTENDED:
                parts += _logical(sample, part.offset)
    if not parts or any(part.offset == 0 for part in parts):
        return None
    return _partitioned("mbr", "MBR", sample, parts, {})


def _mbr_part(number: int, entry: bytes, base: int) -> Part | None:
    start, count = (int.from_bytes(entry[at : at + 4], "little") for at in (8, 12))
    if not entry[4] or not count:
        return None
    type_name = _MBR_TYPES.get(entry[4], f"type 0x{entry[4]:02x}")
    return Part(number, type_name, base + start * SECTOR, count * SECTOR)


def _logical(sample: Sample, extended: int) -> list[Part]:
    """The logical partitions: each sector of the chain has one of them, and the place of the next sector, which counts
    from the extended partition's beginning."""
    parts: list[Part] = []
    place, seen = extended, set[int]()
    while len(parts) < MAX_LOGICAL and place not in seen:
        seen.add(place)
        record = sample.at(place, SECTOR)
        if record[510:512] != b"\x55\xaa":
            break
        part = _mbr_part(5 + len(parts), record[446:462], place)
        if part is None:
            break
        parts.append(part)
        following = _mbr_part(0, record[462:478], extended)
        if following is None:
            break
        place = following.offset
    return parts


def _partitioned(name: str, title: str, sample: Sample, parts: list[Part], facts: Facts) -> Kind:
    cut = Kind(name, f"a disk with a table of partitions ({title}, {len(parts)} of them)", facts=facts, parts=(*parts,))
    inside = [part for part in parts if part.type != "extended" and part.offset + part.size <= sample.size]
    return with_largest(cut, max(inside, key=lambda part: part.size, default=None))


def with_largest(kind: Kind, part: Part | None) -> Kind:
    """The same kind, with the command that cuts this partition out."""
    if part is None:
        return replace(kind, advice="its partitions lie outside the file, which is truncated: get it again")
    where = f"iflag=skip_bytes,count_bytes bs=1M skip={part.offset} count={part.size}"
    copy = f"dd if={{file}} of=part{part.number}.img {where}"
    return replace(
        kind,
        advice=f"cut a partition out, and see what that is: number {part.number} is the largest",
        commands=(
            f"{copy} && mystfuse info part{part.number}.img",
            "losetup --partscan --read-only --find --show {file}",
        ),
    )


def qcow2(sample: Sample) -> Kind | None:
    """QEMU's docs/interop/qcow2.txt; big-endian."""
    if sample.start[:4] != b"QFI\xfb":
        return None
    version, size = sample.number(4, 4, "big"), sample.number(24, 8, "big")
    backing, length = sample.number(8, 8, "big"), sample.number(16, 4, "big")
    base = text_of(sample.at(backing, min(length, 1023))) if backing else ""
    words = [describe_bytes(size), base and f"changes to {base}", "encrypted" if sample.number(32, 4, "big") else ""]
    form = "qcow2" if version > 1 else "qcow"
    return _virtual_disk("qcow2", f"a {form} disk image", form, words, bytes=size, version=version, backing_file=base)


def vmdk(sample: Sample) -> Kind | None:
    """VMware's Virtual Disk Format 5.0: SparseExtentHeader, or a descriptor, which is text."""
    if sample.start[:4] == b"KDMV":
        size = sample.number(12, 8) * SECTOR
        return _virtual_disk("vmdk", "a VMDK disk image", "vmdk", [describe_bytes(size)], bytes=size)
    if sample.start[:21] == b"# Disk DescriptorFile":
        return _virtual_disk("vmdk", "the descriptor of a VMDK disk image, whose data are in other files", "vmdk", [])
    return None


def vdi(sample: Sample) -> Kind | None:
    """QEMU's block/vdi.c, VdiHeader."""
    if sample.number(0x40, 4) != 0xBEDA107F:
        return None
    size = sample.number(0x170, 8)
    return _virtual_disk("vdi", "a VirtualBox disk image (VDI)", "vdi", [describe_bytes(size)], bytes=size)


def vhd(sample: Sample) -> Kind | None:
    """Microsoft's Virtual Hard Disk Image Format Specification 1.0 (a footer of 512 bytes; a dynamic disk has a copy of
    it at the beginning), and MS-VHDX, section 2.2.1."""
    if sample.start[:8] == b"vhdxfile":
        return _virtual_disk("vhdx", "a VHDX disk image", "vhdx", [])
    for footer in (sample.start[:512], sample.end[-512:]):
        if footer[:8] == b"conectix":
            size = int.from_bytes(footer[48:56], "big")
            word = {2: "fixed", 3: "dynamic", 4: "differencing"}.get(int.from_bytes(footer[60:64], "big"), "")
            return _virtual_disk("vhd", "a VHD disk image", "vpc", [describe_bytes(size), word], bytes=size)
    return None


def _virtual_disk(name: str, title: str, qemu: str, words: list[str], **facts: int | str) -> Kind:
    return Kind(
        name,
        title + in_brackets(*words),
        "make a plain file of it, and see what that is",
        (f"qemu-img convert -f {qemu} -O raw {{file}} {{new}} && mystfuse info {{new}}",),
        facts_of(**facts),
        suffix=f".{name}",
    )


def android(sample: Sample) -> Kind | None:
    """AOSP: system/core/libsparse/sparse_format.h, system/tools/mkbootimg (bootimg.h), and
    fs_mgr/liblp/include/liblp/metadata_format.h."""
    start = sample.start
    if sample.number(0, 4) == 0xED26FF3A:
        size = sample.number(12, 4) * sample.number(16, 4)
        return Kind(
            "android-sparse",
            f"a sparse Android image ({describe_bytes(size)} unpacked)",
            "unpack it, and see what that is",
            ("simg2img {file} {new} && mystfuse info {new}",),
            facts_of(bytes=size),
            suffix=".simg",
        )
    if start[:8] in (b"ANDROID!", b"VNDRBOOT"):
        return Kind(
            "android-boot",
            "an Android boot image",
            "take kernel and ramdisk out of it",
            ("unpack_bootimg --boot_img {file} --out tree",),
        )
    if sample.number(4096, 4) == 0x616C4467:
        return Kind(
            "android-super",
            "an Android super partition",
            "take its logical partitions out of it",
            ("mkdir tree && lpunpack {file} tree",),
        )
    return None


def lvm(sample: Sample) -> Kind | None:
    """LVM2, lib/format_text/layout.h (struct label_header, in one of the first four sectors); <linux/raid/md_p.h>."""
    for sector in range(4):
        if sample.start[sector * SECTOR : sector * SECTOR + 8] == b"LABELONE":
            return Kind(
                "lvm",
                "a physical volume of LVM",
                "make its logical volumes appear, as root: they are devices",
                ("vgscan --cache && vgchange -ay",),
            )
    if 0xA92B4EFC in (sample.number(0, 4), sample.number(4096, 4)):
        return Kind(
            "raid",
            "a member of a Linux RAID",
            "assemble the array, as root: it is a device",
            ("mdadm --assemble --scan",),
        )
    return None


RECOGNIZERS: tuple[Callable[[Sample], Kind | None], ...] = (qcow2, vmdk, vdi, vhd, android, gpt, lvm)
TABLES: tuple[Callable[[Sample], Kind | None], ...] = (mbr,)
"""After the file systems, whose boot sectors look like an MBR."""

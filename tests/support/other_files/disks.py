"""Disks of virtual machines and of Android, and tables of partitions."""

from __future__ import annotations

import struct

from tests.support.commands import run
from tests.support.other_files.makers import OtherFile, fixed_vhd, image, partitioned, virtual_disk, write

ANDROID_BOOT = b"ANDROID!" + struct.pack("<IIIIIIIII", 4096, 0x10008000, 0, 0, 0, 0, 0, 2048, 0) + bytes(8192)
"""AOSP's boot_img_hdr_v0, a page, and a kernel of zeros: no package for Debian 12 makes one without a kernel."""

DISKS = {
    "gpt": OtherFile(
        "gpt",
        "a table of partitions (GPT, 2 of them)",
        partitioned("label: gpt\nstart=2048, size=16384, type=L, name=root\nstart=20480, size=4096, type=U\n"),
        "DOS/MBR boot sector",
        "gpt",
        leads_to="info",
    ),
    "mbr": OtherFile(
        "mbr",
        "a table of partitions (MBR, 4 of them)",
        partitioned("label: dos\n2048,16384,83\n20480,,5\n22528,2048,82\n26624,2048,83\n"),
        "DOS/MBR boot sector",
        "dos",
        leads_to="info",
    ),
    "qcow2": OtherFile("qcow2", "a qcow2 disk image", virtual_disk("qcow2"), "QCOW", leads_to="info"),
    "vmdk": OtherFile("vmdk", "a VMDK disk image", virtual_disk("vmdk"), "VMware4 disk image", leads_to="info"),
    "vdi": OtherFile("vdi", "a VirtualBox disk image", virtual_disk("vdi"), "VirtualBox Disk Image", leads_to="info"),
    "vhd": OtherFile(
        "vhd", "a VHD disk image", virtual_disk("vpc", "-o", "force_size=on"), "Microsoft Disk Image", leads_to="info"
    ),
    "fixed vhd": OtherFile("vhd", "a VHD disk image (16 MiB, fixed)", fixed_vhd, "DOS/MBR boot sector", "gpt"),
    "vhdx": OtherFile(
        "vhdx", "a VHDX disk image", virtual_disk("vhdx"), "Microsoft Disk Image eXtended", leads_to="info"
    ),
    "android sparse": OtherFile(
        "android-sparse",
        "a sparse Android image",
        lambda path: run("img2simg", image(path.parent / "plain.img"), path),
        "Android sparse image",
        leads_to="info",
    ),
    "android boot": OtherFile("android-boot", "an Android boot image", write(ANDROID_BOOT), "Android bootimg"),
}

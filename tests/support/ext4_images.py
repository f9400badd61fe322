"""File systems of the ext family with everything that their features change, made by the kernel's own driver."""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.commands import run
from tests.support.ext2_editor import kernel_mount

BASIC: dict[str, tuple[str, ...]] = {
    "ext3": ("-t", "ext3"),
    "ext4": ("-t", "ext4"),
    "ext4, 1 KiB": ("-t", "ext4", "-b", "1024"),
    "inline data": ("-t", "ext4", "-O", "inline_data,^has_journal", "-I", "512"),
    "attributes in inodes": ("-t", "ext4", "-O", "ea_inode,metadata_csum_seed"),
    "bigalloc, 1 KiB": ("-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "4096"),
    "meta_bg": ("-t", "ext4", "-O", "meta_bg,^resize_inode,^has_journal", "-b", "1024", "-g", "1024"),
    "sparse_super2": ("-t", "ext4", "-O", "sparse_super2,^resize_inode,orphan_file,large_dir"),
    "uninit_bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"),
    "block maps": ("-t", "ext4", "-O", "^extent,^64bit,^flex_bg", "-I", "128"),
    "no checksums": ("-t", "ext4", "-O", "^metadata_csum,^uninit_bg,^has_journal"),
    "mmp": ("-t", "ext4", "-O", "mmp,verity,stable_inodes,fast_commit", "-E", "mmp_update_interval=1"),
}
"""The feature sets of the suite, by name: options of mke2fs."""
MORE: dict[str, tuple[str, ...]] = {
    "ext2": ("-t", "ext2"),
    "revision 0": ("-t", "ext2", "-r", "0"),
    "ext2 with extents": ("-t", "ext2", "-O", "extent"),
    "ext3, 1 KiB": ("-t", "ext3", "-b", "1024"),
    "ext4, 2 KiB": ("-t", "ext4", "-b", "2048", "-G", "4"),
    "flex_bg of 1": ("-t", "ext4", "-b", "1024", "-G", "1"),
    "no flex_bg": ("-t", "ext4", "-O", "^flex_bg"),
    "inodes of 128": ("-t", "ext4", "-I", "128"),
    "inodes of 512": ("-t", "ext4", "-I", "512"),
    "inodes of 1024": ("-t", "ext4", "-I", "1024"),
    "32 bits": ("-t", "ext4", "-O", "^64bit"),
    "descriptors of 128 bytes": ("-t", "ext4", "-E", "desc_size=128"),
    "no dir_index": ("-t", "ext4", "-O", "^dir_index"),
    "no filetype": ("-t", "ext4", "-O", "^filetype"),
    "no extra_isize": ("-t", "ext4", "-O", "^extra_isize,^dir_nlink,^huge_file"),
    "hash seed": ("-t", "ext4", "-E", "hash_seed=01234567-89ab-cdef-0123-456789abcdef"),
    "bigalloc": ("-t", "ext4", "-O", "bigalloc"),
    "bigalloc, large": ("-t", "ext4", "-O", "bigalloc", "-C", "262144"),
    "bigalloc, inline data": ("-t", "ext4", "-O", "bigalloc,inline_data"),
    "inline data, 256": ("-t", "ext4", "-O", "inline_data", "-I", "256"),
    "inline data, 1 KiB of 1 KiB": ("-t", "ext4", "-O", "inline_data", "-b", "1024", "-I", "1024", "-N", "4096"),
    "inline data and attributes in inodes": ("-t", "ext4", "-O", "inline_data,ea_inode,large_dir", "-I", "512"),
    "meta_bg, 4 KiB": ("-t", "ext4", "-O", "meta_bg,^resize_inode"),
    "meta_bg, 32 bits": ("-t", "ext4", "-O", "meta_bg,^resize_inode,^64bit", "-b", "1024", "-g", "256"),
    "sparse_super2, one copy": ("-t", "ext4", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=1"),
    "no sparse_super": ("-t", "ext4", "-O", "^sparse_super,^resize_inode", "-b", "1024"),
    "all copies in bigalloc": ("-t", "ext4", "-O", "bigalloc,^sparse_super,^resize_inode", "-C", "16384"),
    "encrypt": ("-t", "ext4", "-O", "encrypt,verity,stable_inodes"),
    "orphan_file": ("-t", "ext4", "-O", "orphan_file"),
    "largefile4": ("-t", "ext4", "-T", "largefile4", "-N", "2048"),
    "hugefile": ("-t", "ext4", "-T", "huge", "-N", "2048"),
    "small": ("-t", "ext4", "-T", "small"),
    "Debian 10": ("-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file"),
    "Fedora 39": ("-t", "ext4", "-O", "metadata_csum_seed,orphan_file"),
    "Android": (
        "-t", "ext4", "-b", "4096", "-I", "256", "-O",
        "^has_journal,uninit_bg,^metadata_csum,^64bit,^resize_inode,extent",
    ),
}  # fmt: skip
"""Those of the slow part, besides."""
FROM_TREES: dict[str, tuple[str, ...]] = {
    "8 KiB": ("-t", "ext4", "-b", "8192", "-O", "^has_journal"),
    "16 KiB": ("-t", "ext4", "-b", "16384", "-O", "^has_journal"),
    "32 KiB": ("-t", "ext4", "-b", "32768", "-O", "^has_journal,inline_data"),
    "64 KiB": ("-t", "ext4", "-b", "65536", "-O", "^has_journal"),
    "64 KiB, block maps": ("-t", "ext4", "-b", "65536", "-O", "^has_journal,^extent,^64bit"),
}
"""Those that this kernel's driver may not mount, so that mke2fs fills them."""
SIZE = "96M"


def make_populated(path: Path, mountpoint: Path, *options: str, size: str = SIZE) -> Path:
    """Make a file system with mke2fs, and have the kernel fill it."""
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-F", *options, path, size)
    with kernel_mount(path, mountpoint, "rw"):
        populate(mountpoint)
    check = run("e2fsck", "-fn", path, check=False)
    assert check.returncode == 0, check.stdout
    return path


def populate(root: Path) -> None:
    """Files of all kinds: of all sizes that may be in the inode, in few blocks and in many, with holes, with blocks
    that are allocated and not written, in a thousand pieces; links, devices, long directories, attributes, times."""
    noise = random.Random(1)
    for size in (0, 1, 59, 60, 61, 100, 150, 400, 800, 5000, 700_001, 3_000_000):
        (root / f"file {size}").write_bytes(noise.randbytes(size))
    (root / "small").mkdir()
    (root / "small/one").write_bytes(b"1")
    (root / "small/two").mkdir()
    (root / "middling").mkdir()
    for number in range(40):
        (root / f"middling/{number:02}").write_bytes(b"%d" % number)
    (root / "many").mkdir()
    for number in range(900):
        os.link(root / "file 1", root / f"many/{number:05} {'n' * (number % 90)}")
    (root / "directories").mkdir()
    for number in range(80):
        (root / f"directories/{number}").mkdir()
    with (root / "sparse").open("wb") as file:
        for position in (1 << 20, 50 << 20, (60 << 20) - 3):
            file.seek(position)
            file.write(b"end")
        file.truncate(64 << 20)
    with (root / "pieces").open("wb") as file:
        for number in range(1200):
            file.seek(number * 8192)
            file.write(bytes([number % 256]) * 1000)
    with (root / "unwritten").open("wb") as file:
        with suppress(OSError):  # without extents
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
        for position, size in ((300_000, 7), (500_000, 70_000)):
            os.pwrite(file.fileno(), b"x" * size, position)
    for length in (1, 59, 60, 120, 1000):
        (root / f"link {length}").symlink_to("/".join(["t" * 100] * 10)[:length])
    os.mkfifo(root / "fifo")
    os.mknod(root / "character device", 0o020666, os.makedev(1, 3))
    os.mknod(root / "block device", 0o060600, os.makedev(300, 70_000))
    for name, attribute, size in (
        ("file 1", "user.short", 5),
        ("file 60", "security.test", 3),
        ("file 100", "trusted.test", 30),
        ("file 5000", "user.middling", 600),
        ("file 5000", "user.large", 3000),
        ("file 700001", "user.larger", 10_240),
        ("file 1", "user.largest", 60_000),
        ("small", "user.directory", 60),
        ("link 60", "trusted.link", 10),
    ):
        with suppress(OSError):  # where there is no room for it
            os.setxattr(root / name, attribute, noise.randbytes(size), follow_symlinks=False)
    for arguments in (("-m", "u:1000:rwx,g:7:r", root / "file 3000000"), ("-d", "-m", "u:5:r", root / "small")):
        subprocess.run(["setfacl", *arguments], check=True)
    os.chown(root / "file 5000", 70_000, 80_000)
    (root / "file 5000").chmod(0o4755)
    seconds = (-(2**31), -1_000_000_001, 1_600_000_000, 2**31 + 1, 2**32 + 7, 2**33 + 1, 2**33 + 2**32)
    for number, moment in enumerate(seconds):
        os.utime(root / f"directories/{number}", ns=(moment * 10**9 + 123_456_789, moment * 10**9 + 987_654_321))

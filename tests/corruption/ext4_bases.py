"""Sound ext4 file systems with a file of every kind, filled by the kernel, for the damages of ``ext4_damages``."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.corruption.bases import DEEP, POSTER, UUID, write_at
from tests.corruption.exercise import Outcomes, walk
from tests.support.commands import run
from tests.support.ext2_editor import kernel_mount

OPTIONS: dict[str, tuple[str, ...]] = {
    # The kernel's driver may wait for itself for ever with inline_data and a small journal.
    "everything": ("-b", "1024", "-g", "2048", "-I", "256", "-O",
                   "inline_data,ea_inode,metadata_csum_seed,large_dir,^has_journal"),
    "defaults": ("-b", "4096", "-I", "256", "-O", "orphan_file", "-J", "size=4"),
    "crc16": ("-b", "1024", "-g", "1024", "-I", "128", "-O", "^metadata_csum,uninit_bg,^64bit,^has_journal,^flex_bg"),
    "meta_bg": ("-b", "1024", "-g", "1024", "-I", "512", "-O",
                "meta_bg,^resize_inode,^has_journal,sparse_super2,inline_data"),
    "bigalloc": ("-b", "1024", "-C", "4096", "-I", "256", "-O", "bigalloc,^has_journal"),
    "recovering": ("-b", "1024", "-g", "2048", "-I", "256", "-J", "size=4"),
}  # fmt: skip
"""mke2fs's arguments, by the name of the base. With inline_data there is no journal: with a small one, Linux 6.18 waits
for its own commit when it writes contents out of an inode (jbd2 in ext4_do_writepages), and sync(2) with it, until a
reboot."""
SIZE = "12M"
NAMES = tuple(f"{number:04}-{'n' * 110}" for number in range(400))
"""Enough for an index of two levels where blocks have 1 KiB."""
PIECES = 700
"""Extents of a file: a tree of two levels below i_block where blocks have 1 KiB."""


@dataclass(frozen=True)
class Base:
    """A sound file system."""

    name: str
    data: bytes
    walked: Outcomes
    """What the kernel's driver reads in it, in the order of ``exercise.walk``."""


def make_ext4_bases(directory: Path, *names: str) -> dict[str, Base]:
    """The file systems by name, each clean by e2fsck but for a journal to be replayed."""
    return {name: _make(directory / name, name) for name in names or OPTIONS}


def _make(path: Path, name: str) -> Base:
    run("mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-N", "1024",
        "-E", f"root_owner=0:0,lazy_itable_init=0,hash_seed={UUID}", *OPTIONS[name], path, SIZE)  # fmt: skip
    mountpoint = path.with_suffix(".mnt")
    with kernel_mount(path, mountpoint, "rw"):
        _fill(mountpoint)
    data = path.read_bytes()
    if name == "recovering":
        # Another file: where another mount namespace still has the first one's mount, it is busy.
        again = path.with_suffix(".again")
        again.write_bytes(data)
        with kernel_mount(again, mountpoint, "rw"):
            _change(mountpoint)
            # All of it is in the log now, and not in its place: a copy is what a crash leaves.
            run("sync", "-f", mountpoint)
            data = again.read_bytes()
    copy = path.with_suffix(".copy")
    copy.write_bytes(data)
    # A journal can be replayed only into a device that can be written to.
    with kernel_mount(copy, mountpoint, "rw" if name == "recovering" else "ro"):
        walked = walk(str(mountpoint))
    check = run("e2fsck", "-fn", copy, check=False)
    assert check.returncode == 0, check.stdout
    copy.unlink()
    mountpoint.rmdir()
    return Base(name, data, walked)


def _change(root: Path) -> None:
    (root / "dir/later").write_bytes(b"later" * 3000)
    (root / "dir/first").unlink()
    (root / "empty").write_bytes(b"no longer" * 50)
    (root / "pieces").chmod(0o600)
    for number in range(20):
        (root / f"hollow/{number}").mkdir()


def _fill(root: Path) -> None:
    block_size = os.statvfs(root).f_bsize
    (root / "plain").write_bytes(b"plain" * 900)
    (root / "empty").touch()
    (root / "tiny").write_bytes(b"in the inode" * 3)
    (root / "small").write_bytes(b"in the inode and in an attribute" * 4)
    (root / "direct").write_bytes(bytes(range(256)) * (block_size * 5 // 256))
    with (root / "pieces").open("wb") as file:
        for number in range(PIECES):
            file.seek(2 * number * block_size)
            file.write(b"%06d" % number * 20)
            if number % 2:
                os.fsync(file.fileno())
    with (root / "few").open("wb") as file:
        for number in range(30):
            file.seek(3 * number * block_size)
            file.write(b"%06d" % number * 20)
    with (root / "unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 40 * block_size)
        os.pwrite(file.fileno(), b"written", 20 * block_size)
    write_at(root / "huge", {0: b"H", (2 << 30) + 5: b"large"})
    write_at(root / "sparse", {100_000: b"between holes", 900_000: b"end"})
    (root / "fast").symlink_to("plain")
    (root / "slow").symlink_to("/nowhere/" + "x" * 200)
    (root / "middle").symlink_to("/nowhere/" + "x" * 80)
    os.mkfifo(root / "fifo")
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    (root / "dir").mkdir()
    for name in ("first", "second", "third", "with a longer name"):
        (root / "dir" / name).write_text(name)
    os.link(root / "plain", root / "dir/hard")
    (root / "hollow").mkdir()
    (root / DEEP).mkdir(parents=True)
    (root / DEEP / "bottom").write_text("deep down")
    (root / "htree").mkdir()
    for name in NAMES:
        os.link(root / "empty", root / "htree" / name)
    for name in ("shared-one", "shared-two"):
        (root / name).write_text(name)
        os.setxattr(root / name, "user.poster", POSTER)
    (root / "attributes").write_text("in the body and in a block")
    os.setxattr(root / "attributes", "user.body", b"short")
    os.setxattr(root / "attributes", "user.block", b"long" * 100)
    with suppress(OSError):  # without ea_inode
        os.setxattr(root / "attributes", "user.inode", b"longer" * 1500)
    os.setxattr(root / "attributes", "trusted.secret", b"root's")
    (root / "acl").mkdir()
    (root / "acl/file").write_text("who may read this")
    subprocess.run(["setfacl", "-m", "u:1234:r,g:77:rw", root / "acl/file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rx", root / "acl"], check=True)

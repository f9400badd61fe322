"""Sound file systems with a file of every kind, which other modules damage, and the places of everything in them.

The kernel fills them, so that hash-indexed directories and shared attribute blocks are genuine.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from struct import unpack_from

from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, debugfs, kernel_mount

OPTIONS = {
    "1k": ("-b", "1024", "-g", "2048", "-N", "512", "-I", "256"),
    "4k": ("-b", "4096", "-N", "256", "-I", "256"),
    "small-inodes": ("-b", "2048", "-N", "512", "-I", "128", "-O", "^resize_inode"),
}
"""mke2fs's arguments, by the name of the base. The first has four groups."""
SIZE = "6M"
UUID = "c0ffee00-1234-4321-8765-0123456789ab"
HTREE_NAMES = tuple(f"{number:04}-{'n' * 110}" for number in range(48))
"""Enough for a directory of several blocks, even of 4 KiB."""
DEEP = "/".join("abcdef")
POSTER = b"shared between two inodes" * 8


def make_bases(directory: Path) -> dict[str, bytes]:
    """The file systems by name, each clean by e2fsck."""
    return {name: _make_base(directory / name, options) for name, options in OPTIONS.items()}


def _make_base(path: Path, options: tuple[str, ...]) -> bytes:
    # The kernel spreads directories over the groups by hashes of their names.
    run("mke2fs", "-q", "-F", "-t", "ext2", "-U", UUID, "-E", f"root_owner=0:0,hash_seed={UUID}", *options, path, SIZE)
    block_size = int(options[1])
    with kernel_mount(path, path.with_suffix(".mnt"), "rw") as root:
        _fill(root, block_size)
    path.with_suffix(".mnt").rmdir()
    # The kernel's notes about its mount differ from run to run; nothing else does.
    debugfs(path, "ssv mtime 0", "ssv wtime 0", "ssv lastcheck 0", "ssv mnt_count 0")
    run("e2fsck", "-fn", path)
    return path.read_bytes()


def _fill(root: Path, block_size: int) -> None:
    per_block = block_size // 4
    (root / "plain").write_bytes(b"plain" * 900)
    (root / "empty").touch()
    (root / "direct").write_bytes(bytes(range(256)) * (block_size * 5 // 256))
    # Single, double and triple indirect, with holes in front of each.
    write_at(root / "single", {0: b"S", 12 * block_size: b"S" * block_size * 6})
    write_at(root / "double", {0: b"D", (12 + per_block) * block_size: b"D" * block_size * 4})
    triple = 12 + per_block + per_block**2
    if block_size == 1024:
        write_at(root / "triple", {0: b"T", triple * block_size: b"T" * 3000})
    write_at(root / "huge", {0: b"H", (2 << 30) + 5: b"large"})
    write_at(root / "sparse", {100_000: b"between holes", 900_000: b"end"})
    (root / "fast").symlink_to("plain")
    (root / "slow").symlink_to("/nowhere/" + "x" * 200)
    os.mkfifo(root / "fifo")
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    (root / "dir").mkdir()
    for name in ("first", "second", "third"):
        (root / "dir" / name).write_text(name)
    os.link(root / "plain", root / "dir/hard")
    (root / "hollow").mkdir()
    (root / DEEP).mkdir(parents=True)
    (root / DEEP / "bottom").write_text("deep down")
    (root / "htree").mkdir()
    for name in HTREE_NAMES:
        os.link(root / "empty", root / "htree" / name)
    for name in ("shared-one", "shared-two"):
        (root / name).write_text(name)
        os.setxattr(root / name, "user.poster", POSTER)
    (root / "attributes").write_text("in the body and in a block")
    os.setxattr(root / "attributes", "user.body", b"short")
    os.setxattr(root / "attributes", "user.block", b"long" * 100)
    os.setxattr(root / "attributes", "trusted.secret", b"root's")
    (root / "acl").mkdir()
    (root / "acl/file").write_text("who may read this")
    run("setfacl", "-m", "u:1234:r,g:77:rw", root / "acl/file")
    run("setfacl", "-d", "-m", "u:1234:rx", root / "acl")


def write_at(path: Path, pieces: dict[int, bytes]) -> None:
    """A file with holes between the pieces."""
    with path.open("wb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


class Layout(Editor):
    """A file system to be damaged: it finds inodes by path, and says what a block is used for."""

    def number(self, path: str) -> int:
        """The inode number at a path below the root, found without the code under test."""
        ino = ROOT
        for name in filter(None, path.split("/")):
            _, ino = self.find(ino, name.encode(), self.blocks_of(ino))
        return ino

    def blocks_of(self, ino: int) -> int:
        """How many blocks a directory of direct blocks has."""
        return self.get("<I", self.inode(ino) + 4) // self.block_size

    def entry(self, path: str) -> int:
        """The byte offset of the directory entry of a path."""
        parent, _, name = path.rpartition("/")
        ino = self.number(parent)
        return self.find(ino, name.encode(), self.blocks_of(ino))[0]

    def at(self, path: str) -> int:
        """The byte offset of the inode at a path."""
        return self.inode(self.number(path))

    def data_of(self, path: str, index: int = 0) -> int:
        """The byte offset of the block that a pointer of the inode at a path refers to."""
        return self.block(self.number(path), index)

    def pointer_of(self, path: str, index: int = 0) -> int:
        """The block number in the pointer."""
        return self.get("<I", self.at(path) + 40 + 4 * index)

    def set_inode(self, path: str, layout: str, offset: int, *values: int) -> None:
        """Put values at an offset of the inode at a path; ``/`` is the root."""
        self.put(layout, self.at(path) + offset, *values)

    def set_pointer(self, path: str, index: int, number: int) -> None:
        self.set_inode(path, "<I", 40 + 4 * index, number)

    def set_super(self, layout: str, offset: int, *values: int) -> None:
        self.put(layout, 1024 + offset, *values)

    def set_group(self, group: int, layout: str, offset: int, *values: int) -> None:
        self.put(layout, self.descriptor(group) + offset, *values)

    @property
    def groups(self) -> int:
        per_group: int = self.get("<I", 1024 + 32)
        return -(-(self.blocks_count - self.first_data_block) // per_group)

    def bitmap(self, group: int, which: int) -> int:
        """The byte offset of a group's bitmap: ``which`` is 0 for blocks, 1 for inodes."""
        return self.get("<I", self.descriptor(group) + 4 * which) * self.block_size

    def flip_block_bit(self, number: int) -> None:
        """Change whether a block counts as in use."""
        group, bit = divmod(number - self.first_data_block, self.get("<I", 1024 + 32))
        self.data[self.bitmap(group, 0) + bit // 8] ^= 1 << bit % 8

    def is_free(self, number: int) -> bool:
        """The bit of a block in the bitmap."""
        group, bit = divmod(number - self.first_data_block, self.get("<I", 1024 + 32))
        return not self.data[self.bitmap(group, 0) + bit // 8] >> bit % 8 & 1

    def flip_inode_bit(self, ino: int) -> None:
        group, bit = divmod(ino - 1, self.inodes_per_group)
        self.data[self.bitmap(group, 1) + bit // 8] ^= 1 << bit % 8

    def xattr_block(self, path: str) -> int:
        """The byte offset of the attribute block of the inode at a path."""
        number = self.get("<I", self.at(path) + 104)
        assert number
        return number * self.block_size

    def inodes_in_use(self) -> list[int]:
        """The numbers of all inodes that have links."""
        return [ino for ino in range(1, self.inodes_count + 1) if unpack_from("<H", self.data, self.inode(ino) + 26)[0]]

    def directories(self) -> list[int]:
        """The numbers of all inodes that are directories."""
        return [ino for ino in self.inodes_in_use() if stat.S_ISDIR(self.get("<H", self.inode(ino)))]

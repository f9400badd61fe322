"""Images that are huge in one respect and made quickly: block by block in a sparse file, checked by e2fsck."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.support.commands import run
from tests.support.ext2_editor import ROOT

BLOCK = 4096
_INODE = 128
_PER_TABLE = BLOCK // 4
FIRST_INO = 12
"""The first inode of the files; the directory's own inode comes last."""


def name_of(number: int) -> bytes:
    return b"file%07d" % number


class _File:
    """An ext2 file system in a file, with 4 KiB blocks and inodes of 128 bytes, edited in place."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)
        superblock = os.pread(self._fd, 1024, 1024)
        (self.blocks_per_group,) = struct.unpack_from("<I", superblock, 32)
        (self.inodes_per_group,) = struct.unpack_from("<I", superblock, 40)
        (self.blocks_count,) = struct.unpack_from("<I", superblock, 4)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytearray:
        return bytearray(os.pread(self._fd, length, offset))

    def write(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._fd, data, offset) == len(data)

    def add(self, offset: int, layout: str, delta: int) -> None:
        (value,) = struct.unpack(layout, self.read(offset, struct.calcsize(layout)))
        self.write(offset, struct.pack(layout, value + delta))

    def place(self, group: int, index: int) -> int:
        """Block number of a group's block bitmap (0), inode bitmap (1), or inode table (2)."""
        return int(struct.unpack("<I", self.read(BLOCK + group * 32 + 4 * index, 4))[0])

    def inode_offset(self, ino: int) -> int:
        group, index = divmod(ino - 1, self.inodes_per_group)
        return self.place(group, 2) * BLOCK + index * _INODE

    def set_bits(self, bitmap: int, first: int, count: int) -> None:
        data = self.read(bitmap * BLOCK, BLOCK)
        bits = int.from_bytes(data, "little")
        mask = (1 << count) - 1 << first
        assert not bits & mask
        self.write(bitmap * BLOCK, (bits | mask).to_bytes(BLOCK, "little"))

    def take_blocks(self, count: int) -> list[int]:
        """Free blocks in order, from the back of each group on."""
        taken: list[int] = []
        for group in range(-(-self.blocks_count // self.blocks_per_group)):
            size = min(self.blocks_per_group, self.blocks_count - group * self.blocks_per_group)
            bits = int.from_bytes(self.read(self.place(group, 0) * BLOCK, BLOCK), "little") & (1 << size) - 1
            first = bits.bit_length()
            here = min(count - len(taken), size - first)
            if here > 0:
                self.set_bits(self.place(group, 0), first, here)
                self.add(BLOCK + group * 32 + 12, "<H", -here)
                taken += range(group * self.blocks_per_group + first, group * self.blocks_per_group + first + here)
        assert len(taken) == count, "too small"
        self.add(1024 + 12, "<I", -count)
        return taken

    def take_inodes(self, first: int, count: int) -> None:
        ino, end = first, first + count
        while ino < end:
            group, index = divmod(ino - 1, self.inodes_per_group)
            here = min(end - ino, self.inodes_per_group - index)
            self.set_bits(self.place(group, 1), index, here)
            self.add(BLOCK + group * 32 + 14, "<H", -here)
            self.write(self.inode_offset(ino), pack_inode(0o100644, 1, 0) * here)
            ino += here
        self.add(1024 + 16, "<I", -count)


def pack_inode(mode: int, links: int, size: int, blocks: int = 0, pointers: bytes = b"") -> bytes:
    inode = struct.pack("<HHIIIIIHHI4xI", mode, 0, size, *[1_600_000_000] * 3, 0, 0, links, blocks, 0)
    return (inode[:40] + pointers).ljust(_INODE, b"\0")


def make_crowded_image(path: Path, names: int) -> Path:
    """An ext2 file system whose directory ``big`` has this many names, each of an empty file of its own."""
    block_count = -(-names // ((BLOCK - 24) // 20))
    mebibytes = names * _INODE // (1 << 20) + block_count * 2 * BLOCK // (1 << 20) + 64
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(BLOCK), "-I", str(_INODE), "-N", str(names + 1000), "-O",
        "^resize_inode,^dir_index,^ext_attr", "-m", "0", path, f"{mebibytes}M")  # fmt: skip
    run("debugfs", "-w", "-R", "mkdir big", path)
    file = _File(path)
    try:
        directory = FIRST_INO
        file.take_inodes(directory + 1, names)
        (first,) = struct.unpack("<I", file.read(file.inode_offset(directory) + 40, 4))
        entries = bytearray(struct.pack("<IHBB", directory, 12, 1, 2) + b".\0\0\0")
        entries += struct.pack("<IHBB", ROOT, 12, 2, 2) + b"..\0\0"
        blocks: list[bytes] = []
        pack, last = struct.pack, 12
        for number in range(names):
            if len(entries) + 20 > BLOCK:
                struct.pack_into("<H", entries, last + 4, BLOCK - last)
                blocks.append(bytes(entries.ljust(BLOCK, b"\0")))
                entries = bytearray()
            last = len(entries)
            entries += pack("<IHBB11sx", directory + 1 + number, 20, 11, 1, name_of(number))
        struct.pack_into("<H", entries, last + 4, BLOCK - last)
        blocks.append(bytes(entries.ljust(BLOCK, b"\0")))
        write_file(file, directory, 0o40755, 2, blocks, [first])
    finally:
        file.close()
    return path


def write_file(file: _File, ino: int, mode: int, links: int, blocks: list[bytes], taken: list[int]) -> None:
    """Give an inode contents: data blocks behind its present ones."""
    numbers = taken + file.take_blocks(len(blocks) - len(taken))
    for number, data in zip(numbers, blocks, strict=True):
        file.write(number * BLOCK, data)
    pointers = numbers[:12] + [0] * max(12 - len(numbers), 0)
    metadata = 0

    def table(members: list[int]) -> int:
        nonlocal metadata
        metadata += 1
        (number,) = file.take_blocks(1)
        file.write(number * BLOCK, struct.pack(f"<{len(members)}I", *members).ljust(BLOCK, b"\0"))
        return number

    rest = numbers[12:]
    pointers.append(table(rest[:_PER_TABLE]) if rest else 0)
    rest = rest[_PER_TABLE:]
    tables = [table(rest[start : start + _PER_TABLE]) for start in range(0, len(rest), _PER_TABLE)]
    assert len(tables) <= _PER_TABLE
    pointers += [table(tables) if tables else 0, 0]
    sectors = (len(numbers) + metadata) * (BLOCK // 512)
    inode = pack_inode(mode, links, len(blocks) * BLOCK, sectors, struct.pack("<15I", *pointers))
    file.write(file.inode_offset(ino), inode)

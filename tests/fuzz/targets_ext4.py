"""Targets: what ext4 has besides ext2, each structure by itself, and whole file systems behind fresh checksums."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from functools import cache

import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_block, map_blocks, map_runs, map_stretch
from mystfuse.ext2.checksum import MetadataChecksums, put_directory_tail
from mystfuse.ext2.directory import parse_block
from mystfuse.ext2.inline_data import inline_directory, read_inline
from mystfuse.ext2.inode import Inode
from tests.corruption.ext4_layout import EXTENTS, INLINE, Ext4Layout
from tests.fuzz.ext2_memory import Memory
from tests.fuzz.harness import Choices, Target, ensure
from tests.fuzz.images import PIECE, SparseImage, load
from tests.fuzz.targets_ext2 import ask
from tests.fuzz.targets_images import serve

_MAGIC = 0xF30A
_HEADER = struct.Struct("<HHHHI")
_FIELDS = {
    "super": ((0, 4), (4, 4), (12, 4), (20, 4), (24, 4), (28, 4), (32, 4), (36, 4), (40, 4), (88, 2), (92, 4), (96, 4),
              (100, 4), (232, 4), (254, 2), (260, 4), (336, 4), (348, 2), (372, 1), (0x24C, 4), (0x270, 4), (0x280, 4)),
    "group": ((0, 4), (4, 4), (8, 4), (12, 2), (14, 2), (16, 2), (18, 2), (28, 2), (32, 4), (36, 4), (40, 4), (44, 2)),
    "inode": ((0, 2), (4, 4), (20, 4), (26, 2), (28, 4), (32, 4), (40, 2), (42, 2), (44, 2), (46, 2), (52, 4), (56, 2),
              (58, 2), (60, 4), (100, 4), (104, 4), (108, 4), (116, 2), (118, 2), (128, 2), (160, 1), (162, 2),
              (164, 4), (168, 4)),
    "block": ((0, 4), (2, 2), (4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 2), (18, 2), (20, 4), (24, 4), (28, 1),
              (30, 1), (32, 2), (34, 2), (36, 4), (40, 4)),
}  # fmt: skip
"""(byte offset, bytes) in the superblock, a descriptor, an inode, and a block of a tree, a directory, attributes."""


@cache
def whole() -> bytes:
    image = load("ext4")
    return image.get(0, image.size)


@cache
def sound() -> Ext4Layout:
    return Ext4Layout(whole())


def sparse(data: bytes | bytearray) -> SparseImage:
    pieces = {start // PIECE: bytes(data[start : start + PIECE]) for start in range(0, len(data), PIECE)}
    return SparseImage(pieces, len(data))


# -- extents


def extents(data: bytes) -> None:
    """The ways to find a file's blocks agree for any tree; all of them end."""
    choices = Choices(data)
    memory = Memory(load("ext4").copy())
    # Without checksums to guess.
    superblock = replace(memory.superblock, checksums=None)
    size = superblock.block_size
    pool = [superblock.s_blocks_count - 1 - index for index in range(8)]
    numbers = (*pool, superblock.s_blocks_count, superblock.s_first_data_block, 1)
    for number in pool[:4]:
        memory.image.put(number * size, _node(choices, numbers, (size - 12) // 12))
    i_block = _node(choices, numbers, 4).ljust(60, b"\0")[:60]
    file = Inode(12, 0o100644, 0, 0, 1 << 40, 0, 0, 0, 1, 8, EXTENTS, i_block, 0, 0, b"", 0)
    for _ in range(3):
        first = max(choices.pick((0, 1, 100, 32768, (1 << 32) - 300, choices.number(4))) - choices.below(3), 0)
        count = 1 + choices.below(300)
        found = ask(lambda: map_blocks(superblock, memory.blocks(), file, first, count))  # noqa: B023
        runs = ask(lambda: map_runs(superblock, memory.blocks(), file, first, count))  # noqa: B023
        ensure((found is None) == (runs is None), "map_runs disagrees with map_blocks")
        if found is None or runs is None:
            continue
        ensure(len(found) == count == sum(run.length for run in runs), "another number of blocks")
        ensure(all(not number or superblock.is_data_block(number) for number in found), "outside")
        ensure(map_block(superblock, memory.blocks(), file, first) == found[0], "map_block disagrees")
        stretch = ask(lambda: map_stretch(superblock, memory.blocks(), file, first))  # noqa: B023
        if stretch is not None:
            ensure(stretch.length > 0 and stretch.is_data == bool(found[0]), f"{stretch} at {first}")
            ensure(all(bool(number) == stretch.is_data for number in found[: stretch.length]), f"{stretch} at {first}")


def _node(choices: Choices, numbers: tuple[int, ...], most: int) -> bytes:
    """A node with a few entries, mostly in order."""
    depth, count = choices.pick((0, 0, 1, 1, 2, 3, 5, 6)), choices.below(6)
    parts = [_HEADER.pack(choices.pick((_MAGIC,) * 7 + (0,)), count, choices.pick((most, most, most, count, 0xFFFF)),
                          depth, 0)]  # fmt: skip
    logical = 0
    for _ in range(count):
        logical += choices.pick((0, 1, 2, 100, 32768, choices.number(4)))
        number, length = choices.pick(numbers), choices.pick((1, 2, 100, 32768, 32769, 65535, 0))
        if depth:
            parts.append(struct.pack("<IIHH", logical & 0xFFFFFFFF, number, choices.pick((0, 0, 0, 1)), 0))
        else:
            parts.append(struct.pack("<IHHI", logical & 0xFFFFFFFF, length, choices.pick((0, 0, 0, 1)), number))
            logical += length & 0x7FFF
    return b"".join(parts)


# -- inline data


def inline(data: bytes) -> None:
    """The contents of an inode are at most what it says, and its entries make up a block, or are refused."""
    choices = Choices(data)
    superblock = Memory(load("ext4")).superblock
    mode = choices.pick((0o100644, 0o040755, 0o120777))
    i_block = choices.take(60)
    extra = b"\0\0\2\xea" + choices.take(choices.below(92)) if choices.below(4) else choices.take(choices.below(96))
    size = choices.pick((0, 3, 4, 60, 100, 152, 1 << 40))
    inode = Inode(12, mode, 0, 0, size, 0, 0, 0, 1, 0, INLINE, i_block, 0, 0, extra, 32)
    with suppress(CorruptFilesystem):
        ensure(len(read_inline(inode)) <= min(size, 60 + len(extra)), "more than there is")
    with suppress(CorruptFilesystem):
        block = inline_directory(superblock, inode)
        ensure(len(block) == superblock.block_size, "no block")
        # Its lengths lead to its end; names may be broken.
        for entry in parse_block(superblock, inode, block, 0):
            ensure(0 < len(entry.name) <= 255, "a name")


# -- checksums


def checksums(data: bytes) -> None:
    """Whatever a structure holds, the checksum that it is given is the one that it is found to have."""
    choices = Choices(data)
    kept = MetadataChecksums(choices.number(4))
    ino, generation = choices.number(4), choices.number(4)
    size = choices.pick((1024, 4096))
    head = choices.take(64)
    block = bytearray(head.ljust(size, choices.pick((b"\0", b"\xff"))))
    with suppress(CorruptFilesystem):
        kept.set_extents(ino, generation, block)
        kept.check_extents(ino, generation, 7, bytes(block))
    kept.set_xattrs(ino, block)
    kept.check_xattrs(12, ino, bytes(block))
    if choices.below(2):
        put_directory_tail(block)
    with suppress(CorruptFilesystem):
        kept.set_directory(ino, generation, block)
        kept.check_directory(ino, generation, 0, bytes(block))
        damaged = bytearray(block)
        damaged[choices.below(8)] ^= 1 + choices.below(255)
        with suppress(CorruptFilesystem):
            kept.check_directory(ino, generation, 0, bytes(damaged))
            ensure(False, "another block has the same checksum")
    inode_size = choices.pick((128, 256, 1024))
    kept.set_inode(ino, block, 0, inode_size)
    kept.check_inode(ino, bytes(block[:inode_size]))


# -- whole file systems


def ext4_writes(data: bytes) -> None:
    """Reading and writing a broken ext4 file system gives its data, makes the right change, or neither."""
    choices = Choices(data)
    place = sound()
    layout = Ext4Layout(place.sound)
    inodes = place.inodes_in_use()
    directories = place.directories()
    trees = [number for blocks in place.tree_blocks.values() for number, _ in blocks]
    blocks = trees + [number for ino in directories for number in place.blocks_in(ino)]
    others = (*trees, layout.blocks_count, layout.inodes_count, *inodes[:12], 0x10, EXTENTS, INLINE, 1024, 60)
    for _ in range(choices.below(5)):
        kind = choices.pick(("super", "group", "inode", "inode", "inode", "block", "block", "bytes"))
        if kind == "bytes":
            position = choices.pick(blocks) * layout.block_size + choices.below(1024)
            part = choices.take(1 + choices.below(8))
            layout.data[position : position + len(part)] = part
            continue
        at = {
            "super": 1024,
            "group": layout.descriptor(choices.below(layout.groups)),
            "inode": layout.inode(choices.pick(inodes)),
            "block": choices.pick(blocks) * layout.block_size,
        }[kind]
        offset, length = choices.pick(_FIELDS[kind])
        old = int.from_bytes(layout.data[at + offset : at + offset + length], "little")
        value = choices.nasty(length, old, others) & (1 << 8 * length) - 1
        layout.data[at + offset : at + offset + length] = value.to_bytes(length, "little")
    if choices.below(8):
        layout.seal()
    image = sparse(layout.data)
    trio.run(serve, image, None, [], [])
    trio.run(serve, image, choices, [ino for ino in inodes if ino not in directories], directories)


def _node_of(path: str) -> bytes:
    at = sound().at(path) + 40
    return bytes(sound().data[at : at + 60])


TARGETS = [
    Target("extents", extents, lambda: [
        b"", bytes([*b"\0\1\0\0\0\0" * 4]), bytes([2, 3, 0, 0]) + bytes(range(60)), bytes([7, 1, 0, 0, 0]) * 12,
    ], 400),
    Target("inline-data", inline, lambda: [
        bytes([0]) + _node_of("file"), bytes([1]) + _node_of("dir") + bytes([1, 91]) + bytes(92) + bytes([2]),
    ], 200),
    Target("checksums", checksums, lambda: [b"", struct.pack("<IIB", 7, 9, 0) + struct.pack("<HHHH", _MAGIC, 1, 84, 0)],
           120),
    Target("ext4-writes", ext4_writes, lambda: [
        bytes([0, 1]) + bytes(range(40)), *(bytes([2, kind, 1, field, 3, kind, 2, field, 4, 1]) + bytes(range(60))
        for kind in range(8) for field in range(0, 20, 5)),
    ], 300),
]  # fmt: skip

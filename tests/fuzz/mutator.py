"""Damages a file system in known places: a structure, a field of it, and a value that often breaks parsers."""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

from mystfuse.ext2.block_map import map_blocks
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock
from tests.fuzz.harness import Choices
from tests.fuzz.images import SparseImage, load

ROOT = 2
Fields = tuple[tuple[int, int], ...]
"""Fields of each structure as (byte offset, bytes)."""

SUPERBLOCK: Fields = (
    (0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 4), (24, 4), (32, 4), (40, 4), (58, 2), (76, 4), (80, 2), (82, 2),
    (84, 4), (88, 2), (92, 4), (96, 4), (100, 4), (206, 2),
)  # fmt: skip
DESCRIPTOR: Fields = ((0, 4), (4, 4), (8, 4), (12, 2), (14, 2), (16, 2))
INODE: Fields = (
    (0, 2), (2, 2), (4, 4), (8, 4), (16, 4), (20, 4), (24, 2), (26, 2), (28, 4), (32, 4), (100, 4), (104, 4), (108, 4),
    (120, 2), (122, 2), (128, 2), (132, 4), (136, 4), (140, 4), (160, 4),
)  # fmt: skip
ENTRY: Fields = ((0, 4), (4, 2), (6, 1), (7, 1), (8, 1), (9, 1), (8, 4))
INDEX: Fields = ((0x18, 4), (0x1C, 1), (0x1D, 1), (0x1E, 1), (0x20, 2), (0x22, 2), (0x24, 4), (0x28, 4), (0x2C, 4))
"""Fields of a dx_root: reserved_zero, hash_version, info_length, indirect_levels, limit, count, block, then hash and
block."""
XATTR_HEADER: Fields = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 4))
XATTR_ENTRY: Fields = ((0, 1), (1, 1), (2, 2), (4, 4), (8, 4), (12, 4), (16, 4))


class Layout(NamedTuple):
    """The byte offsets of all structures in a sound image."""

    superblock: Superblock
    table: int
    groups: int
    bitmaps: list[int]
    metadata: list[int]
    """Numbers of the metadata's blocks."""
    inodes: dict[int, int]
    """The offset of each inode in use."""
    directories: dict[int, list[int]]
    """The block numbers of each directory."""
    indirect: list[int]
    """Block numbers."""
    xattr_blocks: list[int]
    data: list[int]
    """Block numbers of file data."""


@cache
def layout(name: str) -> Layout:
    """The layout of one of the images."""
    image = load(name)
    superblock = Superblock.parse(image.get(1024, 1024))
    size = superblock.block_size

    def read(number: int) -> bytes:
        return image.get(number * size, size)

    blocks = Blocks(read)
    filesystem = FileSystem(superblock)
    groups = [filesystem.groups.descriptor(blocks, group) for group in range(superblock.groups_count)]
    found = Layout(superblock, (superblock.s_first_data_block + 1) * size, len(groups), [], [0, 1], {}, {}, [], [], [])
    for group, descriptor in enumerate(groups):
        found.bitmaps.extend([descriptor.bg_block_bitmap, descriptor.bg_inode_bitmap])
        found.metadata.extend(descriptor[:3])
        for index in range(superblock.s_inodes_per_group):
            at = descriptor.bg_inode_table * size + index * superblock.s_inode_size
            ino = group * superblock.s_inodes_per_group + index + 1
            if (ino != ROOT and ino < superblock.s_first_ino) or not image.number(at + 26, 2):
                continue
            found.inodes[ino] = at
            inode = filesystem.inode(blocks, ino)
            if inode.i_file_acl:
                found.xattr_blocks.append(inode.i_file_acl)
            pointers = struct.unpack("<15I", inode.i_block)
            if inode.is_directory:
                numbers = map_blocks(superblock, blocks, inode, 0, min(inode.size // size, 12))
                found.directories[ino] = [number for number in numbers if number]
            elif inode.is_regular:
                found.indirect.extend(number for number in pointers[12:] if number)
                found.data.extend(number for number in pointers[:12] if number)
    return found


def mutate(image: SparseImage, name: str, choices: Choices) -> None:
    """Damage ``image``, a copy of the image of this name."""
    place = layout(name)
    superblock = place.superblock
    size = superblock.block_size
    limits = (superblock.s_blocks_count, superblock.s_inodes_count, size, superblock.s_blocks_per_group)
    pointers = (*place.metadata[:12], *place.indirect[:6], *place.xattr_blocks, *place.data[:4],
                *place.directories[ROOT], superblock.s_blocks_count - 1, superblock.s_blocks_count)  # fmt: skip

    def field(base: int, fields: Fields, others: tuple[int, ...]) -> None:
        offset, length = choices.pick(fields)
        old = image.number(base + offset, length)
        image.put_number(base + offset, length, choices.nasty(length, old, others))

    inodes = list(place.inodes.values())
    directory = choices.pick(list(place.directories.values()))
    match choices.below(14):
        case 0:
            field(1024, SUPERBLOCK, limits)
        case 1:
            field(place.table + 32 * choices.below(min(place.groups, 256)), DESCRIPTOR, (*pointers, *limits))
        case 2:
            fill = choices.pick((b"\0", b"\xff", b"\xf0"))
            count = choices.pick((1, 1, 2, len(place.bitmaps)))
            first = choices.below(len(place.bitmaps))
            for number in place.bitmaps[first : first + count]:
                image.put(number * size, fill * choices.pick((1, 16, size)))
        case 3 | 4:
            field(choices.pick(inodes), INODE, (*limits, *pointers, 0o040755, 0o100644, 0o120777, 0o060600))
        case 5 | 6:
            position = choices.pick(inodes) + 40 + 4 * choices.below(15)
            image.put_number(position, 4, choices.pick(pointers) if choices.below(2) else choices.number(4))
        case 7:
            if place.indirect:
                position = choices.pick(place.indirect) * size + 4 * choices.pick(
                    (0, 1, 2, size // 4 - 1, choices.below(64))
                )
                image.put_number(position, 4, choices.pick(pointers) if choices.below(4) else choices.number(4))
        case 8 | 9 | 10:
            block = choices.pick(directory) * size
            position = block
            for _ in range(choices.below(8)):
                rec_len = image.number(position + 4, 2)
                if rec_len < 12 or position + rec_len >= block + size:
                    break
                position += rec_len
            field(position, ENTRY, (*list(place.inodes)[:12], *limits, 0x2E, 0x2F, 0x2E2E, 12, 24))
        case 11:
            field(directory[0] * size, INDEX, limits)
            if choices.below(2):
                image.put_number(place.inodes[choices.pick(list(place.directories))] + 32, 4, 0x1000)
        case 12:
            if place.xattr_blocks and choices.below(2):
                block = choices.pick(place.xattr_blocks) * size
                if choices.below(2):
                    field(block, XATTR_HEADER, limits)
                else:
                    field(block + 32 + choices.pick((0, 20, 24, 32)), XATTR_ENTRY, limits)
            else:
                field(choices.pick(inodes) + 160 + choices.pick((0, 4, 24)), XATTR_ENTRY, limits)
        case 13:
            where = choices.pick((1024, place.table, choices.pick(inodes), choices.pick(directory) * size))
            image.put(where + choices.below(256), choices.take(1 + choices.below(8)))

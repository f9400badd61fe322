"""The places of an ext4 file system's structures, found without the code under test, and their checksums made anew.

Damage that leaves checksums as they were shows that they are verified; damage behind fresh checksums reaches the code
that takes structures apart. ``Ext4Layout`` finds every structure with a checksum in the sound file system, so that each
can be sealed again whatever has been done to it. Sources: Documentation/filesystems/ext4/*.rst.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from struct import pack, unpack_from

from mystfuse.kernels.checksums import crc16, crc32c
from tests.corruption.bases import Layout

EXTENTS, INLINE, INDEX, EA_INODE = 0x80000, 0x10000000, 0x1000, 0x200000
"""i_flags."""
METADATA_CSUM, UNINIT_BG = 0x400, 0x10
"""s_feature_ro_compat."""
CSUM_SEED, IS_64BIT, META_BG = 0x2000, 0x80, 0x10
"""s_feature_incompat."""
ORPHAN_FILE = 0x1000
"""s_feature_compat."""
_ONES = 0xFFFFFFFF

Seal = Callable[[], None]


class Ext4Layout(Layout):
    """An ext4 file system to be damaged.

    Args:
        is_recovering: its journal is to be replayed: metadata in their places may be old, and not match.
    """

    def __init__(self, data: bytes, is_recovering: bool = False) -> None:
        super().__init__(data)
        self.sound = data
        self._blocks_per_group = self.get("<I", 1024 + 32)
        self.compat, self.incompat, self.ro_compat = unpack_from("<III", data, 1024 + 92)
        self.descriptor_size = self.get("<H", 1024 + 254) if self.incompat & IS_64BIT else 32
        self.has_checksums = bool(self.ro_compat & METADATA_CSUM)
        self.tree_blocks: dict[int, list[tuple[int, int]]] = {}
        """inode number -> (block number, depth) of its extent tree, the upper ones first."""
        self._seals: list[tuple[range, Seal]] = []
        self._is_recovering = is_recovering
        self._add_groups()
        if self.has_checksums:
            self._add_rest()
        self._seals.append((range(1024, 2048), self._seal_super))

    def seal(self, everything: bool = False) -> None:
        """Give every structure that has changed its checksum: bitmaps before descriptors."""
        for where, seal in self._seals:
            if everything or self.data[where.start : where.stop] != self.sound[where.start : where.stop]:
                seal()

    @property
    def is_covered(self) -> bool:
        """Whether the damage is in metadata with checksums alone, the superblock's own left out."""
        if not self.has_checksums or self._is_recovering:
            return False
        left = bytearray(self.data)
        for where, _ in self._seals[:-1]:
            left[where.start : where.stop] = self.sound[where.start : where.stop]
        return left == self.sound

    def seal_as(self, ino: int, block: int) -> None:
        """Count a block as one of an inode's extent tree from now on."""
        where = range(block * self.block_size, (block + 1) * self.block_size)
        # Behind whatever else it may have been, but in front of the superblock.
        self._seals.insert(-1, (where, lambda: self._seal_extents(ino, block)))

    # -- Where things are.

    def descriptor(self, group: int = 0) -> int:
        """The byte offset of a group descriptor. Like the other places, that in the sound file system."""
        per_block = self.block_size // self.descriptor_size
        if not self.incompat & META_BG:
            # With bigalloc the first data block is 0, even where the superblock is in block 1.
            return (1024 // self.block_size + 1) * self.block_size + group * self.descriptor_size
        meta, index = divmod(group, per_block)
        first = self.first_data_block + meta * per_block * self._blocks_per_group
        has_copy = meta * per_block in (0, 1) or any(
            meta * per_block == base**power for base in (3, 5, 7) for power in range(1, 9)
        )
        return (first + has_copy) * self.block_size + index * self.descriptor_size

    def place(self, group: int, which: int) -> int:
        """The block number of a group's block bitmap (0), inode bitmap (1), inode table (2)."""
        at = self.descriptor(group) + 4 * which
        (number,) = unpack_from("<I", self.sound, at)
        return number | (unpack_from("<I", self.sound, at + 32)[0] << 32 if self.descriptor_size > 32 else 0)

    def _wide(self, low: int, high: int, form: str) -> int:
        value = self.get("<I", low)
        return value | self.get(form, high) << 32 if self.incompat & IS_64BIT else value

    def bitmap(self, group: int, which: int) -> int:
        return self.place(group, which) * self.block_size

    def inode(self, ino: int) -> int:
        group, index = divmod(ino - 1, self.inodes_per_group)
        return self.place(group, 2) * self.block_size + index * self.inode_size

    def flags(self, ino: int) -> int:
        return self.get("<I", self.inode(ino) + 32)

    def runs(self, ino: int) -> Iterator[tuple[int, int, int]]:
        """(first block of the file, first block, blocks) of an inode with extents."""
        yield from self._runs_of(self.inode(ino) + 40)

    def _runs_of(self, node: int) -> Iterator[tuple[int, int, int]]:
        _, count, _, depth = unpack_from("<HHHH", self.sound, node)
        for entry in range(node + 12, node + 12 + 12 * count, 12):
            if depth:
                low, high = unpack_from("<IH", self.sound, entry + 4)
                yield from self._runs_of((low | high << 32) * self.block_size)
            else:
                logical, length, high, low = unpack_from("<IHHI", self.sound, entry)
                yield logical, low | high << 32, length - 32768 if length > 32768 else length

    def blocks_in(self, ino: int) -> list[int]:
        """The block numbers of an inode's blocks in the sound file system; not of files with indirect blocks."""
        (flags,) = unpack_from("<I", self.sound, self.inode(ino) + 32)
        if flags & INLINE:
            return []
        if flags & EXTENTS:
            return [first + index for _, first, length in self.runs(ino) for index in range(length)]
        return [number for number in unpack_from("<12I", self.sound, self.inode(ino) + 40) if number]

    def block(self, ino: int, index: int = 0) -> int:
        return self.blocks_in(ino)[index] * self.block_size

    def pointer_of(self, path: str, index: int = 0) -> int:
        return self.blocks_in(self.number(path))[index]

    def blocks_of(self, ino: int) -> int:
        return len(self.blocks_in(ino))

    def find(self, ino: int, name: bytes, blocks: int = 12) -> tuple[int, int]:
        if not self.flags(ino) & INLINE:
            return super().find(ino, name, blocks)
        for start, end in self.inline_areas(ino):
            position = start
            while position < end:
                child, rec_len, name_len = unpack_from("<IHB", self.data, position)
                if child and self.data[position + 8 : position + 8 + name_len] == name:
                    return position, child
                assert rec_len, "an entry of no length"
                position += rec_len
        raise AssertionError(f"no {name!r} in inode {ino}")

    def inline_areas(self, ino: int) -> list[tuple[int, int]]:
        """Where an inline directory's entries are: behind the number of its parent in i_block, and in system.data."""
        at = self.inode(ino)
        areas = [(at + 44, at + 100)]
        extra = at + 128 + self.get("<H", at + 128)
        position = extra + 4
        while self.get("<I", position):
            name_len, index, offset, _, size = unpack_from("<BBHII", self.data, position)
            if index == 7 and self.data[position + 16 : position + 20] == b"data" and size:
                areas.append((extra + 4 + offset, extra + 4 + offset + size))
            position += 16 + (name_len + 3 & ~3)
        return areas

    def xattr_number(self, path: str) -> int:
        """i_file_acl."""
        at = self.at(path)
        return self._wide(at + 104, at + 118, "<H")

    def xattr_block(self, path: str) -> int:
        number = self.xattr_number(path)
        assert number
        return number * self.block_size

    # -- Checksums.

    @property
    def _seed(self) -> int:
        if self.incompat & CSUM_SEED:
            return self.get("<I", 1024 + 0x270)
        return crc32c(bytes(self.data[1024 + 104 : 1024 + 120]), _ONES)

    def _inode_seed(self, ino: int) -> int:
        return crc32c(pack("<I", ino) + self.data[self.inode(ino) + 100 : self.inode(ino) + 104], self._seed)

    def _add(self, start: int, size: int, seal: Seal) -> None:
        """Note a structure, whose checksum has to be right already."""
        before = self.data[start : start + size]
        seal()
        if self._is_recovering:
            # What is in the journal is newer: it is left alone.
            if self.data[start : start + size] != before:
                self.data[start : start + size] = before
                return
        else:
            assert self.data[start : start + size] == before, f"the checksum at byte {start} is another"
        self._seals.append((range(start, start + size), seal))

    def _seal_super(self) -> None:
        if self.has_checksums:
            self.put("<I", 1024 + 1020, crc32c(bytes(self.data[1024:2044]), _ONES))

    def _add_groups(self) -> None:
        for group in range(self.groups):
            if self.has_checksums:
                self._add_bitmaps(group)
        for group in range(self.groups):
            start = self.descriptor(group)
            self._add(start, self.descriptor_size, lambda group=group: self._seal_descriptor(group))

    def _add_bitmaps(self, group: int) -> None:
        flags = self.get("<H", self.descriptor(group) + 18)
        sizes = self.get("<I", 1024 + 36) // 8, self.inodes_per_group // 8
        # An uninitialised bitmap is not read.
        for which, size, uninit in ((0, sizes[0], 2), (1, sizes[1], 1)):
            if not flags & uninit:
                seal = lambda which=which, size=size: self._seal_bitmap(group, which, size)  # noqa: E731
                self._add(self.bitmap(group, which), size, seal)

    def _seal_bitmap(self, group: int, which: int, size: int) -> None:
        start, at = self.bitmap(group, which), self.descriptor(group)
        crc = crc32c(bytes(self.data[start : start + size]), self._seed)
        self.put("<H", at + 24 + 2 * which, crc & 0xFFFF)
        if self.descriptor_size > 32:
            self.put("<H", at + 56 + 2 * which, crc >> 16)

    def _seal_descriptor(self, group: int) -> None:
        start = self.descriptor(group)
        data = bytes(self.data[start : start + self.descriptor_size])
        if self.has_checksums:
            crc = crc32c(pack("<I", group) + data[:30] + b"\0\0" + data[32:], self._seed) & 0xFFFF
        elif self.ro_compat & UNINIT_BG:
            crc = crc16(bytes(self.data[1024 + 104 : 1024 + 120]) + pack("<I", group) + data[:30] + data[32:], 0xFFFF)
        else:
            return
        self.put("<H", start + 30, crc)

    def _add_rest(self) -> None:
        for ino in range(1, self.inodes_count + 1):
            if not any(self.data[self.inode(ino) : self.inode(ino) + 128]):
                continue
            # Blocks first: an inode's checksum covers none of them.
            mode, flags = self.get("<H", self.inode(ino)), self.flags(ino)
            links = self.get("<H", self.inode(ino) + 26)
            if links and not self._is_recovering:
                self._add_blocks(ino, mode, flags)
            self._add(self.inode(ino), self.inode_size, lambda ino=ino: self._seal_inode(ino))
        if self.compat & ORPHAN_FILE:
            ino = self.get("<I", 1024 + 0x280)
            for number in self.blocks_in(ino):
                self._add(
                    number * self.block_size,
                    self.block_size,
                    lambda ino=ino, number=number: self._seal_orphans(ino, number),
                )

    def _add_blocks(self, ino: int, mode: int, flags: int) -> None:
        size = self.block_size
        if flags & EXTENTS and (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or self.get("<I", self.inode(ino) + 28)):
            self.tree_blocks[ino] = list(self._nodes_below(self.inode(ino) + 40))
            for number, _ in self.tree_blocks[ino]:
                self._add(number * size, size, lambda number=number: self._seal_extents(ino, number))
        if stat.S_ISDIR(mode):
            for logical, number in enumerate(self.blocks_in(ino)):
                self._add(number * size, size, self._directory_seal(ino, number, not logical and bool(flags & INDEX)))
        acl = self._wide(self.inode(ino) + 104, self.inode(ino) + 118, "<H")
        if acl:
            self._add(acl * size, size, lambda: self._seal_xattrs(acl))

    def _nodes_below(self, node: int) -> Iterator[tuple[int, int]]:
        _, count, _, depth = unpack_from("<HHHH", self.sound, node)
        for entry in range(node + 12, node + 12 + 12 * count if depth else 0, 12):
            low, high = unpack_from("<IH", self.sound, entry + 4)
            yield low | high << 32, depth - 1
            yield from self._nodes_below((low | high << 32) * self.block_size)

    def _seal_inode(self, ino: int) -> None:
        at, size = self.inode(ino), self.inode_size
        is_wide = size > 128 and self.get("<H", at + 128) >= 4
        self.put("<H", at + 124, 0)
        if is_wide:
            self.put("<H", at + 130, 0)
        crc = crc32c(bytes(self.data[at : at + size]), self._inode_seed(ino))
        self.put("<H", at + 124, crc & 0xFFFF)
        if is_wide:
            self.put("<H", at + 130, crc >> 16)

    def _seal_extents(self, ino: int, number: int) -> None:
        start = number * self.block_size
        # Whatever eh_max says now, the checksum is behind it, if there is room.
        end = start + 12 + 12 * min(self.get("<H", start + 4), (self.block_size - 16) // 12)
        self.put("<I", end, crc32c(bytes(self.data[start:end]), self._inode_seed(ino)))

    def _directory_seal(self, ino: int, number: int, is_root: bool) -> Seal:
        """What seals a block of a directory, as what it is in the sound file system."""
        start, size = number * self.block_size, self.block_size
        # A block of the index may have been one of names, and have its tail still.
        first, rec_len = unpack_from("<IH", self.sound, start)
        if is_root:
            return lambda: self._seal_index(ino, start, 32)
        if not first and rec_len == size:
            return lambda: self._seal_index(ino, start, 8)
        return lambda: self._seal_names(ino, start)

    def _seal_names(self, ino: int, start: int) -> None:
        tail = start + self.block_size - 12
        self.put("<I", tail + 8, crc32c(bytes(self.data[start:tail]), self._inode_seed(ino)))

    def _seal_index(self, ino: int, start: int, counts: int) -> None:
        limit, count = unpack_from("<HH", self.data, start + counts)
        end, tail = start + counts + 8 * min(count, (self.block_size - 40) // 8), start + counts + 8 * limit
        if tail + 8 <= start + self.block_size:
            covered = bytes(self.data[start:end] + self.data[tail : tail + 4]) + bytes(4)
            self.put("<I", tail + 4, crc32c(covered, self._inode_seed(ino)))

    def _seal_xattrs(self, number: int) -> None:
        start = number * self.block_size
        self.put("<I", start + 16, 0)
        covered = pack("<Q", number) + self.data[start : start + self.block_size]
        self.put("<I", start + 16, crc32c(covered, self._seed))

    def _seal_orphans(self, ino: int, number: int) -> None:
        start, end = number * self.block_size, (number + 1) * self.block_size - 8
        crc = crc32c(pack("<Q", number) + self.data[start:end], self._inode_seed(ino))
        self.put("<I", end + 4, crc)


def a_block(layout: Ext4Layout, source: random.Random) -> int:
    """A block number that a structure should not have: of metadata, of another file, free, or outside."""
    group = source.randrange(layout.groups)
    choice = source.randrange(8)
    if choice < 2:
        return source.choice((0, 1, layout.blocks_count - 1, layout.blocks_count, 0xFFFFFFFF, 1 << 32, (1 << 48) - 1))
    if choice < 4:
        return layout.place(group, source.randrange(3)) + source.randrange(3)
    if choice < 6:
        trees = [number for blocks in layout.tree_blocks.values() for number, _ in blocks]
        return source.choice(trees or [layout.pointer_of("direct")])
    if choice == 6:
        return layout.pointer_of(source.choice(("direct", "htree", "dir", "pieces", "")))
    return source.randrange(layout.blocks_count)

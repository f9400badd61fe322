"""Block groups: the table of group descriptors, and where a group's own metadata is."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing, Transaction
from mystfuse.ext2.checksum import check_descriptor_16, set_descriptor_16
from mystfuse.ext2.superblock import GROUP_DESCRIPTOR_SIZE, Superblock
from mystfuse.ext2.system_zone import SystemZone, copies_in

_LAYOUT = struct.Struct("<IIIHHHH12x")
_HIGH = struct.Struct("<IIIHHHHIHH")
"""The second half, from byte 32 on: the upper halves of the same fields, of bg_itable_unused, and then
bg_exclude_bitmap_hi, bg_block_bitmap_csum_hi, bg_inode_bitmap_csum_hi."""
_CHECKSUMS = struct.Struct("<HHH")  # bg_block_bitmap_csum_lo bg_inode_bitmap_csum_lo bg_itable_unused_lo
_CHECKSUMS_OFFSET = 24
INODE_UNINIT, BLOCK_UNINIT = 1, 2
"""bg_flags: a bitmap has never been written (fs/ext4/ext4.h, EXT4_BG_INODE_UNINIT)."""
_FLAGS_OFFSET = 18
_SHORT = struct.Struct("<H")
_COUNTS_HIGH_OFFSET, _UNUSED_OFFSET, _UNUSED_HIGH_OFFSET = 44, 28, 50
_BITMAP_SUM_OFFSETS = {"block": (24, 56), "inode": (26, 58)}
"""Of the lower and upper half of bg_block_bitmap_csum and bg_inode_bitmap_csum."""
_COUNTS = struct.Struct("<HHH")  # bg_free_blocks_count bg_free_inodes_count bg_used_dirs_count
_COUNTS_OFFSET = 12
_COUNTS_OF_DESCRIPTOR = struct.Struct("<12xHHH14x")
_MAX_PLACES = 65536
"""Groups whose places are cached."""
_GROUPS_AT_ONCE = 4096
"""Groups whose places are found in one step, some hundredths of a second."""
MAX_GROUPS_COUNTED = 1 << 19
"""Groups of the largest file system with blocks of 1 KiB and full groups: 16 MiB of descriptors."""


class GroupDescriptor(NamedTuple):
    """32 bytes, or 64 with 64bit, little-endian: kernel, fs/ext4/ext4.h ``struct ext4_group_desc``."""

    bg_block_bitmap: int
    bg_inode_bitmap: int
    bg_inode_table: int
    bg_free_blocks_count: int
    bg_free_inodes_count: int
    bg_used_dirs_count: int
    bg_flags: int
    """Of ext4 with checksums of descriptors; else 0."""
    bg_itable_unused: int
    """How many of the last inodes have never been used."""
    bg_block_bitmap_csum: int
    bg_inode_bitmap_csum: int

    @property
    def has_block_bitmap(self) -> bool:
        """Whether it has been written: else only metadata is in use in this group."""
        return not self.bg_flags & BLOCK_UNINIT


class GroupCounts(NamedTuple):
    """The free blocks and inodes of a group, and the number of directories with an inode there."""

    free_blocks: int
    free_inodes: int
    used_dirs: int


class GroupTable:
    """The group descriptors of a file system. It caches the places of bitmaps and inode tables, which never change."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self._last_group = superblock.groups_count - 1
        self._size = superblock.descriptor_size
        self._per_block = superblock.descriptors_per_block
        self._is_extended = superblock.is_extended
        self._has_checksum_16 = "uninit_bg" in superblock.features and superblock.checksums is None
        self._has_flags = self._has_checksum_16 or superblock.checksums is not None
        self.has_wide_checksums = self._size > GROUP_DESCRIPTOR_SIZE
        """Whether bitmaps have checksums of 32 bits, not 16."""
        self._zone: SystemZone | None = None
        self._zone_groups: list[list[tuple[int, int]]] = []
        """What ``_system_zone`` knows of the first groups so far. It never changes."""
        self.known_places: dict[int, GroupDescriptor] = {}
        """Descriptors as they were when their places were checked; their counts may be old."""
        self._metadata: dict[int, list[tuple[int, int]]] = {}
        """``metadata_runs`` of the same groups, which every write needs."""

    def first_block(self, group: int) -> int:
        """The number of a group's first block."""
        return self.superblock.s_first_data_block + group * self.superblock.s_blocks_per_group

    def size(self, group: int) -> int:
        """How many blocks a group has; the last one may be shorter."""
        if group < self._last_group:
            return self.superblock.s_blocks_per_group
        return self.superblock.s_blocks_count - self.first_block(group)

    def locate_block(self, number: int) -> tuple[int, int]:
        """The group of a block, and its bit in the group's block bitmap."""
        return divmod(number - self.superblock.s_first_data_block, self.superblock.s_blocks_per_group)

    def locate_inode(self, ino: int) -> tuple[int, int]:
        """The group of an inode, and its index in the group's inode table and inode bitmap."""
        return divmod(ino - 1, self.superblock.s_inodes_per_group)

    def block_near_inode(self, ino: int) -> int:
        """The first block of an inode's group: the place of its blocks when nothing else decides (fs/ext2/inode.c,
        ext2_find_near)."""
        return self.first_block(self.locate_inode(ino)[0])

    def _locate(self, group: int) -> tuple[int, int]:
        """Where the descriptor of a group is: (block number, byte offset in the block)."""
        position, index = divmod(group, self._per_block)
        number, offset = self.superblock.descriptor_block(position), index * self._size
        if not number < self.superblock.s_blocks_count:
            raise CorruptFilesystem(
                f"group {group}: its descriptor would be outside the file system, in block {number}"
            )
        return number, offset

    def want_descriptors(self, blocks: Blocks, groups: Iterable[int]) -> None:
        """Make sure that the descriptors of these groups are in memory.

        Raises:
            BlocksMissing: naming every block that is needed.
            CorruptFilesystem: one of them would be outside the file system.
        """
        blocks.want({self._locate(group)[0] for group in groups})

    def want_places(self, blocks: Blocks, groups: Iterable[int]) -> None:
        """Make sure that the descriptors for ``places`` are in memory; raises as ``want_descriptors``."""
        self.want_descriptors(blocks, (group for group in groups if group not in self.known_places))

    def descriptor(self, blocks: Blocks, group: int) -> GroupDescriptor:
        """The descriptor of group number ``group``.

        Raises:
            BlocksMissing: its block is not in memory.
            CorruptFilesystem: its bitmaps or its inode table are not inside the group, or its checksum does not match.
        """
        number, offset = self._locate(group)
        block = blocks.block(number)
        if self._is_extended:
            data = bytes(block[offset : offset + self._size])
            if blocks.is_sealed(number, offset):
                self._check_sum(group, data)
            descriptor = self._parse_extended(data)
        else:
            descriptor = GroupDescriptor._make((*_LAYOUT.unpack_from(block, offset)[:6], 0, 0, 0, 0))
        places = self.known_places.get(group)
        if places is None or descriptor[:3] != places[:3]:
            self._check_places(group, descriptor)
            if len(self.known_places) >= _MAX_PLACES:
                self.known_places.clear()
                self._metadata.clear()
            # In this order: memory may run out in between, and places that are known are not looked at again.
            if not self._is_extended:
                self._metadata[group] = self._find_metadata(group, descriptor)
            self.known_places[group] = descriptor
        return descriptor

    def _check_sum(self, group: int, data: bytes) -> None:
        """Raise CorruptFilesystem if the checksum of a descriptor does not match."""
        checksums = self.superblock.checksums
        if checksums is not None:
            checksums.check_descriptor(group, data)
        elif self._has_checksum_16:
            check_descriptor_16(self.superblock.s_uuid.bytes, group, data)

    def _parse_extended(self, data: bytes) -> GroupDescriptor:
        """A descriptor of ext4."""
        fields = _LAYOUT.unpack_from(data)
        *more, unused = _CHECKSUMS.unpack_from(data, _CHECKSUMS_OFFSET)
        flags = fields[6] if self._has_flags else 0
        if len(data) == GROUP_DESCRIPTOR_SIZE:
            return GroupDescriptor._make((*fields[:6], flags, unused if flags else 0, *more))
        high = _HIGH.unpack_from(data, GROUP_DESCRIPTOR_SIZE)
        numbers = [low | upper << 32 for low, upper in zip(fields[:3], high[:3], strict=True)]
        counts = [low | upper << 16 for low, upper in zip(fields[3:6], high[3:6], strict=True)]
        sums = [low | upper << 16 for low, upper in zip(more, high[8:], strict=True)]
        unused |= high[6] << 16
        return GroupDescriptor._make((*numbers, *counts, flags, unused if flags else 0, *sums))

    def block_bitmap(self, blocks: Blocks, group: int) -> Block | None:
        """The bitmap of a group's blocks, or clusters; None where it has never been written.

        Raises:
            BlocksMissing: it is not in memory.
            CorruptFilesystem: as ``descriptor``, or its checksum does not match.
        """
        descriptor = self.descriptor(blocks, group)
        if not descriptor.has_block_bitmap:
            return None
        block = blocks.block(descriptor.bg_block_bitmap)
        superblock = self.superblock
        if superblock.checksums is not None:
            superblock.checksums.check_bitmap(
                "block bitmap",
                group,
                superblock.s_blocks_per_group // superblock.blocks_per_cluster,
                block,
                descriptor.bg_block_bitmap_csum,
                self.has_wide_checksums,
            )
        return block

    def group_counts(self, blocks: Blocks, group: int) -> tuple[int, int, int]:
        """The present free blocks, free inodes and directories of a group, as its descriptor has them.

        Raises:
            BlocksMissing, CorruptFilesystem: as ``want_descriptors``.
        """
        number, offset = self._locate(group)
        return self._counts_at(blocks.block(number), offset)

    def _counts_at(self, block: Block, offset: int) -> tuple[int, int, int]:
        """The counts of a descriptor at byte ``offset`` of a block."""
        free_blocks, free_inodes, used_dirs = _COUNTS.unpack_from(block, offset + _COUNTS_OFFSET)
        if self.has_wide_checksums:
            high = _COUNTS.unpack_from(block, offset + _COUNTS_HIGH_OFFSET)
            free_blocks, free_inodes, used_dirs = (
                free_blocks | high[0] << 16,
                free_inodes | high[1] << 16,
                used_dirs | high[2] << 16,
            )
        return free_blocks, free_inodes, used_dirs

    def places(self, blocks: Blocks, group: int) -> GroupDescriptor:
        """The same for the places of bitmaps and inode table alone; the counts may be old."""
        return self.known_places.get(group) or self.descriptor(blocks, group)

    def _check_places(self, group: int, descriptor: GroupDescriptor) -> None:
        first = self.first_block(group)
        end = first + self.size(group)
        if "flex_bg" in self.superblock.features:
            # Anywhere (Documentation/filesystems/ext4/blockgroup.rst).
            first, end = self.superblock.s_first_data_block, self.superblock.s_blocks_count
        # Without flex_bg they are in the group itself (fs/ext4/super.c, ext4_check_descriptors).
        for name, number, count in (
            ("bg_block_bitmap", descriptor.bg_block_bitmap, 1),
            ("bg_inode_bitmap", descriptor.bg_inode_bitmap, 1),
            ("bg_inode_table", descriptor.bg_inode_table, self.superblock.table_blocks),
        ):
            if not (first <= number and number + count <= end and self.superblock.is_data_block(number)):
                raise CorruptFilesystem(f"group {group}: {name} {number} is not inside the group, {first} to {end - 1}")

    def metadata_runs(self, blocks: Blocks, group: int) -> list[tuple[int, int]]:
        """Where a group's own metadata is: (first bit in its block bitmap, count).

        Raises:
            BlocksMissing, CorruptFilesystem: as ``descriptor``.
        """
        runs = self._metadata.get(group)
        if runs is None:
            self.descriptor(blocks, group)
            if self._is_extended:
                self._metadata[group] = self._system_zone(blocks).runs_in(self.first_block(group), self.size(group))
            runs = self._metadata[group]
        return runs

    def _system_zone(self, blocks: Blocks) -> SystemZone:
        """The metadata of all groups of an ext4 file system, read when something is written for the first time: many
        groups in several steps, between which other tasks run.

        Raises:
            BlocksMissing: naming blocks of the descriptor table that are not in memory, or with ``progress`` after a
                step.
            CorruptFilesystem, UnsupportedFeature: as ``descriptor`` and ``counts``.
        """
        if self._zone is None:
            superblock = self.superblock
            self._check_groups_count()
            if len(self._zone_groups) < superblock.groups_count:
                start = len(self._zone_groups)
                groups = range(start, min(start + _GROUPS_AT_ONCE, superblock.groups_count))
                self.want_descriptors(blocks, groups)
                self._zone_groups += [self._runs_of(blocks, group) for group in groups]
                if groups.stop < superblock.groups_count:
                    raise BlocksMissing((), progress=True)
            runs = [(superblock.s_mmp_block, 1)] if superblock.s_mmp_block else []
            if superblock.s_first_data_block:
                runs.append((0, superblock.s_first_data_block))
            self._zone = SystemZone(chain(runs, chain.from_iterable(self._zone_groups)))
            self._zone_groups.clear()
        return self._zone

    def _runs_of(self, blocks: Blocks, group: int) -> list[tuple[int, int]]:
        """A group's own metadata, wherever it is, and the copies in the group: (first block, blocks)."""
        superblock, places = self.superblock, self.places(blocks, group)
        runs = [
            (places.bg_block_bitmap, 1),
            (places.bg_inode_bitmap, 1),
            (places.bg_inode_table, superblock.table_blocks),
        ]
        if copies := copies_in(superblock, group):
            runs.append((self.first_block(group), min(copies, self.size(group))))
        return runs

    def _find_metadata(self, group: int, descriptor: GroupDescriptor) -> list[tuple[int, int]]:
        superblock, first = self.superblock, self.first_block(group)
        runs = [
            (descriptor.bg_block_bitmap - first, 1),
            (descriptor.bg_inode_bitmap - first, 1),
            (descriptor.bg_inode_table - first, superblock.table_blocks),
        ]
        if superblock.group_has_superblock(group):
            runs.append((0, 1 + superblock.descriptor_blocks + superblock.s_reserved_gdt_blocks))
        return runs

    def counts(self, blocks: Blocks) -> list[GroupCounts]:
        """The counts of every group, in order.

        Raises:
            BlocksMissing: naming every block of the descriptor table that is not in memory.
            UnsupportedFeature: there are more groups than mystfuse searches.
        """
        groups = self.superblock.groups_count
        self._check_groups_count()
        if self._is_extended:
            return self._extended_counts(blocks)
        first, _ = self._locate(0)
        last, _ = self._locate(groups - 1)
        table = b"".join(blocks.all(range(first, last + 1)))[: groups * GROUP_DESCRIPTOR_SIZE]
        return [GroupCounts(*counts) for counts in _COUNTS_OF_DESCRIPTOR.iter_unpack(table)]

    def _check_groups_count(self) -> None:
        groups = self.superblock.groups_count
        if groups > MAX_GROUPS_COUNTED:
            raise UnsupportedFeature(
                f"the file system has {groups} groups; mystfuse writes to file systems of at most {MAX_GROUPS_COUNTED}"
            )

    def _extended_counts(self, blocks: Blocks) -> list[GroupCounts]:
        superblock, size = self.superblock, self._size
        found: list[GroupCounts] = []
        numbers = [superblock.descriptor_block(index) for index in range(superblock.descriptor_blocks)]
        for block in blocks.all(numbers):
            for offset in range(0, self._per_block * size, size):
                found.append(GroupCounts(*self._counts_at(block, offset)))
        return found[: superblock.groups_count]

    def change_counts(
        self, transaction: Transaction, group: int, blocks: int = 0, inodes: int = 0, directories: int = 0
    ) -> None:
        """Add ``blocks`` and ``inodes`` to a group's free counts, and ``directories`` to its count of directories.

        Raises:
            CorruptFilesystem: a count would leave its range.
        """
        block, offset = self.change_descriptor(transaction, group)
        free_blocks, free_inodes, used_dirs = self._counts_at(block, offset)
        free_blocks, free_inodes, used_dirs = free_blocks + blocks, free_inodes + inodes, used_dirs + directories
        if not (
            0 <= free_blocks <= self.size(group)
            and 0 <= free_inodes <= self.superblock.s_inodes_per_group
            and 0 <= used_dirs <= self.superblock.s_inodes_per_group
        ):
            raise CorruptFilesystem(
                f"group {group}: its counts would be {free_blocks}, {free_inodes} (free blocks, inodes) and {used_dirs}"
            )
        if self.has_wide_checksums:
            high = free_blocks >> 16, free_inodes >> 16, used_dirs >> 16
            _COUNTS.pack_into(block, offset + _COUNTS_HIGH_OFFSET, *high)
            free_blocks, free_inodes, used_dirs = free_blocks & 0xFFFF, free_inodes & 0xFFFF, used_dirs & 0xFFFF
        _COUNTS.pack_into(block, offset + _COUNTS_OFFSET, free_blocks, free_inodes, used_dirs)

    def change_descriptor(self, transaction: Transaction, group: int) -> tuple[bytearray, int]:
        """The block of a group's descriptor and its offset there, to be changed in place; raises as
        ``want_descriptors``."""
        number, offset = self._locate(group)
        block = transaction.change(number)
        if self._has_flags:
            transaction.seal_later(number, partial(self._seal, group, offset), part=offset)
        return block, offset

    def _seal(self, group: int, offset: int, block: bytearray) -> None:
        """Bring the checksum of a changed descriptor up to date."""
        checksums = self.superblock.checksums
        if checksums is not None:
            checksums.set_descriptor(group, block, offset, self._size)
        else:
            set_descriptor_16(self.superblock.s_uuid.bytes, group, block, offset, self._size)

    def clear_flag(self, transaction: Transaction, group: int, flag: int) -> bool:
        """Take a flag from a descriptor's bg_flags; whether it was there."""
        if not self._has_flags:
            return False
        number, offset = self._locate(group)
        (flags,) = _SHORT.unpack_from(transaction.block(number), offset + _FLAGS_OFFSET)
        if not flags & flag:
            return False
        block, offset = self.change_descriptor(transaction, group)
        _SHORT.pack_into(block, offset + _FLAGS_OFFSET, flags & ~flag)
        return True

    def seal_block_bitmap(self, transaction: Transaction, group: int, bitmap: bytearray) -> None:
        """Bring the checksum of a changed block bitmap up to date, which is in the group's descriptor."""
        bits = self.superblock.s_blocks_per_group // self.superblock.blocks_per_cluster
        self._set_bitmap_sum(transaction, group, "block", bits, bitmap)

    def seal_inode_bitmap(self, transaction: Transaction, group: int, bitmap: bytearray) -> None:
        """The same for an inode bitmap."""
        self._set_bitmap_sum(transaction, group, "inode", self.superblock.s_inodes_per_group, bitmap)

    def _set_bitmap_sum(self, transaction: Transaction, group: int, what: str, bits: int, bitmap: bytearray) -> None:
        assert self.superblock.checksums is not None
        crc = self.superblock.checksums.of_bitmap(bits, bitmap, self.has_wide_checksums)
        block, offset = self.change_descriptor(transaction, group)
        low, high = _BITMAP_SUM_OFFSETS[what]
        _SHORT.pack_into(block, offset + low, crc & 0xFFFF)
        if self.has_wide_checksums:
            _SHORT.pack_into(block, offset + high, crc >> 16)

    def inodes_used(self, blocks: Blocks, group: int) -> int:
        """How many inodes at the start of a group's inode table have ever been used, at most."""
        if not self._has_flags:
            return self.superblock.s_inodes_per_group
        number, offset = self._locate(group)
        block = blocks.block(number)
        (flags,) = _SHORT.unpack_from(block, offset + _FLAGS_OFFSET)
        if flags & INODE_UNINIT:
            return 0
        unused: int = _SHORT.unpack_from(block, offset + _UNUSED_OFFSET)[0]
        if self.has_wide_checksums:
            unused |= _SHORT.unpack_from(block, offset + _UNUSED_HIGH_OFFSET)[0] << 16
        return max(self.superblock.s_inodes_per_group - unused, 0)

    def use_inodes(self, transaction: Transaction, group: int, count: int) -> None:
        """Note that the first ``count`` inodes of a group's inode table may be in use (bg_itable_unused)."""
        if count <= self.inodes_used(transaction, group):
            return
        block, offset = self.change_descriptor(transaction, group)
        unused = self.superblock.s_inodes_per_group - count
        _SHORT.pack_into(block, offset + _UNUSED_OFFSET, unused & 0xFFFF)
        if self.has_wide_checksums:
            _SHORT.pack_into(block, offset + _UNUSED_HIGH_OFFSET, unused >> 16)

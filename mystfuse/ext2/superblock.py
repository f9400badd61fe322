"""The superblock: 1024 bytes at byte 1024 of the file system, little-endian.

Layout: kernel, fs/ext2/ext2.h ``struct ext2_super_block``, and fs/ext4/ext4.h for the later fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from uuid import UUID

from mystfuse.errors import CorruptFilesystem, FormatError, UnsupportedFeature
from mystfuse.ext2.blocks import Blocks, Transaction
from mystfuse.ext2.checksum import MetadataChecksums, set_superblock
from mystfuse.ext2.constants import (
    EXT2_DYNAMIC_REV,
    EXT2_ERROR_FS,
    EXT2_FEATURE_RO_COMPAT_LARGE_FILE,
    EXT2_GOOD_OLD_FIRST_INO,
    EXT2_GOOD_OLD_INODE_SIZE,
    EXT2_GOOD_OLD_REV,
    EXT2_MAX_BLOCK_LOG_SIZE,
    EXT2_MIN_BLOCK_LOG_SIZE,
    EXT2_NDIR_BLOCKS,
    EXT2_SUPER_MAGIC,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
)
from mystfuse.ext2.extended_superblock import ExtendedFields, check_extended
from mystfuse.ext2.features import check_supported, feature_names, of_ext4, only_for_reading
from mystfuse.ext2.name_hash import NameHash
from mystfuse.kernels.checksums import crc32c

GROUP_DESCRIPTOR_SIZE = 32
"""Bytes without 64bit."""
_EXTRA_ISIZE = 32

_LAYOUT = struct.Struct(
    "<IIIII"  # s_inodes_count s_blocks_count s_r_blocks_count s_free_blocks_count s_free_inodes_count
    "I"  # s_first_data_block
    "I4xI4xI"  # s_log_block_size s_blocks_per_group s_inodes_per_group
    "12xHH16x"  # s_magic s_state
    "IHH"  # s_rev_level s_def_resuid s_def_resgid
    "IH2xIII"  # s_first_ino s_inode_size s_feature_compat s_feature_incompat s_feature_ro_compat
    "16s16s"  # s_uuid s_volume_name
    "70xH"  # s_reserved_gdt_blocks
    "124xI"  # (what only ext3 and ext4 use) s_jnl_blocks[16]
)
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_OFFSET = 1020
_FREE_COUNTS_HIGH_OFFSET = 344
_FREE_COUNTS = struct.Struct("<II")  # s_free_blocks_count s_free_inodes_count
_FREE_COUNTS_OFFSET = 12
_REV_LEVEL_OFFSET = 76
_FIRST_INO_OFFSET = 84
_LARGEST_SMALL_FILE = 0x7FFFFFFF
_FEATURE_RO_COMPAT_OFFSET = 100


@dataclass(frozen=True)
class Superblock:
    """The file system's description of itself, checked against the format's limits.

    The free counts are those of the image; for the present ones see ``read_free_counts``.
    """

    s_inodes_count: int
    s_blocks_count: int
    s_r_blocks_count: int
    s_free_blocks_count: int
    s_free_inodes_count: int
    s_first_data_block: int
    s_blocks_per_group: int
    s_inodes_per_group: int
    s_state: int
    s_rev_level: int
    s_def_resuid: int
    s_def_resgid: int
    s_first_ino: int
    s_inode_size: int
    s_uuid: UUID
    s_volume_name: bytes
    s_reserved_gdt_blocks: int
    journal_size: int
    """Bytes of the journal, by the copy of its inode's size in s_jnl_blocks; 0 without has_journal."""
    block_size: int
    """Bytes: 1024 << s_log_block_size."""
    features: frozenset[str]
    descriptor_size: int = GROUP_DESCRIPTOR_SIZE
    """Bytes of a group descriptor."""
    s_first_meta_bg: int = 0
    """With meta_bg, the first block of descriptors that is in its own groups, not behind the superblock."""
    blocks_per_cluster: int = 1
    """What a bit of a block bitmap stands for: more than one block with bigalloc."""
    s_overhead_clusters: int = 0
    s_backup_bgs: tuple[int, int] = (0, 0)
    """With sparse_super2, the groups that have copies; 0 for none."""
    s_mmp_block: int = 0
    s_orphan_file_inum: int = 0
    """With orphan_file, the inode of the file that lists orphans."""
    wanted_extra_isize: int = 0
    """What i_extra_isize of new inodes is at least, if not 0."""
    hidden_inodes: frozenset[int] = frozenset()
    """Inodes that no name may refer to, with numbers as files have them: of project quotas, and of orphans."""
    checksums: MetadataChecksums | None = None
    """What checks metadata that have a crc32c; None without metadata_csum."""
    name_hash: NameHash | None = None
    """How the names of indexed directories are hashed; None without dir_index."""

    @cached_property
    def is_extended(self) -> bool:
        """Whether it has any feature that only ext4 has."""
        return bool(of_ext4(self.features))

    @cached_property
    def new_extra_isize(self) -> int:
        """The i_extra_isize of new inodes: up to and with i_projid, if there is room (fs/ext4/super.c,
        s_want_extra_isize)."""
        return max(min(self.s_inode_size - EXT2_GOOD_OLD_INODE_SIZE, _EXTRA_ISIZE), self.wanted_extra_isize)

    @cached_property
    def has_inline_data(self) -> bool:
        return "inline_data" in self.features

    @cached_property
    def checksum_seed(self) -> int:
        """What crc32c begins with; without metadata_csum, for values of attributes alone (fs/ext4/super.c,
        ext4_init_metadata_csum)."""
        return crc32c(self.s_uuid.bytes, 0xFFFFFFFF) if self.checksums is None else self.checksums.seed

    @cached_property
    def only_for_reading(self) -> list[str]:
        """The features that keep it from being written to, in order."""
        return only_for_reading(self.features)

    @cached_property
    def location(self) -> tuple[int, int]:
        """Where it is: (block number, byte offset in the block)."""
        return divmod(SUPERBLOCK_OFFSET, self.block_size)

    @cached_property
    def size(self) -> int:
        """Bytes of the whole file system."""
        return self.s_blocks_count * self.block_size

    @cached_property
    def groups_count(self) -> int:
        return -(-(self.s_blocks_count - self.s_first_data_block) // self.s_blocks_per_group)

    @cached_property
    def has_errors(self) -> bool:
        """Whether an earlier mount or check has marked the file system as damaged."""
        return bool(self.s_state & EXT2_ERROR_FS)

    @cached_property
    def needs_recovery(self) -> bool:
        """Whether the journal has to be replayed."""
        return "needs_recovery" in self.features

    @cached_property
    def has_filetype(self) -> bool:
        return "filetype" in self.features

    @cached_property
    def descriptor_blocks(self) -> int:
        """Blocks of the group descriptor table."""
        return -(-self.groups_count * self.descriptor_size // self.block_size)

    @cached_property
    def descriptors_per_block(self) -> int:
        return self.block_size // self.descriptor_size

    def descriptor_block(self, index: int) -> int:
        """Where a block of the group descriptor table is: behind the superblock, or with meta_bg in the first of the
        groups that it describes (fs/ext4/super.c, descriptor_loc)."""
        if "meta_bg" not in self.features or index < self.s_first_meta_bg:
            return self.location[0] + 1 + index
        group = index * self.descriptors_per_block
        number = self.s_first_data_block + group * self.s_blocks_per_group + self.group_has_superblock(group)
        # Then block 0 is in front of the superblock.
        return number + (not index and self.block_size == 1024 and not self.s_first_data_block)

    @cached_property
    def table_blocks(self) -> int:
        """Blocks of a group's inode table."""
        return -(-self.s_inodes_per_group * self.s_inode_size // self.block_size)

    @cached_property
    def inodes_per_block(self) -> int:
        return self.block_size // self.s_inode_size

    @cached_property
    def max_file_size(self) -> int:
        """Bytes of the largest file: within the reach of the block map, and of i_blocks, indirect blocks included.

        Source: fs/ext4/super.c (Linux 6.18), ext4_max_bitmap_size, without huge_file.
        """
        per_block = self.block_size // 4
        reached = EXT2_NDIR_BLOCKS + per_block + per_block**2 + per_block**3
        countable = (2**32 - 1) // (self.block_size // 512)
        if reached + 1 + (1 + per_block) + (1 + per_block + per_block**2) <= countable:
            return reached * self.block_size
        left = countable - EXT2_NDIR_BLOCKS - per_block
        indirect = 1
        if left < per_block**2:
            indirect += 1 + -(-left // per_block)
        else:
            left -= per_block**2
            indirect += (1 + per_block) + 1 + -(-left // per_block) + -(-left // per_block**2)
        return (countable - indirect) * self.block_size

    @cached_property
    def max_extents_size(self) -> int:
        """The same for a file with extents: 2^32 - 1 blocks, and without huge_file what i_blocks can count
        (fs/ext4/super.c, ext4_max_size)."""
        blocks = (1 << 32) - 1
        if "huge_file" not in self.features:
            blocks //= self.block_size // 512
        return blocks * self.block_size

    def group_has_superblock(self, group: int) -> bool:
        """Whether a group holds a copy of superblock and descriptors: with sparse_super 0, 1, and powers of 3, 5, 7;
        with sparse_super2 0 and two others (fs/ext4/balloc.c, ext4_bg_has_super)."""
        if "sparse_super2" in self.features:
            return not group or group in self.s_backup_bgs
        if group <= 1 or "sparse_super" not in self.features:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    @cached_property
    def superblock_copies(self) -> int:
        """How many groups hold such a copy; not by a loop over the groups, which can be 800 million."""
        if "sparse_super2" in self.features:
            return 1 + len({group for group in self.s_backup_bgs if 0 < group < self.groups_count})
        if "sparse_super" not in self.features:
            return self.groups_count
        powers: Iterator[int] = (base**exponent for base in (3, 5, 7) for exponent in range(1, 32))
        return min(self.groups_count, 2) + sum(power < self.groups_count for power in powers)

    def is_data_block(self, number: int) -> bool:
        """Whether a block pointer is possible: inside the file system, behind the superblock."""
        return self.s_first_data_block < number < self.s_blocks_count

    def check_fits(self, size: int) -> None:
        """Raise FormatError if ``size`` bytes are too few for the file system."""
        if self.size > size:
            raise FormatError(f"the EXT2 file system has {self.size} bytes, but only {size} are there (truncated?)")

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Superblock:
        """Parse 1024 bytes.

        Raises:
            FormatError: not an EXT2 superblock.
            UnsupportedFeature: a revision, block size, or feature that mystfuse does not have.
            CorruptFilesystem: fields that contradict each other.
        """
        if len(data) < SUPERBLOCK_SIZE:
            raise FormatError(f"EXT2 superblock is cut short: {len(data)} of {SUPERBLOCK_SIZE} bytes")
        (
            inodes_count,
            blocks_count,
            r_blocks_count,
            free_blocks_count,
            free_inodes_count,
            first_data_block,
            log_block_size,
            blocks_per_group,
            inodes_per_group,
            magic,
            state,
            rev_level,
            def_resuid,
            def_resgid,
            first_ino,
            inode_size,
            compat,
            incompat,
            ro_compat,
            uuid,
            volume_name,
            reserved_gdt_blocks,
            jnl_blocks_16,
        ) = _LAYOUT.unpack_from(data)
        if magic != EXT2_SUPER_MAGIC:
            raise FormatError(f"not an EXT2 file system: s_magic is {magic:#06x}, not {EXT2_SUPER_MAGIC:#06x}")
        if rev_level not in (EXT2_GOOD_OLD_REV, EXT2_DYNAMIC_REV):
            raise UnsupportedFeature(f"EXT2 revision {rev_level}; only 0 and 1 are known")
        # Revision 0 has no features, but like the kernel we believe flags that are set.
        features = feature_names(compat, incompat, ro_compat)
        check_supported(features)
        if rev_level == EXT2_GOOD_OLD_REV:
            first_ino, inode_size = EXT2_GOOD_OLD_FIRST_INO, EXT2_GOOD_OLD_INODE_SIZE
        if log_block_size > EXT2_MAX_BLOCK_LOG_SIZE - EXT2_MIN_BLOCK_LOG_SIZE:
            raise CorruptFilesystem(f"EXT2 superblock: s_log_block_size {log_block_size} means blocks over 64 KiB")
        block_size = 1 << EXT2_MIN_BLOCK_LOG_SIZE + log_block_size
        extended = ExtendedFields.parse(data)
        if "64bit" in features:
            (free_blocks_high,) = struct.unpack_from("<I", data, _FREE_COUNTS_HIGH_OFFSET)
            blocks_count |= extended.s_blocks_count_hi << 32
            r_blocks_count |= extended.s_r_blocks_count_hi << 32
            free_blocks_count |= free_blocks_high << 32
        superblock = cls(
            inodes_count,
            blocks_count,
            r_blocks_count,
            free_blocks_count,
            free_inodes_count,
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            state,
            rev_level,
            def_resuid,
            def_resgid,
            first_ino,
            inode_size,
            UUID(bytes=uuid),
            volume_name.rstrip(b"\0"),
            reserved_gdt_blocks,
            jnl_blocks_16 if "has_journal" in features else 0,
            block_size,
            features,
            name_hash=NameHash.parse(data) if "dir_index" in features else None,
            **check_extended(data, extended, features, log_block_size, blocks_per_group, inode_size),
        )
        superblock._check()
        return superblock

    def _check(self) -> None:
        bits_per_block = 8 * self.block_size * self.blocks_per_cluster
        first_data_blocks = (
            {0, 1} if self.block_size == 1024 and "bigalloc" in self.features else {self.block_size == 1024}
        )
        rules = (
            ("s_inode_size", self.s_inode_size, _is_inode_size(self.s_inode_size, self.block_size)),
            ("s_first_data_block", self.s_first_data_block, self.s_first_data_block in first_data_blocks),
            ("s_blocks_count", self.s_blocks_count, self.s_blocks_count > self.s_first_data_block + 1),
            ("s_blocks_per_group", self.s_blocks_per_group, 0 < self.s_blocks_per_group <= bits_per_block),
            ("s_inodes_per_group", self.s_inodes_per_group, 0 < self.s_inodes_per_group <= 8 * self.block_size),
            ("s_first_ino", self.s_first_ino, self.s_first_ino >= EXT2_GOOD_OLD_FIRST_INO),
            ("s_inodes_count", self.s_inodes_count, self.s_inodes_count >= self.s_first_ino),
        )
        for name, value, is_right in rules:
            if not is_right:
                raise CorruptFilesystem(f"EXT2 superblock: {name} {value} is invalid")
        if self.s_inodes_count != self.groups_count * self.s_inodes_per_group:
            raise CorruptFilesystem(
                f"EXT2 superblock: s_inodes_count {self.s_inodes_count} is not {self.groups_count} groups "
                f"of {self.s_inodes_per_group}"
            )
        # Or a small image would have more groups than can be searched (fs/ext2/super.c, ext2_fill_super). With
        # flex_bg, a group's metadata may be in another one.
        if "flex_bg" in self.features:
            table = -(-self.s_inodes_per_group // self.inodes_per_block) + 2
            if self.groups_count * table > self.s_blocks_count:
                raise CorruptFilesystem(
                    f"EXT2 superblock: {self.groups_count} groups of {self.s_blocks_per_group} blocks have no room for "
                    "their own metadata"
                )
        elif self.s_blocks_per_group <= self.table_blocks + 3:
            raise CorruptFilesystem(
                f"EXT2 superblock: groups of {self.s_blocks_per_group} blocks have no room for their own metadata"
            )


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def read_free_counts(superblock: Superblock, blocks: Blocks) -> tuple[int, int]:
    """The present s_free_blocks_count and s_free_inodes_count.

    Raises:
        BlocksMissing: the superblock's block is not in memory.
    """
    number, offset = superblock.location
    block = blocks.block(number)
    free_blocks, free_inodes = _FREE_COUNTS.unpack_from(block, offset + _FREE_COUNTS_OFFSET)
    if "64bit" in superblock.features:
        free_blocks |= (
            int.from_bytes(block[offset + _FREE_COUNTS_HIGH_OFFSET : offset + _FREE_COUNTS_HIGH_OFFSET + 4], "little")
            << 32
        )
    return free_blocks, free_inodes


def change_free_counts(superblock: Superblock, transaction: Transaction, blocks: int, inodes: int) -> None:
    """Add ``blocks`` and ``inodes`` (negative: taken) to the superblock's counts."""
    block, start = change_superblock(superblock, transaction)
    offset = start + _FREE_COUNTS_OFFSET
    free_blocks, free_inodes = _FREE_COUNTS.unpack_from(block, offset)
    if superblock.is_extended:
        free_blocks, _ = read_free_counts(superblock, transaction)
    free_blocks, free_inodes = free_blocks + blocks, free_inodes + inodes
    if not (0 <= free_blocks <= superblock.s_blocks_count and 0 <= free_inodes <= superblock.s_inodes_count):
        free_blocks = min(max(free_blocks, 0), superblock.s_blocks_count)
        free_inodes = min(max(free_inodes, 0), superblock.s_inodes_count)
    _FREE_COUNTS.pack_into(block, offset, free_blocks & 0xFFFFFFFF, free_inodes)
    if "64bit" in superblock.features:
        _CHECKSUM.pack_into(block, start + _FREE_COUNTS_HIGH_OFFSET, free_blocks >> 32)


def change_superblock(superblock: Superblock, transaction: Transaction) -> tuple[bytearray, int]:
    """The block of the superblock and its offset there, to be changed in place.

    Raises:
        BlocksMissing: the superblock's block is not in memory.
    """
    number, offset = superblock.location
    block = transaction.change(number)
    if superblock.checksums is not None:
        transaction.seal_later(number, partial(set_superblock, offset=offset))
    return block, offset


def note_file_size(superblock: Superblock, transaction: Transaction, size: int) -> None:
    """Set large_file, and with it revision 1, if ``size`` is 2 GiB or more (fs/ext2/inode.c, __ext2_write_inode)."""
    if size <= _LARGEST_SMALL_FILE:
        return
    number, offset = superblock.location
    position = offset + _FEATURE_RO_COMPAT_OFFSET
    (ro_compat,) = struct.unpack_from("<I", transaction.block(number), position)
    if ro_compat & EXT2_FEATURE_RO_COMPAT_LARGE_FILE:
        return
    block, offset = change_superblock(superblock, transaction)
    struct.pack_into("<I", block, position, ro_compat | EXT2_FEATURE_RO_COMPAT_LARGE_FILE)
    if superblock.s_rev_level == EXT2_GOOD_OLD_REV:
        struct.pack_into("<I", block, offset + _REV_LEVEL_OFFSET, EXT2_DYNAMIC_REV)
        struct.pack_into("<IH", block, offset + _FIRST_INO_OFFSET, EXT2_GOOD_OLD_FIRST_INO, EXT2_GOOD_OLD_INODE_SIZE)


def _is_inode_size(size: int, block_size: int) -> bool:
    return EXT2_GOOD_OLD_INODE_SIZE <= size <= block_size and size & (size - 1) == 0

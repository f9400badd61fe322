"""The structures of a journal (jbd2): its superblock, descriptor blocks with their tags, revoke and commit blocks.

Unlike all else in the file system they are big-endian. Layout: Documentation/filesystems/ext4/journal.rst, and
include/linux/jbd2.h of the kernel.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.kernels.checksums import crc32c

JBD2_MAGIC_NUMBER = 0xC03B3998
JBD2_DESCRIPTOR_BLOCK = 1
JBD2_COMMIT_BLOCK = 2
JBD2_SUPERBLOCK_V1 = 3
JBD2_SUPERBLOCK_V2 = 4
JBD2_REVOKE_BLOCK = 5

JOURNAL_SUPERBLOCK_SIZE = 1024
ALL_ONES = 0xFFFFFFFF
"""What checksums begin with."""

_JBD2_FLAG_ESCAPE = 1
_JBD2_FLAG_SAME_UUID = 2
_JBD2_FLAG_LAST_TAG = 8
_JBD2_CRC32_CHKSUM = 1
_JBD2_CRC32_CHKSUM_SIZE = 4
_JBD2_CRC32C_CHKSUM = 4
_JBD2_DEFAULT_FAST_COMMIT_BLOCKS = 256
_JBD2_MIN_JOURNAL_BLOCKS = 1024

_HEADER = struct.Struct(">III")  # h_magic h_blocktype h_sequence
_SUPERBLOCK = struct.Struct(
    ">III"  # h_magic h_blocktype h_sequence
    "IIIIII"  # s_blocksize s_maxlen s_first s_sequence s_start s_errno
    "III16s"  # s_feature_compat s_feature_incompat s_feature_ro_compat s_uuid
    "16xB3xI"  # s_checksum_type s_num_fc_blks
)
_SEQUENCE_AND_START = struct.Struct(">III")  # s_sequence s_start s_errno
_SEQUENCE_OFFSET = 24
_SUPERBLOCK_CHECKSUM_OFFSET = 0xFC
_TAG = struct.Struct(">IHHI")  # t_blocknr t_checksum t_flags t_blocknr_high
_TAG3 = struct.Struct(">IIII")  # t_blocknr t_flags t_blocknr_high t_checksum
_UUID_SIZE = 16
_TAIL = struct.Struct(">I")  # t_checksum
_COMMIT = struct.Struct(">12xBB2xI28xQ")  # h_chksum_type h_chksum_size h_chksum[0] h_commit_sec
_COMMIT_CHECKSUM_OFFSET = 16
_COMMIT_SIZE = 64
"""``struct commit_header`` as compilers lay it out, to which a commit block may be cut."""
_REVOKE_HEADER = struct.Struct(">12xI")  # r_count

_COMPAT = {0x1: "checksum"}
_INCOMPAT = {
    0x01: "revoke",
    0x02: "64bit",
    0x04: "async_commit",
    0x08: "csum_v2",
    0x10: "csum_v3",
    0x20: "fast_commit",
}


class Header(NamedTuple):
    """The head of every block of the journal that is not a copy of one of the file system."""

    h_magic: int
    h_blocktype: int
    h_sequence: int
    """The number of the transaction."""

    @classmethod
    def parse(cls, block: bytes | memoryview) -> Header:
        return cls._make(_HEADER.unpack_from(block))


class Tag(NamedTuple):
    """What a descriptor block says of one of the blocks behind it."""

    number: int
    """Where it belongs: a block number of the file system."""
    is_escaped: bool
    """Whether its first four bytes were the journal's magic number, and are zeros here."""
    checksum: int
    """Of sequence number and content, with csum_v2 (its lower 16 bits) or csum_v3."""


@dataclass(frozen=True, slots=True)
class JournalSuperblock:
    """The journal's first block, checked as the kernel does (fs/jbd2/journal.c, ``journal_check_superblock``)."""

    block_size: int
    s_maxlen: int
    """Blocks, this one and those for fast commits included."""
    s_first: int
    """The first block of the log."""
    s_sequence: int
    """The number of the first transaction to replay."""
    s_start: int
    """Where that begins; 0 for a clean journal."""
    s_errno: int
    features: frozenset[str]
    fast_commit_blocks: int
    """Blocks at the end that are kept for fast commits."""
    seed: int
    """What the checksums of its blocks begin with."""

    @property
    def end(self) -> int:
        """The block behind the log, where it goes on at ``s_first``."""
        return self.s_maxlen - self.fast_commit_blocks

    @property
    def has_block_checksums(self) -> bool:
        """Whether each block has a checksum of its own: version 2 or 3."""
        return "csum_v2" in self.features or "csum_v3" in self.features

    @property
    def has_transaction_checksums(self) -> bool:
        """Whether a commit block has a checksum of the whole transaction: version 1."""
        return "checksum" in self.features

    @classmethod
    def parse(cls, block: bytes | memoryview, block_size: int, length: int) -> JournalSuperblock:
        """Parse the first block of a journal of ``length`` blocks.

        Raises:
            CorruptFilesystem: it is none, or one that contradicts itself.
            UnsupportedFeature: it uses something that mystfuse does not have.
        """
        (
            magic,
            blocktype,
            _,
            s_blocksize,
            s_maxlen,
            s_first,
            s_sequence,
            s_start,
            s_errno,
            compat,
            incompat,
            ro_compat,
            uuid,
            checksum_type,
            num_fc_blks,
        ) = _SUPERBLOCK.unpack_from(block)
        if magic != JBD2_MAGIC_NUMBER or blocktype not in (JBD2_SUPERBLOCK_V1, JBD2_SUPERBLOCK_V2):
            raise CorruptFilesystem(f"the journal has no superblock: {magic:#x}, {blocktype:#x}")
        if blocktype == JBD2_SUPERBLOCK_V1:
            compat = incompat = ro_compat = 0
        names = _names(_COMPAT, "C", compat) | _names(_INCOMPAT, "I", incompat) | _names({}, "R", ro_compat)
        known = {*_COMPAT.values(), *_INCOMPAT.values()}
        # A compatible one that is unknown is no obstacle.
        if unknown := sorted(name for name in names - known if not name.startswith("FEATURE_C")):
            raise UnsupportedFeature(f"the journal uses {', '.join(unknown)}, which mystfuse does not have")
        if len(names & {"checksum", "csum_v2", "csum_v3"}) > 1:
            raise CorruptFilesystem("the journal has checksums of more than one version")
        with_blocks = bool(names & {"csum_v2", "csum_v3"})
        if with_blocks and checksum_type != _JBD2_CRC32C_CHKSUM:
            raise UnsupportedFeature(f"the journal has checksums of type {checksum_type}; only 4, crc32c, is known")
        fast_commit_blocks = 0
        if "fast_commit" in names:
            fast_commit_blocks = num_fc_blks or _JBD2_DEFAULT_FAST_COMMIT_BLOCKS
            if s_maxlen < _JBD2_MIN_JOURNAL_BLOCKS + fast_commit_blocks:
                raise CorruptFilesystem(f"the journal of {s_maxlen} blocks has {fast_commit_blocks} for fast commits")
        superblock = cls(
            block_size,
            s_maxlen,
            s_first,
            s_sequence,
            s_start,
            s_errno,
            names,
            fast_commit_blocks,
            crc32c(uuid, ALL_ONES) if with_blocks else 0,
        )
        for name, value, is_right in (
            ("s_blocksize", s_blocksize, s_blocksize == block_size),
            ("s_maxlen", s_maxlen, s_maxlen <= length),
            # fs/jbd2/journal.c, journal_reset: a shorter log is too short.
            ("s_first", s_first, 0 < s_first <= superblock.end + 1 - _JBD2_MIN_JOURNAL_BLOCKS),
            ("s_start", s_start, not s_start or s_first <= s_start < superblock.end),
        ):
            if not is_right:
                raise CorruptFilesystem(f"the journal's superblock: {name} {value} is invalid")
        if with_blocks and superblock_checksum(block) != _TAIL.unpack_from(block, _SUPERBLOCK_CHECKSUM_OFFSET)[0]:
            raise CorruptFilesystem("the journal's superblock does not have the checksum that it says")
        return superblock

    def cleaned(self, block: bytes, sequence: int) -> bytes:
        """The first block of the same journal when it is empty.

        Args:
            block: as it is.
            sequence: of the next transaction.
        """
        new = bytearray(block)
        _SEQUENCE_AND_START.pack_into(new, _SEQUENCE_OFFSET, sequence, 0, 0)
        if self.has_block_checksums:
            _TAIL.pack_into(new, _SUPERBLOCK_CHECKSUM_OFFSET, superblock_checksum(new))
        return bytes(new)

    def tags(self, block: bytes) -> list[Tag]:
        """The tags of a descriptor block, one for each of the blocks that follow it in the log."""
        is_third, is_64bit = "csum_v3" in self.features, "64bit" in self.features
        # fs/jbd2/journal.c, journal_tag_bytes: csum_v2 takes two bytes more than it needs.
        size = _TAG3.size if is_third else _TAG.size - (0 if is_64bit else 4) + 2 * ("csum_v2" in self.features)
        room = self.block_size - (_TAIL.size if self.has_block_checksums else 0)
        padded = block + bytes(_TAG3.size)
        tags: list[Tag] = []
        position = _HEADER.size
        while position + size <= room:
            if is_third:
                number, flags, high, checksum = _TAG3.unpack_from(padded, position)
            else:
                number, checksum, flags, high = _TAG.unpack_from(padded, position)
            tags.append(Tag(number | high << 32 if is_64bit else number, bool(flags & _JBD2_FLAG_ESCAPE), checksum))
            position += size + (0 if flags & _JBD2_FLAG_SAME_UUID else _UUID_SIZE)
            if flags & _JBD2_FLAG_LAST_TAG:
                break
        return tags

    def revoked(self, block: bytes) -> list[int]:
        """The block numbers in a revoke block.

        Raises:
            CorruptFilesystem: it says that it has more than fit.
        """
        (r_count,) = _REVOKE_HEADER.unpack_from(block)
        if r_count > self.block_size - (_TAIL.size if self.has_block_checksums else 0):
            raise CorruptFilesystem(f"the journal has a revoke block of {r_count} bytes")
        size, letter = (8, "Q") if "64bit" in self.features else (4, "I")
        count = max(r_count - _REVOKE_HEADER.size, 0) // size
        return list(struct.unpack_from(f">{count}{letter}", block, _REVOKE_HEADER.size))

    def has_right_tail(self, block: bytes) -> bool:
        """Whether a descriptor or revoke block has the checksum that it says, if it has one."""
        if not self.has_block_checksums:
            return True
        position = self.block_size - _TAIL.size
        checksum = crc32c(bytes(_TAIL.size), crc32c(block[:position], self.seed))
        return bool(_TAIL.unpack_from(block, position)[0] == checksum)

    def is_content(self, tag: Tag, sequence: int, content: bytes | memoryview) -> bool:
        """Whether a block of the log has the checksum of its tag, if that has one."""
        if not self.has_block_checksums:
            return True
        checksum = crc32c(content, crc32c(_TAIL.pack(sequence), self.seed))
        return tag.checksum == (checksum if "csum_v3" in self.features else checksum & 0xFFFF)

    def is_right_commit(self, block: bytes, transaction: int) -> bool:
        """Whether a commit block has the checksum that it says, if it has one.

        Args:
            transaction: the checksum of the transaction's blocks, which counts with version 1.
        """
        kind, size, found, _ = _COMMIT.unpack_from(block)
        if self.has_transaction_checksums:
            is_crc32 = (kind, size) == (_JBD2_CRC32_CHKSUM, _JBD2_CRC32_CHKSUM_SIZE)
            return (is_crc32 and found == transaction) or (kind, size, found) == (0, 0, 0)
        if not self.has_block_checksums:
            return True
        end = _COMMIT_CHECKSUM_OFFSET + _TAIL.size
        zeroed = block[:_COMMIT_CHECKSUM_OFFSET] + bytes(_TAIL.size) + block[end:]
        # A crash may leave less than the whole block behind (jbd2_commit_block_csum_verify_partial).
        cut = zeroed[:_COMMIT_SIZE].ljust(self.block_size, b"\0")
        return found in (crc32c(zeroed, self.seed), crc32c(cut, self.seed))


def commit_time(block: bytes) -> int:
    """The time in a commit block, in seconds since the epoch."""
    return int(_COMMIT.unpack_from(block)[3])


def unescaped(content: bytes) -> bytes:
    """A block of the file system that the log has escaped."""
    return struct.pack(">I", JBD2_MAGIC_NUMBER) + content[4:]


def superblock_checksum(block: bytes | bytearray | memoryview) -> int:
    """The checksum that a journal's superblock should have."""
    data = bytearray(block[:JOURNAL_SUPERBLOCK_SIZE])
    _TAIL.pack_into(data, _SUPERBLOCK_CHECKSUM_OFFSET, 0)
    return crc32c(data, ALL_ONES)


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def crc32_be(seed: int, data: bytes | memoryview) -> int:
    """The kernel's ``crc32_be``, the checksum of transactions with version 1: zlib's CRC-32, but the highest bit of a
    byte comes first, and nothing is inverted."""
    start = int(f"{seed:032b}"[::-1], 2) ^ ALL_ONES
    return int(f"{zlib.crc32(bytes(data).translate(_REVERSED), start) ^ ALL_ONES:032b}"[::-1], 2)


def _names(known: dict[int, str], letter: str, mask: int) -> frozenset[str]:
    return frozenset(known.get(1 << bit, f"FEATURE_{letter}{bit}") for bit in range(32) if mask >> bit & 1)

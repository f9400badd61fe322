"""dm-verity: the superblock and the geometry of the hash tree.

Sources: the kernel's Documentation/admin-guide/device-mapper/verity.rst, and cryptsetup's on-disk superblock
(lib/verity/verity.c, ``struct verity_sb``). Everything is little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace

from mystfuse.errors import FormatError, UnsupportedFeature

VERITY_SIGNATURE = b"verity\0\0"
VERITY_SUPERBLOCK_SIZE = 512
MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 512 * 1024
"""cryptsetup's VERITY_BLOCK_SIZE_OK: powers of two from 512 bytes to 512 KiB, for data and hash blocks."""
MAX_SALT_SIZE = 256
DIGEST_SIZES = {"sha256": 32, "sha512": 64}
VOUCHER = b"mystfuse"
"""The start of a salt that covers its superblock: see ``with_vouching_salt``."""
_VOUCHING_SALT_SIZE = 32
"""Bytes: the original reads no other size."""

# signature version hash_type uuid algorithm data_bs hash_bs data_blocks salt_size pad salt pad
_LAYOUT = struct.Struct("<8sII16s32sIIQH6x256s168x")


@dataclass(frozen=True, slots=True)
class VeritySuperblock:
    """Parameters of the tree. The root hash covers **only its salt**: we check the other fields' bounds here; the
    digests, and a salt that covers the superblock, prove them right or wrong."""

    data_blocks: int
    salt: bytes
    uuid: bytes
    hash_type: int = 1
    """1: digest(salt || block); 0 (Chrome OS): digest(block || salt)."""
    algorithm: str = "sha256"
    data_block_size: int = 4096
    hash_block_size: int = 4096

    @property
    def data_size(self) -> int:
        """Bytes that the tree covers."""
        return self.data_blocks * self.data_block_size

    @property
    def digest_size(self) -> int:
        return DIGEST_SIZES[self.algorithm]

    @classmethod
    def parse(cls, data: bytes) -> VeritySuperblock:
        """Parse the 512 bytes at hash_offset as hostile input.

        Raises:
            FormatError: not a verity superblock, or a field outside what the format allows.
            UnsupportedFeature: a version, hash type, or algorithm that mystfuse does not have.
            FormatError: its salt is that of another superblock.
        """
        if len(data) < VERITY_SUPERBLOCK_SIZE:
            raise FormatError(f"verity superblock is cut short: {len(data)} of {VERITY_SUPERBLOCK_SIZE} bytes")
        (
            signature,
            version,
            hash_type,
            uuid,
            raw_algorithm,
            data_block_size,
            hash_block_size,
            data_blocks,
            salt_size,
            salt,
        ) = _LAYOUT.unpack_from(data)
        if signature != VERITY_SIGNATURE:
            raise FormatError("no verity superblock (its signature is missing)")
        if version != 1:
            raise UnsupportedFeature(f"verity superblock version {version}; only version 1 is known")
        if hash_type not in (0, 1):
            raise UnsupportedFeature(f"verity hash type {hash_type}; only 0 and 1 are known")
        algorithm = raw_algorithm.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        if algorithm not in DIGEST_SIZES:
            raise UnsupportedFeature(f"verity hash algorithm {algorithm!r}; known are {', '.join(DIGEST_SIZES)}")
        for name, size in (("data_block_size", data_block_size), ("hash_block_size", hash_block_size)):
            if not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE or size & (size - 1):
                raise FormatError(f"verity {name} {size} is not a power of two from 512 to 524288")
        if salt_size > MAX_SALT_SIZE:
            raise FormatError(f"verity salt_size {salt_size} is more than {MAX_SALT_SIZE}")
        if not 0 < data_blocks <= (1 << 63) // data_block_size:
            raise FormatError(f"verity data_blocks {data_blocks} is impossible")
        superblock = cls(data_blocks, salt[:salt_size], uuid, hash_type, algorithm, data_block_size, hash_block_size)
        if (
            superblock.salt.startswith(VOUCHER)
            and data[:VERITY_SUPERBLOCK_SIZE] != superblock.with_vouching_salt().pack()
        ):
            raise FormatError("the verity superblock is not the one that the tree was made with: its salt tells")
        return superblock

    def with_vouching_salt(self) -> VeritySuperblock:
        """The same superblock with the salt that covers it: 8 bytes ``mystfuse``, and 24 of the SHA-256 of its 512
        bytes with those 24 as zeros.

        Every digest of the tree has the salt in it, so trust in the root hash extends to the salt, and by it to the
        rest. For other programs it is a salt like any other; it differs from image to image as the UUID does.
        """
        blank = replace(self, salt=VOUCHER.ljust(_VOUCHING_SALT_SIZE, b"\0"))
        digest = hashlib.sha256(blank.pack()).digest()
        return replace(self, salt=(VOUCHER + digest)[:_VOUCHING_SALT_SIZE])

    def pack(self) -> bytes:
        """The 512 bytes to write at hash_offset."""
        if len(self.salt) > MAX_SALT_SIZE or len(self.uuid) != 16:
            raise ValueError("verity salt or uuid has the wrong length")
        return _LAYOUT.pack(
            VERITY_SIGNATURE,
            1,
            self.hash_type,
            self.uuid,
            self.algorithm.encode("ascii"),
            self.data_block_size,
            self.hash_block_size,
            self.data_blocks,
            len(self.salt),
            self.salt,
        )


@dataclass(frozen=True, slots=True)
class TreeLevel:
    """One level of the tree, as it lies in the file."""

    offset: int
    """Byte offset in the file of its first hash block."""
    blocks: int
    """Number of hash blocks."""


@dataclass(frozen=True, slots=True)
class TreeGeometry:
    """Where every hash block lies. ``levels[0]`` hashes the data; ``levels[-1]`` is one block, hashed by the root.

    There are no levels at all when there is a single data block: its digest is the root hash.
    """

    levels: tuple[TreeLevel, ...]
    digests_per_block: int
    """2^floor(log2(hash_block_size / digest_size))."""
    digest_size: int
    end: int
    """Byte offset just past the tree."""

    @classmethod
    def of(cls, superblock: VeritySuperblock, hash_offset: int) -> TreeGeometry:
        """The geometry of the tree whose superblock lies at byte ``hash_offset`` of the file.

        On disk the top level comes first, starting at the first whole hash block (counted from the start of the file)
        behind the superblock.
        """
        size = superblock.hash_block_size
        digests_per_block = 1 << ((size // superblock.digest_size).bit_length() - 1)
        counts: list[int] = []
        blocks = superblock.data_blocks
        while blocks > 1:
            blocks = -(-blocks // digests_per_block)
            counts.append(blocks)
        position = -(-(hash_offset + VERITY_SUPERBLOCK_SIZE) // size) * size
        levels: list[TreeLevel] = []
        for count in reversed(counts):
            levels.append(TreeLevel(position, count))
            position += count * size
        return cls(tuple(reversed(levels)), digests_per_block, superblock.digest_size, position)

    def check_fits(self, limit: int) -> None:
        """Raise FormatError unless the whole tree lies before byte ``limit`` of the file."""
        if self.end > limit:
            raise FormatError(f"the hash tree would end at byte {self.end}, past byte {limit} where it has to end")

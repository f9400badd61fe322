"""How a file system hashes the names of indexed directories: s_hash_seed, s_def_hash_version, s_flags.

Source: Documentation/filesystems/ext4/super.rst; fs/ext4/super.c (ext4_hash_info_init) and fs/ext4/namei.c (dx_probe).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mystfuse.ext2.blocks import Block
from mystfuse.kernels.directory_hash import hashed_entries, name_hash
from mystfuse.kernels.pure.directory_hash import both_hashes

_SEED = struct.Struct("<4I")
_SEED_OFFSET = 236
_DEFAULT_VERSION_OFFSET = 252
_FLAGS = struct.Struct("<I")
_FLAGS_OFFSET = 352
_UNSIGNED_HASH = 0x0002
VERSIONS = 3
"""Those that an index may name: 0 legacy, 1 half MD4, 2 TEA. Whether bytes are signed is the file system's. (6,
SipHash, is for directories that are both encrypted and casefolded, whose hashes take a key.)"""


class NameHash(NamedTuple):
    """The hash functions of one file system with dir_index."""

    seed: tuple[int, int, int, int]
    is_unsigned: bool
    """Whether bytes over 127 count as such. Without a flag they are signed, as the kernel decides on x86."""
    default_version: int
    """Of new indices."""

    @classmethod
    def parse(cls, superblock: bytes | memoryview) -> NameHash:
        """That of a superblock of 1024 bytes."""
        (flags,) = _FLAGS.unpack_from(superblock, _FLAGS_OFFSET)
        seed = _SEED.unpack_from(superblock, _SEED_OFFSET)
        return cls(seed, bool(flags & _UNSIGNED_HASH), superblock[_DEFAULT_VERSION_OFFSET])

    def of(self, version: int, name: bytes) -> int:
        """The hash of ``name`` in an index with this ``version``, one of ``VERSIONS``."""
        return name_hash(version + VERSIONS if self.is_unsigned else version, self.seed, name)

    def both(self, name: bytes) -> tuple[int, int]:
        """The hash and the minor hash of ``name`` in a new index."""
        version = self.default_version + VERSIONS if self.is_unsigned else self.default_version
        return both_hashes(version, self.seed, name)

    def entries(self, version: int, block: Block, end: int, has_filetype: bool) -> list[int] | None:
        """See ``kernels.pure.directory_hash.hashed_entries``."""
        return hashed_entries(block, end, has_filetype, version + VERSIONS * self.is_unsigned, self.seed)

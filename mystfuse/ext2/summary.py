"""What a superblock of ext2, ext3 or ext4 says, for people: also one that mystfuse does not read, or a broken one.

``Superblock`` is for reading the file system, and refuses what it cannot; this refuses nothing. Layout: kernel,
fs/ext4/ext4.h, ``struct ext4_super_block``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from mystfuse.errors import FormatError
from mystfuse.ext2.constants import (
    EXT2_ERROR_FS,
    EXT2_MAX_BLOCK_LOG_SIZE,
    EXT2_MIN_BLOCK_LOG_SIZE,
    EXT2_SUPER_MAGIC,
    SUPERBLOCK_SIZE,
)
from mystfuse.ext2.features import SUPPORTED, feature_names, only_for_reading
from mystfuse.ext2.superblock import Superblock

_LAYOUT = struct.Struct(
    "<II4xII4xI"  # s_inodes_count s_blocks_count_lo s_free_blocks_count_lo s_free_inodes_count s_log_block_size
    "28xHH"  # s_magic s_state
    "16xI"  # s_rev_level
    "12xIII"  # s_feature_compat s_feature_incompat s_feature_ro_compat
    "16s16s"  # s_uuid s_volume_name
    "128xI"  # s_mkfs_time
    "68xI4xI"  # s_blocks_count_hi s_free_blocks_count_hi
)
_OF_EXT2 = frozenset({"filetype", "meta_bg", "sparse_super", "large_file", "btree_dir"})
_OF_EXT3 = _OF_EXT2 | {"needs_recovery"}
"""The incompatible and read-only compatible features that those drivers had: libblkid, superblocks/ext.c, which tells
ext2, ext3 and ext4 apart by them."""


@dataclass(frozen=True, slots=True)
class FileSystemSummary:
    """The fields of a superblock, unchecked."""

    type: str
    """``ext2``, ``ext3``, ``ext4``, or ``jbd`` for an external journal: as blkid(8) calls it."""
    block_size: int
    """Bytes."""
    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int
    label: str
    uuid: str
    features: tuple[str, ...]
    unsupported: tuple[str, ...]
    """Those of the features that mystfuse does not have."""
    only_for_reading: tuple[str, ...]
    """Those that it only reads, so that a mount is read-only because of them."""
    created: str | None
    """When it was made (ISO 8601, UTC); None: it does not say."""
    has_errors: bool
    """Marked as damaged by an earlier mount or check."""
    fault: str | None
    """Why mystfuse does not read it; None if it does, as far as the superblock tells."""

    @property
    def size(self) -> int:
        """Bytes of the whole file system."""
        return self.blocks * self.block_size

    @property
    def free(self) -> int:
        """Bytes of its free blocks."""
        return min(self.free_blocks, self.blocks) * self.block_size

    @property
    def used(self) -> int:
        """Bytes of all other blocks, its own metadata among them."""
        return self.size - self.free

    @property
    def needs_recovery(self) -> bool:
        """Whether its journal has changes that are not in it yet."""
        return "needs_recovery" in self.features

    @classmethod
    def parse(cls, data: bytes) -> FileSystemSummary | None:
        """The summary of the 1024 bytes of a superblock; None if they are none."""
        if len(data) < SUPERBLOCK_SIZE:
            return None
        (
            inodes,
            blocks,
            free_blocks,
            free_inodes,
            log_block_size,
            magic,
            state,
            _,
            compat,
            incompat,
            ro_compat,
            uuid,
            label,
            created,
            blocks_high,
            free_blocks_high,
        ) = _LAYOUT.unpack_from(data)
        if magic != EXT2_SUPER_MAGIC or log_block_size > EXT2_MAX_BLOCK_LOG_SIZE - EXT2_MIN_BLOCK_LOG_SIZE:
            return None
        features = feature_names(compat, incompat, ro_compat)
        if "64bit" in features:
            blocks, free_blocks = blocks | blocks_high << 32, free_blocks | free_blocks_high << 32
        return cls(
            type=_type_of(features, feature_names(0, incompat, ro_compat)),
            block_size=1 << EXT2_MIN_BLOCK_LOG_SIZE + log_block_size,
            blocks=blocks,
            free_blocks=free_blocks,
            inodes=inodes,
            free_inodes=free_inodes,
            label=label.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
            uuid=str(UUID(bytes=uuid)),
            features=tuple(sorted(features)),
            unsupported=tuple(sorted(features - SUPPORTED)),
            only_for_reading=tuple(only_for_reading(features & SUPPORTED)),
            created=datetime.fromtimestamp(created, UTC).isoformat() if created else None,
            has_errors=bool(state & EXT2_ERROR_FS),
            fault=_fault_of(data),
        )


def _type_of(features: frozenset[str], to_be_known: frozenset[str]) -> str:
    """The name of the driver.

    Args:
        to_be_known: the features that a driver must know to read or write.
    """
    if "journal_dev" in features:
        return "jbd"
    if not to_be_known <= _OF_EXT3:
        return "ext4"
    return "ext3" if "has_journal" in features or not to_be_known <= _OF_EXT2 else "ext2"


def _fault_of(data: bytes) -> str | None:
    try:
        Superblock.parse(data)
    except FormatError as error:
        return str(error)
    return None

"""The superblock of a file system whose journal has been replayed.

Source: fs/ext4/super.c, ext4_load_journal, ext4_clear_journal_err and ext4_mark_recovery_complete; ext4_fill_super for
the free counts, which the kernel does not journal but adds up at each mount.
"""

from __future__ import annotations

import struct

from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_ERROR_FS, SUPERBLOCK_SIZE
from mystfuse.ext2.features import INCOMPAT, RO_COMPAT
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.kernels.checksums import crc32c

_STATE, _STATE_OFFSET = struct.Struct("<H"), 58
_FLAGS, _INCOMPAT_OFFSET, _RO_COMPAT_OFFSET = struct.Struct("<I"), 96, 100
_FREE_COUNTS, _FREE_COUNTS_OFFSET = struct.Struct("<II"), 12  # s_free_blocks_count s_free_inodes_count
_FREE_BLOCKS_HIGH_OFFSET = 344
_CLUSTERS, _CLUSTERS_OFFSET = struct.Struct("<II"), 24  # s_log_block_size s_log_cluster_size
_ERRORS = slice(404, 512)
"""s_error_count to s_last_error_block: what the last errors were, which is written beside the journal."""
_CHECKSUM_OFFSET = 1020


def _bit(features: dict[int, str], wanted: str) -> int:
    return next(bit for bit, name in features.items() if name == wanted)


_NEEDS_RECOVERY, _64BIT = _bit(INCOMPAT, "needs_recovery"), _bit(INCOMPAT, "64bit")
_METADATA_CSUM, _BIGALLOC = _bit(RO_COMPAT, "metadata_csum"), _bit(RO_COMPAT, "bigalloc")


def count_free(filesystem: FileSystem, blocks: Blocks) -> tuple[int, int]:
    """The free blocks (with bigalloc, clusters) and inodes of all groups; raises as ``GroupTable.counts``."""
    counts = filesystem.groups.counts(blocks)
    return sum(group.free_blocks for group in counts), sum(group.free_inodes for group in counts)


def recovered_superblock(before: bytes, replayed: bytes, has_failed: bool, free: tuple[int, int] | None) -> bytes:
    """The superblock after recovery.

    Args:
        before: its 1024 bytes in the image.
        replayed: its 1024 bytes in the journal; the same, if they are not there.
        has_failed: whether the journal says that an error has ended it.
        free: as ``count_free``; None to keep the superblock's own.
    """
    new = bytearray(replayed)
    new[_ERRORS] = before[_ERRORS]
    (state,), (old_state,) = (_STATE.unpack_from(data, _STATE_OFFSET) for data in (replayed, before))
    _STATE.pack_into(new, _STATE_OFFSET, state | (EXT2_ERROR_FS if has_failed else old_state & EXT2_ERROR_FS))
    (incompat,) = _FLAGS.unpack_from(new, _INCOMPAT_OFFSET)
    _FLAGS.pack_into(new, _INCOMPAT_OFFSET, incompat & ~_NEEDS_RECOVERY)
    (ro_compat,) = _FLAGS.unpack_from(new, _RO_COMPAT_OFFSET)
    if free is not None:
        log_block_size, log_cluster_size = _CLUSTERS.unpack_from(new, _CLUSTERS_OFFSET)
        free_blocks = free[0] << (log_cluster_size - log_block_size if ro_compat & _BIGALLOC else 0)
        _FREE_COUNTS.pack_into(new, _FREE_COUNTS_OFFSET, free_blocks & 0xFFFFFFFF, free[1] & 0xFFFFFFFF)
        if incompat & _64BIT:
            _FLAGS.pack_into(new, _FREE_BLOCKS_HIGH_OFFSET, free_blocks >> 32)
    if ro_compat & _METADATA_CSUM:
        # fs/ext4/super.c, ext4_superblock_csum.
        _FLAGS.pack_into(new, _CHECKSUM_OFFSET, crc32c(new[:_CHECKSUM_OFFSET], 0xFFFFFFFF))
    assert len(new) == SUPERBLOCK_SIZE
    return bytes(new)

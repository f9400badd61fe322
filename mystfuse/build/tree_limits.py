"""Files that no ext2 file system can store, or only one with larger blocks: found before mke2fs runs.

mke2fs would fail in the middle with its library's words, or, where a field of the inode is too small, silently write
other values (seen with 1.47: link counts modulo 65536, times modulo 544 years).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from mystfuse.archives.file_tree import Attributes
from mystfuse.build.filesystem_kind import EXT2, Kind
from mystfuse.errors import MystfuseError

MAX_NAME = 255
"""Bytes: name_len of a directory entry is one byte."""
MAX_LINKS = 65_000
"""What mke2fs and e2fsck take (EXT2_LINK_MAX in lib/ext2fs/ext2_fs.h)."""
MAX_ALLOCATED = 1 << 41
"""Bytes: i_blocks counts 512-byte sectors in 32 bits."""
MIN_TIME, MAX_TIME = -(1 << 31), (1 << 34) - (1 << 31) - 1
"""Seconds: 32 signed bits, and 2 more in i_mtime_extra (Documentation/filesystems/ext4/inodes.rst)."""
MAX_CHOSEN_BLOCK = 4096
"""Bytes: the kernel's ext2 does not mount larger blocks, so we make them only on request."""
_NAME_PREFIXES = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_ATTRIBUTES_OVERHEAD = 32 + 4
"""The overhead of a block of attributes in bytes: header and end mark."""
IN_INODE = 256 - 128 - 32 - 4 - 4
"""Bytes of attributes that an inode of 256 bytes stores, which then need no block."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that has to fit into one block."""

    size: int
    """The minimum size of the block."""
    least: int
    """The same, with as many as possible in the inode."""
    path: bytes
    what: str


NO_PIECE = Piece(0, 0, b"", "")


def check_fields(path: bytes, mtime: int, allocated: int, epoch: int | None) -> None:
    """Raise MystfuseError if a file of this name and time (seconds) has no place in any ext2 file system.

    Args:
        allocated: bytes that its data take.
        epoch: the latest time; later ones are set back to it.
    """
    name = os.path.basename(path)
    if len(name) > MAX_NAME:
        raise _unfit(path, f"its name has {len(name)} bytes, and ext2 has room for {MAX_NAME}")
    if mtime < MIN_TIME or (mtime > MAX_TIME and epoch is None):
        raise _unfit(path, f"its time, {mtime} seconds since 1970, is not between the years 1901 and 2446 (touch it)")
    if allocated > MAX_ALLOCATED:
        raise _unfit(path, f"{allocated} bytes of data; a file in ext2 has at most {MAX_ALLOCATED} (2 TiB)")


def check_readable(path: bytes, mode: int) -> None:
    """Raise MystfuseError for a regular file that we may not read."""
    if not stat.S_ISREG(mode):
        return
    if os.geteuid() and not os.access(path, os.R_OK, effective_ids=True):
        raise MystfuseError(f"{os.fsdecode(path)}: cannot be read: Permission denied")


def check_links(path: bytes, count: int, what: str) -> None:
    """Raise MystfuseError if an inode would have too many links."""
    if count > MAX_LINKS:
        raise _unfit(path, f"{what}; ext2 counts at most {MAX_LINKS} links of one inode")


def read_attributes(path: bytes) -> Attributes:
    """The extended attributes of a file, not of the target of a symbolic link.

    Raises:
        OSError: reading a value failed.
    """
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        # The file system has no attributes; mke2fs reads no further either.
        return ()
    return tuple((os.fsencode(name), os.getxattr(path, os.fsencode(name), follow_symlinks=False)) for name in names)


def piece_of(path: bytes, target: bytes, attributes: Attributes) -> Piece:
    """The largest part of a file that has to fit one block: the target of a symbolic link, or all attributes."""
    # The library needs room for a NUL (ext2fs_symlink).
    link = Piece(len(target) + 1, len(target) + 1, path, f"a link target of {len(target)} bytes")
    if not attributes:
        return link
    size = _ATTRIBUTES_OVERHEAD + sum(stored_attribute(name, value) for name, value in attributes)
    stored = Piece(size, size - IN_INODE, path, f"extended attributes of {size} bytes")
    return max(link, stored, key=lambda piece: piece.size)


def stored_attribute(name: bytes, value: bytes) -> int:
    """Bytes that an extended attribute takes, in an inode or in a block."""
    return 16 + _round_up(_stored_name(name)) + _round_up(_stored_value(name, value))


def choose_block_size(
    given: int | None, default: int, needed: int, piece: Piece, largest: tuple[int, bytes], kind: Kind = EXT2
) -> int | None:
    """The block size for mke2fs; None for its own choice.

    Args:
        given: the user's choice.
        default: what mke2fs would choose.
        needed: bytes in which every piece fits for certain.
        piece: the one with the largest ``least``.
        largest: size and path of the largest file.

    Raises:
        MystfuseError: something does not fit blocks of ``given`` bytes, or any that we would choose.
    """
    if given is None:
        if max(needed, _block_for_file(largest[0], kind)) <= default:
            return None
        given, advice = MAX_CHOSEN_BLOCK, "--block-size {}, which the kernel's ext2 does not mount, makes larger ones"
    else:
        advice = "give --block-size {} or none"
    if piece.least > given:
        raise _unfit(piece.path, _advise(f"{piece.what} in one block of {given}", piece.least, advice))
    limit = max_file_size(given, kind)
    if largest[0] > limit:
        why = f"{largest[0]} bytes; with blocks of {given} a file has at most {limit}"
        raise _unfit(largest[1], _advise(why, _block_for_file(largest[0], kind), advice))
    return given


def max_file_size(block_size: int, kind: Kind = EXT2) -> int:
    """Bytes that the block map of an inode can address: 12 blocks, and one, two and three levels of indirect ones; or
    with extents 2^32 - 1 blocks (fs/ext4/super.c, ext4_max_size)."""
    if kind.has_extents:
        return ((1 << 32) - 1) * block_size
    pointers = block_size // 4
    return (12 + pointers + pointers**2 + pointers**3) * block_size


def _block_for_file(size: int, kind: Kind) -> int:
    return next((1 << bits for bits in range(10, 17) if size <= max_file_size(1 << bits, kind)), 1 << 17)


def _advise(why: str, needed: int, advice: str) -> str:
    block_size = max(1024, 1 << (needed - 1).bit_length())
    return f"{why} ({advice.format(block_size)})" if block_size <= 65536 else why


def _unfit(path: bytes, why: str) -> MystfuseError:
    return MystfuseError(f"{os.fsdecode(path)}: does not fit an ext2 file system: {why}")


def _stored_name(name: bytes) -> int:
    """Bytes: a known prefix is stored as a number."""
    if name in _ACLS:
        return 0
    return len(next((name.removeprefix(prefix) for prefix in _NAME_PREFIXES if name.startswith(prefix)), name))


def _stored_value(name: bytes, value: bytes) -> int:
    """Bytes: of an ACL's entries, only named users and groups take their number with them."""
    if name not in _ACLS:
        return len(value)
    tags = [value[start] for start in range(4, len(value) - 7, 8)]
    return 4 + sum(8 if tag in (0x02, 0x08) else 4 for tag in tags)


def _round_up(size: int) -> int:
    return -(-size // 4) * 4

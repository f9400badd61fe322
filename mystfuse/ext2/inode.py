"""Inodes: 128 bytes and more, little-endian; kernel, fs/ext2/ext2.h and fs/ext4/ext4.h ``struct ext4_inode``."""

from __future__ import annotations

import os
import stat
import struct
from functools import lru_cache
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.blocks import Block
from mystfuse.ext2.constants import (
    EXT2_APPEND_FL,
    EXT2_GOOD_OLD_INODE_SIZE,
    EXT2_IMMUTABLE_FL,
    EXT2_INDEX_FL,
    EXT4_CASEFOLD_FL,
    EXT4_EA_INODE_FL,
    EXT4_ENCRYPT_FL,
    EXT4_EXTENTS_FL,
    EXT4_HUGE_FILE_FL,
    EXT4_INLINE_DATA_FL,
    EXT4_VERITY_FL,
)
from mystfuse.ext2.encrypted_names import shown_target_size

_LAYOUT = struct.Struct(
    "<HHIiiiI"  # i_mode i_uid i_size i_atime i_ctime i_mtime i_dtime
    "HHII4x"  # i_gid i_links_count i_blocks i_flags
    "60sIII4x"  # i_block i_generation i_file_acl i_size_high (i_faddr)
    "4xHH4x"  # (l_i_frag, l_i_fsize, i_pad1) l_i_uid_high l_i_gid_high (l_i_reserved2)
)
_LONG_LAYOUT = struct.Struct(
    f"{_LAYOUT.format}H2xIII"  # i_extra_isize (i_checksum_hi) i_ctime_extra i_mtime_extra i_atime_extra
)
_NO_EXTRAS = (0, 0, 0, 0)
_HEAD = struct.Struct("<HHIiiiIHHII")  # as above, up to i_flags
_BODY = struct.Struct("<60sIII")  # i_block i_generation i_file_acl i_size_high
_BODY_OFFSET = 40
_HIGH_IDS = struct.Struct("<HH")  # l_i_uid_high l_i_gid_high
_HIGH_IDS_OFFSET = 120
_EXTRA_ISIZE_OFFSET = 128
_EXTRA_TIMES = struct.Struct("<III")  # i_ctime_extra i_mtime_extra i_atime_extra
_EXTRA_TIMES_OFFSET = 132
_CRTIME = struct.Struct("<iI")  # i_crtime i_crtime_extra
_CRTIME_OFFSET = 144
_TIME_MIN, _TIME_MAX, _EXTRA_TIME_MAX = -(1 << 31), (1 << 31) - 1, 0x37FFFFFFF
"""Seconds that a time can hold, without and with its extra field (fs/ext4/ext4.h, EXT4_EXTRA_TIMESTAMP_MAX)."""
_NEEDED_FLAGS = {
    EXT4_ENCRYPT_FL: "encrypt",
    EXT4_EXTENTS_FL: "extent",
    EXT4_EA_INODE_FL: "ea_inode",
    EXT4_INLINE_DATA_FL: "inline_data",
}
_ANY_NEEDED_FLAG = sum(_NEEDED_FLAGS)
_FLAGS, _FLAGS_OFFSET = struct.Struct("<II"), 28  # i_blocks i_flags
_HIGH_PARTS = struct.Struct("<HH")  # l_i_blocks_high l_i_file_acl_high
_HIGH_PARTS_OFFSET = 116
_SIZE_HIGH_OFFSET = 108
_EXACT_TIMES = range(1_000_000_000, _TIME_MAX * 1_000_000_000)
"""Times that an inode of more than 128 bytes holds as they are, to say the least."""
_FILE_TYPES = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)


class ExtendedFormat(NamedTuple):
    """How the inodes of an ext4 file system differ from those of ext2."""

    flags: int
    """Those that say that an inode's i_block is not a block map, and may be set."""
    block_size: int
    has_huge_files: bool
    has_large_directories: bool
    is_64bit: bool

    @classmethod
    def of(cls, features: frozenset[str], block_size: int) -> ExtendedFormat:
        """That of a file system with these features."""
        return cls(
            sum(flag for flag, name in _NEEDED_FLAGS.items() if name in features),
            block_size,
            "huge_file" in features,
            "large_dir" in features,
            "64bit" in features,
        )


class Inode(NamedTuple):
    """One inode, decoded. Times are nanoseconds since the epoch; sizes are bytes."""

    ino: int
    i_mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    i_links_count: int
    i_blocks: int
    """512-byte units, indirect blocks and the xattr block included."""
    i_flags: int
    i_block: bytes
    """60 bytes: 15 block pointers, a device number, or a fast symlink's target."""
    i_generation: int
    i_file_acl: int
    """Block with extended attributes; 0 for none."""
    extra: bytes
    """The inode's body behind i_extra_isize, where extended attributes may be; empty for 128-byte inodes."""
    i_extra_isize: int
    """Bytes in use behind the first 128; 0 for 128-byte inodes."""
    i_dtime: int = 0
    """When it was deleted, in seconds since the epoch; 0 while it is in use."""

    @property
    def is_directory(self) -> bool:
        return self.i_mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        return self.i_mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.i_mode)

    @property
    def is_immutable(self) -> bool:
        return bool(self.i_flags & EXT2_IMMUTABLE_FL)

    @property
    def has_verity(self) -> bool:
        """Whether its contents are protected by fs-verity, and cannot change any more (fs/verity/open.c)."""
        return bool(self.i_flags & EXT4_VERITY_FL)

    @property
    def is_append_only(self) -> bool:
        return bool(self.i_flags & EXT2_APPEND_FL)

    @property
    def rdev(self) -> int:
        """The device number (``os.makedev``) of a device inode, else 0.

        Source: fs/ext2/inode.c: i_block[0] holds the old 8:8 encoding, or is 0 and i_block[1] holds the new one.
        """
        if not (stat.S_ISCHR(self.i_mode) or stat.S_ISBLK(self.i_mode)):
            return 0
        old, new = struct.unpack_from("<II", self.i_block)
        if old:
            return os.makedev(old >> 8 & 0xFF, old & 0xFF)
        return os.makedev((new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00))

    @property
    def has_extents(self) -> bool:
        return bool(self.i_flags & EXT4_EXTENTS_FL)

    @property
    def is_inline(self) -> bool:
        """Whether its contents are in the inode itself, in i_block and an attribute."""
        return bool(self.i_flags & EXT4_INLINE_DATA_FL)

    @property
    def st_size(self) -> int:
        """What programs are told of its size: of an encrypted link that of the target that is shown for it
        (fs/crypto/hooks.c, fscrypt_symlink_getattr)."""
        if self.i_flags & EXT4_ENCRYPT_FL and self.is_symlink:
            return shown_target_size(self.size)
        return self.size

    @property
    def st_blocks(self) -> int:
        """What programs are told of its blocks: of contents in the inode, as many as they would take
        (fs/ext4/inode.c, ext4_file_getattr)."""
        if self.i_flags & EXT4_INLINE_DATA_FL and self.is_regular:
            return self.i_blocks + -(-self.size // 512)
        return self.i_blocks

    @property
    def is_encrypted(self) -> bool:
        """Whether its contents, and the names in a directory, are encrypted with fscrypt."""
        return bool(self.i_flags & EXT4_ENCRYPT_FL)

    @property
    def is_indexed(self) -> bool:
        """Whether a directory has an index by hashes of its names."""
        return bool(self.i_flags & EXT2_INDEX_FL)

    @property
    def has_other_names(self) -> bool:
        """Whether names in the directory are not looked up as they are stored."""
        return bool(self.i_flags & (EXT4_CASEFOLD_FL | EXT4_ENCRYPT_FL))

    @property
    def is_casefolded(self) -> bool:
        """Whether names in the directory are found in upper and lower case."""
        return bool(self.i_flags & EXT4_CASEFOLD_FL)

    @classmethod
    def parse(
        cls, data: Block | memoryview, ino: int, offset: int = 0, size: int | None = None, flags: int = 0
    ) -> Inode:
        """Parse the ``s_inode_size`` bytes of inode ``ino``: ``size`` bytes of ``data`` from ``offset`` on, or all.

        Args:
            flags: those that say that its i_block is not a block map, and may be set.

        Raises:
            CorruptFilesystem: its size or its type is invalid.
            UnsupportedFeature: another flag says that its i_block is not a block map.
        """
        if size is None:
            size = len(data)
        is_long = size > EXT2_GOOD_OLD_INODE_SIZE
        (
            i_mode,
            i_uid,
            i_size,
            i_atime,
            i_ctime,
            i_mtime,
            i_dtime,
            i_gid,
            i_links_count,
            i_blocks,
            i_flags,
            i_block,
            i_generation,
            i_file_acl,
            i_size_high,
            uid_high,
            gid_high,
            i_extra_isize,
            ctime_extra,
            mtime_extra,
            atime_extra,
        ) = _LONG_LAYOUT.unpack_from(data, offset) if is_long else _LAYOUT.unpack_from(data, offset) + _NO_EXTRAS
        file_type = i_mode & 0o170000
        if file_type not in _FILE_TYPES:
            raise CorruptFilesystem(f"inode {ino}: i_mode {i_mode:#o} has no known file type")
        if i_flags & _ANY_NEEDED_FLAG & ~flags:
            name = next(name for flag, name in _NEEDED_FLAGS.items() if i_flags & flag & ~flags)
            raise UnsupportedFeature(f"inode {ino} uses {name}, which mystfuse does not have")
        # For directories the upper half is i_dir_acl, which nothing uses (fs/ext2/inode.c).
        length = i_size | i_size_high << 32 if file_type == stat.S_IFREG else i_size
        if length >= 1 << 63:
            raise CorruptFilesystem(f"inode {ino}: its size {length} is invalid")
        extra = b""
        if is_long:
            if i_extra_isize > size - EXT2_GOOD_OLD_INODE_SIZE or i_extra_isize % 4:
                raise CorruptFilesystem(f"inode {ino}: i_extra_isize {i_extra_isize} is invalid")
            # A field counts when i_extra_isize covers it (fs/ext4/ext4.h EXT4_FITS_IN_INODE).
            if i_extra_isize < 16:
                covered = (i_extra_isize - 4) // 4
                atime_extra = 0
                mtime_extra = mtime_extra if covered > 1 else 0
                ctime_extra = ctime_extra if covered > 0 else 0
            if i_extra_isize:
                extra = bytes(data[offset + EXT2_GOOD_OLD_INODE_SIZE + i_extra_isize : offset + size])
        # Of a time's extra field the low 2 bits extend the seconds past 2038, the others are nanoseconds
        # (fs/ext4/ext4.h, ext4_decode_extra_time). As ``cls(...)``, without a call: this runs for every inode.
        return tuple.__new__(
            cls,
            (
                ino,
                i_mode,
                i_uid | uid_high << 16,
                i_gid | gid_high << 16,
                length,
                (i_atime + ((atime_extra & 3) << 32)) * 1_000_000_000 + (atime_extra >> 2),
                (i_mtime + ((mtime_extra & 3) << 32)) * 1_000_000_000 + (mtime_extra >> 2),
                (i_ctime + ((ctime_extra & 3) << 32)) * 1_000_000_000 + (ctime_extra >> 2),
                i_links_count,
                i_blocks,
                i_flags,
                i_block,
                i_generation,
                i_file_acl,
                extra,
                i_extra_isize,
                i_dtime,
            ),
        )

    def with_high_parts(self, data: Block, offset: int, format: ExtendedFormat) -> Inode:
        """The inode with those parts of its fields that only ext4 has (fs/ext4/inode.c, ext4_inode_blocks and
        ext4_isize; fs/ext4/ext4.h, ext4_iget's i_file_acl).

        Raises:
            CorruptFilesystem: its size is invalid.
        """
        blocks_high, acl_high = _HIGH_PARTS.unpack_from(data, offset + _HIGH_PARTS_OFFSET)
        i_blocks, size = self.i_blocks, self.size
        if format.has_huge_files:
            i_blocks |= blocks_high << 32
            if self.i_flags & EXT4_HUGE_FILE_FL:
                i_blocks *= format.block_size // 512
        if format.has_large_directories and self.is_directory:
            size |= int.from_bytes(data[offset + _SIZE_HIGH_OFFSET : offset + _SIZE_HIGH_OFFSET + 4], "little") << 32
            if size >= 1 << 63:
                raise CorruptFilesystem(f"inode {self.ino}: its size {size} is invalid")
        i_file_acl = self.i_file_acl | (acl_high << 32 if format.is_64bit else 0)
        return self._replace(i_blocks=i_blocks, size=size, i_file_acl=i_file_acl)

    def pack_high_parts_into(self, block: bytearray, offset: int, format: ExtendedFormat) -> None:
        """Write those parts of the inode's fields that only ext4 has, after ``pack_into`` (fs/ext4/inode.c,
        ext4_inode_blocks_set).

        Raises:
            CorruptFilesystem: i_blocks cannot count the inode's blocks.
        """
        i_blocks, flags = self.i_blocks, self.i_flags & ~EXT4_HUGE_FILE_FL
        if i_blocks >> 48:
            flags |= EXT4_HUGE_FILE_FL
            i_blocks //= format.block_size // 512
        if i_blocks >> (48 if format.has_huge_files else 32):
            raise CorruptFilesystem(f"inode {self.ino}: its i_blocks cannot count {self.i_blocks} sectors")
        if self.i_flags != flags or flags & EXT4_HUGE_FILE_FL:
            _FLAGS.pack_into(block, offset + _FLAGS_OFFSET, i_blocks & 0xFFFFFFFF, flags)
        _HIGH_PARTS.pack_into(block, offset + _HIGH_PARTS_OFFSET, i_blocks >> 32, self.i_file_acl >> 32)

    @property
    def is_exact(self) -> bool:
        """Whether the inode, once written, is read as it is here, with no time cut: surely so if True."""
        return (
            self.i_extra_isize >= 16
            and self.mtime_ns in _EXACT_TIMES
            and self.ctime_ns in _EXACT_TIMES
            and self.atime_ns in _EXACT_TIMES
        )

    # ``_replace`` takes three times as long as these:

    def touched(self, now_ns: int) -> Inode:
        """The inode with a new mtime and ctime."""
        return tuple.__new__(Inode, (*self[:6], now_ns, now_ns, *self[8:]))

    def written(self, now_ns: int, i_mode: int, size: int) -> Inode:
        """The same with another mode and size too."""
        return tuple.__new__(
            Inode, (self.ino, i_mode, self.uid, self.gid, size, self.atime_ns, now_ns, now_ns, *self[8:])
        )

    def mapped(self, i_blocks: int, i_block: bytes) -> Inode:
        """The inode with another block map."""
        return tuple.__new__(Inode, (*self[:9], i_blocks, self.i_flags, i_block, *self[12:]))

    def pack_into(self, block: bytearray, offset: int) -> None:
        """Write the inode to ``offset`` of a block of the inode table. Other fields keep their values.

        Times are cut to what the inode can hold: whole seconds up to 2038 in 128 bytes, nanoseconds up to 2446 in more.
        """
        (
            _,
            i_mode,
            uid,
            gid,
            size,
            atime_ns,
            mtime_ns,
            ctime_ns,
            i_links_count,
            i_blocks,
            i_flags,
            i_block,
            i_generation,
            i_file_acl,
            extra,
            i_extra_isize,
            i_dtime,
        ) = self
        covered = (i_extra_isize - 4) // 4
        atime, atime_extra = _pack_time(atime_ns, covered > 2)
        ctime, ctime_extra = _pack_time(ctime_ns, covered > 0)
        mtime, mtime_extra = _pack_time(mtime_ns, covered > 1)
        _HEAD.pack_into(
            block,
            offset,
            i_mode,
            uid & 0xFFFF,
            size & 0xFFFFFFFF,
            atime,
            ctime,
            mtime,
            i_dtime,
            gid & 0xFFFF,
            i_links_count,
            i_blocks & 0xFFFFFFFF,
            i_flags,
        )
        _BODY.pack_into(block, offset + _BODY_OFFSET, i_block, i_generation, i_file_acl & 0xFFFFFFFF, size >> 32)
        _HIGH_IDS.pack_into(block, offset + _HIGH_IDS_OFFSET, uid >> 16, gid >> 16)
        if i_extra_isize:
            start = offset + _EXTRA_TIMES_OFFSET
            if covered > 2:
                _EXTRA_TIMES.pack_into(block, start, ctime_extra, mtime_extra, atime_extra)
            else:
                extras = _EXTRA_TIMES.pack(ctime_extra, mtime_extra, atime_extra)[: max(covered, 0) * 4]
                block[start : start + len(extras)] = extras
            start = offset + EXT2_GOOD_OLD_INODE_SIZE + i_extra_isize
            block[start : start + len(extra)] = extra

    def pack_new_into(self, block: bytearray, offset: int, size: int) -> None:
        """Write a new inode of ``size`` bytes, with i_crtime if there is room; nothing of its predecessor is left."""
        block[offset : offset + size] = bytes(size)
        if size > EXT2_GOOD_OLD_INODE_SIZE:
            struct.pack_into("<H", block, offset + _EXTRA_ISIZE_OFFSET, self.i_extra_isize)
            if self.i_extra_isize >= _CRTIME_OFFSET + _CRTIME.size - EXT2_GOOD_OLD_INODE_SIZE:
                _CRTIME.pack_into(block, offset + _CRTIME_OFFSET, *_pack_time(self.ctime_ns, True))
        self.pack_into(block, offset)

    def i_blocks_after(self, count: int, block_size: int) -> int:
        """i_blocks when the inode has ``count`` blocks more (negative: fewer), indirect and attribute blocks included.

        Raises:
            CorruptFilesystem: i_blocks of a block map cannot count them.
        """
        i_blocks = max(self.i_blocks + count * (block_size // 512), 0)
        if i_blocks >> 32 and not self.i_flags & EXT4_EXTENTS_FL:
            raise CorruptFilesystem(f"inode {self.ino}: its i_blocks {self.i_blocks} leaves no room for more")
        return i_blocks


def birth_time(block: Block, offset: int, size: int) -> int | None:
    """i_crtime of the inode of ``size`` bytes at a place in a block of the inode table, in nanoseconds since the epoch;
    None if i_extra_isize does not cover it (fs/ext4/inode.c, ext4_getattr)."""
    if size <= EXT2_GOOD_OLD_INODE_SIZE:
        return None
    (extra_isize,) = struct.unpack_from("<H", block, offset + _EXTRA_ISIZE_OFFSET)
    covered = extra_isize - (_CRTIME_OFFSET - EXT2_GOOD_OLD_INODE_SIZE)
    if covered < 4:
        return None
    seconds, extra = _CRTIME.unpack_from(block, offset + _CRTIME_OFFSET)
    if covered < _CRTIME.size:
        extra = 0
    nanoseconds: int = (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)
    return nanoseconds


@lru_cache(maxsize=64)  # most inodes are written with the same time thrice
def _pack_time(time_ns: int, has_extra: bool) -> tuple[int, int]:
    """Encode a time: (the 32-bit field, its extra field), cut to what they can hold."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    if 0 < seconds < _TIME_MAX:
        return seconds, nanoseconds << 2
    limit = _EXTRA_TIME_MAX if has_extra else _TIME_MAX
    if not _TIME_MIN < seconds < limit:
        # No nanoseconds in the first and last second either (fs/inode.c, timestamp_truncate).
        seconds, nanoseconds = min(max(seconds, _TIME_MIN), limit), 0
    low = (seconds + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    return low, (seconds - low) >> 32 & 3 | nanoseconds << 2

"""A look at a directory before it is made into an image: how large it is, and what it is, as one digest."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mystfuse.errors import MystfuseError


@dataclass(frozen=True, slots=True)
class SourceTree:
    """What ``scan`` found."""

    apparent_size: int
    """Bytes, as ``du -b`` counts them: directories too, hard links once."""
    inodes: int
    small_blocks: int
    """Blocks of 1 KiB that the contents fill."""
    blocks: int
    """Blocks of 4 KiB that the contents fill."""
    late_times: dict[bytes, int]
    """Relative path -> mtime in seconds, for times past 2038 (or before 1901) that do not fit mke2fs's 32 bits."""
    digest: bytes
    """SHA-256 over names, types, modes, owners, sizes, times and symlink targets, in a fixed order."""

    def content_size(self, block_size: int) -> int:
        """Bytes that the contents and their indirect blocks fill in blocks of ``block_size``, not less than needed."""
        if block_size <= 1024:
            filled = self.small_blocks * 1024
        elif block_size <= 4096:
            filled = self.blocks * 4096
        else:
            filled = self.blocks * 4096 + self.inodes * block_size
        return filled + filled // (block_size // 4) + 2 * self.inodes * (block_size // 256)


def scan(directory: Path, reproducible: bool = False) -> SourceTree:
    """Walk ``directory`` without following symbolic links.

    Args:
        reproducible: count every directory as 4096 bytes; how large one is depends on the file system it is on.

    Raises:
        MystfuseError: something in it cannot be read.
    """
    digest = hashlib.sha256()
    seen: set[tuple[int, int]] = set()
    late_times: dict[bytes, int] = {}
    apparent_size = inodes = small_blocks = blocks = 0
    pending = [os.fsencode(directory)]
    prefix = len(pending[0])
    first = True
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path) if first else os.lstat(path)
            first = False
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            if stat.S_ISDIR(status.st_mode):
                pending += [os.path.join(path, name) for name in sorted(os.listdir(path), reverse=True)]
        except OSError as error:
            raise MystfuseError(f"{os.fsdecode(path)}: {error.strerror}") from error
        is_directory = stat.S_ISDIR(status.st_mode)
        size = 0 if is_directory else status.st_size
        mtime = status.st_mtime_ns // 1_000_000_000
        if not -(1 << 31) <= mtime < 1 << 31:
            late_times[path[prefix:].lstrip(b"/")] = mtime
        identity = [path[prefix:], status.st_mode, status.st_uid, status.st_gid, size, mtime, target]
        digest.update(repr(identity).encode())
        key = (status.st_dev, status.st_ino)
        if key in seen:
            continue
        seen.add(key)
        inodes += 1
        filled = 4096 if is_directory and reproducible else status.st_size
        apparent_size += filled
        small_blocks += -(-filled // 1024)
        blocks += -(-filled // 4096)
    return SourceTree(apparent_size, inodes, small_blocks, blocks, late_times, digest.digest())

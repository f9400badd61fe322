"""A scan of a directory before making an image: its size, and one digest of its contents."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from mystfuse.build.tree_limits import MAX_LINKS, NO_PIECE, Piece, check_fields, check_links, piece_of
from mystfuse.errors import MystfuseError


@dataclass(frozen=True, slots=True)
class SourceTree:
    """The result of ``scan``."""

    apparent_size: int
    """Bytes, as ``du -b`` counts them: directories too, hard links once."""
    inodes: int
    small_blocks: int
    """Blocks of 1 KiB that the contents fill."""
    blocks: int
    """Blocks of 4 KiB that the contents fill."""
    late_times: dict[bytes, int]
    """Relative path -> mtime in seconds, for times past 2038 (or before 1901) that do not fit mke2fs's 32 bits."""
    needed_block: int
    """The block size that every link target and all attributes of a file fit for certain."""
    largest_piece: Piece
    """The piece that needs the largest block for certain."""
    largest_file: tuple[int, bytes]
    """The largest file: its size, and its path."""
    digest: bytes
    """SHA-256 over names, types, modes, owners, sizes, times and symlink targets, in a fixed order."""

    def content_size(self, block_size: int) -> int:
        """Bytes that the contents and their indirect blocks fill in blocks of ``block_size``; an upper bound."""
        if block_size <= 1024:
            filled = self.small_blocks * 1024
        elif block_size <= 4096:
            filled = self.blocks * 4096
        else:
            filled = self.blocks * 4096 + self.inodes * block_size
        return filled + filled // (block_size // 4) + 2 * self.inodes * (block_size // 256)


def scan(directory: Path, epoch: int | None = None) -> SourceTree:
    """Walk ``directory`` without following symbolic links.

    Args:
        epoch: later times are set back to it, and the result is to depend on the directory alone: so every directory
            counts as 4096 bytes; how large one is depends on the file system it is on.

    Raises:
        MystfuseError: reading it failed, or it contains something that no ext2 file system can store.
    """
    digest = hashlib.sha256()
    seen: set[tuple[int, int]] = set()
    late_times: dict[bytes, int] = {}
    apparent_size = inodes = small_blocks = blocks = needed_block = 0
    largest_piece, largest_file = NO_PIECE, (0, b"")
    names_of: Counter[tuple[int, int]] = Counter()
    subdirectories: Counter[bytes] = Counter()
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
            key = (status.st_dev, status.st_ino)
            piece = NO_PIECE if key in seen else piece_of(path, target)
        except OSError as error:
            raise MystfuseError(f"{os.fsdecode(path)}: {error.strerror}") from error
        check_fields(path, status, epoch)
        is_directory = stat.S_ISDIR(status.st_mode)
        is_lost_and_found = path[prefix:].lstrip(b"/") == b"lost+found"
        if is_lost_and_found and not is_directory:
            raise MystfuseError(f"{os.fsdecode(path)}: every ext2 file system has a directory of that name: rename it")
        size = 0 if is_directory else status.st_size
        mtime = status.st_mtime_ns // 1_000_000_000
        if not -(1 << 31) <= mtime < 1 << 31:
            late_times[path[prefix:].lstrip(b"/")] = mtime
        identity = [path[prefix:], status.st_mode, status.st_uid, status.st_gid, size, mtime, target]
        digest.update(repr(identity).encode())
        if is_directory:
            above = os.path.dirname(path)
            subdirectories[above] += 1
            check_links(above, subdirectories[above] + 2, "it has too many subdirectories")
        elif status.st_nlink > MAX_LINKS:
            names_of[key] += 1
            check_links(path, names_of[key], "its file has too many names")
        if key in seen:
            continue
        seen.add(key)
        inodes += 1
        needed_block = max(needed_block, piece.size)
        largest_piece = max(largest_piece, piece, key=attrgetter("least"))
        if stat.S_ISREG(status.st_mode):
            largest_file = max(largest_file, (status.st_size, path))
        filled = 4096 if is_directory and epoch is not None else status.st_size
        apparent_size += filled
        small_blocks += -(-filled // 1024)
        blocks += -(-filled // 4096)
    return SourceTree(
        apparent_size,
        inodes,
        small_blocks,
        blocks,
        late_times,
        needed_block,
        largest_piece,
        largest_file,
        digest.digest(),
    )

"""What making an image needs to know of a tree beforehand: its size, and one digest of its contents; and the scan of a
directory for it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from mystfuse.archives.file_tree import Entry
from mystfuse.build.tree_limits import (
    MAX_LINKS,
    NO_PIECE,
    Piece,
    check_fields,
    check_links,
    check_readable,
    piece_of,
    read_attributes,
)
from mystfuse.errors import MystfuseError


@dataclass(frozen=True, slots=True)
class SourceTree:
    """The result of a scan."""

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
    new_inodes: int
    """Inodes that mke2fs makes for it, beyond those of an empty file system."""
    top: Entry
    """The root directory itself."""
    root: Entry | None
    """The tree, if it was to be kept."""

    def content_size(self, block_size: int) -> int:
        """Bytes that the contents and their indirect blocks fill in blocks of ``block_size``; an upper bound."""
        if block_size <= 1024:
            filled = self.small_blocks * 1024
        elif block_size <= 4096:
            filled = self.blocks * 4096
        else:
            filled = self.blocks * 4096 + self.inodes * block_size
        return filled + filled // (block_size // 4) + 2 * self.inodes * (block_size // 256)


class Selection(Protocol):
    """Which files of a directory are taken."""

    def takes(self, path: bytes, is_directory: bool) -> bool:
        """Whether a file is taken, by its path from the directory on. What is below a directory that is not taken is
        not taken either, nor read."""
        ...

    def check_found(self, name: str, mode_of: Callable[[bytes], int]) -> None:
        """When all of the tree has been seen: raise UsageError for what was to be taken and was not there.

        Args:
            name: of the tree, for messages.
            mode_of: the mode of the file at a path; OSError as lstat(2).
        """
        ...


class TreeSums:
    """What has been found of a tree until now: name by name, a directory before what is in it, always in one order.

    Args:
        epoch: later times are set back to it.
    """

    def __init__(self, epoch: int | None) -> None:
        self._epoch = epoch
        self._digest = hashlib.sha256()
        self._late_times: dict[bytes, int] = {}
        self._apparent_size = self._inodes = self._small_blocks = self._blocks = self._needed_block = 0
        self._more_inodes = 0
        self._largest_piece, self._largest_file = NO_PIECE, (0, b"")
        self._subdirectories: Counter[bytes] = Counter()
        self._top: Entry | None = None

    def add(self, shown: bytes, path: bytes, entry: Entry, is_new: bool, is_linked: bool, filled: int) -> None:
        """Count one name.

        Args:
            shown: the path for messages.
            path: the same, from the root of the tree on.
            entry: what the name is of, with its attributes if it is new.
            is_new: whether it has had no other name.
            is_linked: whether it may have several, by mke2fs's rule: not a symbolic link, nor what is found twice by a
                bind mount.
            filled: bytes that its contents fill.

        Raises:
            MystfuseError: no ext2 file system can store it.
        """
        mtime = entry.mtime_ns // 1_000_000_000
        check_fields(shown, mtime, entry.size - entry.hole_bytes, self._epoch)
        if path == b"lost+found":
            if not entry.is_directory:
                raise MystfuseError(
                    f"{os.fsdecode(shown)}: every ext2 file system has a directory of that name: rename it"
                )
            # It has one anyway.
            self._more_inodes -= 1
        if not -(1 << 31) <= mtime < 1 << 31:
            self._late_times[path] = mtime
        identity = [b"/" + path if path else b"", entry.mode, entry.uid, entry.gid, entry.size, mtime, entry.target]
        self._digest.update(repr(identity).encode())
        if not path:
            self._top = entry
        if entry.is_directory:
            above = os.path.dirname(shown)
            self._subdirectories[above] += 1
            check_links(above, self._subdirectories[above] + 2, "it has too many subdirectories")
        if not is_new:
            self._more_inodes += not is_linked
            return
        piece = piece_of(shown, entry.target, entry.attributes)
        self._inodes += 1
        self._needed_block = max(self._needed_block, piece.size)
        self._largest_piece = max(self._largest_piece, piece, key=attrgetter("least"))
        if stat.S_ISREG(entry.mode):
            self._largest_file = max(self._largest_file, (entry.size, shown))
        self._apparent_size += filled
        self._small_blocks += -(-filled // 1024)
        self._blocks += -(-filled // 4096)

    def result(self, root: Entry | None) -> SourceTree:
        """What all of them are.

        Args:
            root: the tree, if it is kept.
        """
        assert self._top is not None
        return SourceTree(
            self._apparent_size,
            self._inodes,
            self._small_blocks,
            self._blocks,
            self._late_times,
            self._needed_block,
            self._largest_piece,
            self._largest_file,
            self._digest.digest(),
            self._inodes - 1 + self._more_inodes,
            self._top,
            root,
        )


class _Scan:
    """What has been found of a directory until now."""

    def __init__(self, directory: Path, epoch: int | None, owner: tuple[int, int] | None, keep: bool) -> None:
        self.prefix = len(os.fsencode(directory))
        self.sums = TreeSums(epoch)
        self.root: Entry | None = None
        self._epoch = epoch
        self._owner = owner
        self._keeps = keep
        self._seen: dict[tuple[int, int], Entry | None] = {}
        self._directories: dict[bytes, Entry] = {}
        self._names_of: Counter[tuple[int, int]] = Counter()

    def add(self, path: bytes, status: os.stat_result, target: bytes) -> None:
        """Count one file, each of its names by itself; OSError if its attributes cannot be read."""
        key = (status.st_dev, status.st_ino)
        is_new = key not in self._seen
        check_readable(path, status.st_mode)
        is_directory = stat.S_ISDIR(status.st_mode)
        if not is_directory and status.st_nlink > MAX_LINKS:
            self._names_of[key] += 1
            check_links(path, self._names_of[key], "its file has too many names")
        is_linked = not is_directory and not stat.S_ISLNK(status.st_mode) and status.st_nlink > 1
        known = self._seen.get(key) if is_linked and self._keeps else None
        entry, relative = known, path[self.prefix :].lstrip(b"/")
        if entry is None:
            attributes = read_attributes(path) if is_new or self._keeps else ()
            entry = Entry.of(relative, status, self._owner, target, attributes)
        filled = 4096 if is_directory and self._epoch is not None else status.st_size
        self.sums.add(path, relative, entry, is_new, is_linked, filled)
        if self._keeps:
            self._keep(entry, relative, entry is known)
        if is_new or self._keeps:
            self._seen[key] = entry if self._keeps else None

    def _keep(self, entry: Entry, path: bytes, is_known: bool) -> None:
        """Put a name into the kept tree."""
        entry.names += is_known
        if entry.is_directory:
            self._directories[path] = entry
        if path:
            above, _, name = path.rpartition(b"/")
            self._directories[above].children[name] = entry
        else:
            self.root = entry


def scan(
    directory: Path,
    epoch: int | None = None,
    selection: Selection | None = None,
    owner: tuple[int, int] | None = None,
    keep: bool = False,
) -> SourceTree:
    """Walk ``directory`` without following symbolic links.

    Args:
        epoch: later times are set back to it, and the result is to depend on the directory alone: so every directory
            counts as 4096 bytes; how large one is depends on the file system it is on.
        selection: takes a part of the files.
        owner: user and group that all files get.
        keep: whether the result has the whole tree in memory, as ``root``.

    Raises:
        MystfuseError: reading it failed, or it contains something that no ext2 file system can store.
        UsageError: something that is to be taken is not there.
    """
    found = _Scan(directory, epoch, owner, keep)
    pending = [os.fsencode(directory)]
    first = True
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path) if first else os.lstat(path)
            first = False
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            if stat.S_ISDIR(status.st_mode):
                names = _names(path, found.prefix, selection)
                pending += [os.path.join(path, name) for name in sorted(names, reverse=True)]
            found.add(path, status, target)
        except OSError as error:
            raise MystfuseError(f"{os.fsdecode(path)}: {error.strerror}") from error
    if selection is not None:
        selection.check_found(str(directory), lambda path: os.lstat(os.path.join(os.fsencode(directory), path)).st_mode)
    return found.sums.result(found.root)


def _names(path: bytes, prefix: int, selection: Selection | None) -> list[bytes]:
    """The names in a directory that are taken; raises OSError."""
    if selection is None:
        return os.listdir(path)
    relative = path[prefix:].lstrip(b"/")
    with os.scandir(path) as entries:
        return [
            entry.name
            for entry in entries
            if selection.takes(os.path.join(relative, entry.name), entry.is_dir(follow_symlinks=False))
        ]

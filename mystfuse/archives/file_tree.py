"""A tree of files in memory: what ``build.tree_server`` shows mke2fs, and ``build.filled_blocks`` counts.

Where the tree comes from is the business of its ``Contents`` alone: a directory is one source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

Attributes = tuple[tuple[bytes, bytes], ...]
"""Names and values of extended attributes, in the order in which the source lists them."""


@dataclass(slots=True)
class Entry:
    """One inode of the tree, under one or more names."""

    path: bytes
    """Its first name, from the root on; empty for the root."""
    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    hole_bytes: int = 0
    """Bytes of holes in its data."""
    target: bytes = b""
    """Of a symbolic link."""
    attributes: Attributes = ()
    names: int = 1
    """How many names it has in the tree."""
    children: dict[bytes, Entry] = field(default_factory=dict)
    """Of a directory, by name."""

    @classmethod
    def of(
        cls,
        path: bytes,
        status: os.stat_result,
        owner: tuple[int, int] | None,
        target: bytes,
        attributes: Attributes,
    ) -> Entry:
        """The entry of a file on disk; ``owner`` is another than its own."""
        uid, gid = owner or (status.st_uid, status.st_gid)
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return cls(
            path,
            status.st_mode,
            uid,
            gid,
            size,
            status.st_rdev,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            max(status.st_size - status.st_blocks * 512, 0) if stat.S_ISREG(status.st_mode) else 0,
            target,
            attributes,
        )

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def remove(self, name: bytes) -> None:
        """Take a name out of this directory, with all names below it."""
        pending = [(self, name)]
        while pending:
            directory, part = pending.pop()
            entry = directory.children.pop(part)
            entry.names -= 1
            pending += [(entry, child) for child in entry.children]

    def walk(self) -> Iterator[Entry]:
        """Every inode from here down, once each."""
        seen: set[int] = set()
        pending = [self]
        while pending:
            entry = pending.pop()
            if entry.names > 1:
                if id(entry) in seen:
                    continue
                seen.add(id(entry))
            yield entry
            pending += entry.children.values()


class OpenContents(Protocol):
    """The data of one regular file."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on; fewer only at the end. Raises OSError."""
        ...

    def seek(self, offset: int, whence: int) -> int:
        """The next data or hole: as lseek(2) does with SEEK_DATA and SEEK_HOLE. Raises OSError, ENXIO for none."""
        ...

    def close(self) -> None: ...


class Contents(Protocol):
    """Where the data of a tree's files are."""

    descriptors: frozenset[int]
    """What a process that opens files needs to inherit."""

    def open(self, entry: Entry) -> OpenContents:
        """Open a regular file's data. Raises OSError."""
        ...

"""A tree that can be compared with another: an image's, a directory's, a tar archive's."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mystfuse.errors import MystfuseError, one_line

MAX_PATH = 1 << 14
"""Bytes of a path that is compared, four times what one system call takes. Each directory on the way to a path keeps
its own, so memory grows with the square of the depth."""


def check_path(path: bytes, view: str) -> None:
    """Raise MystfuseError for a path that is longer than ``MAX_PATH``; ``view`` is the tree's name."""
    if len(path) > MAX_PATH:
        raise MystfuseError(f"{view}: {one_line(os.fsdecode(path[:60]))}...: a path of more than {MAX_PATH} bytes")


@dataclass(frozen=True, slots=True)
class Node:
    """One inode of a view. Nodes of a view with the same ``key`` are one inode under several names."""

    key: Hashable
    """What names the inode within its view: of an image, its number."""
    mode: int
    uid: int
    gid: int
    size: int
    """Bytes; 0 of whatever is not a regular file."""
    rdev: int
    """Of a device; 0 of everything else."""
    mtime_ns: int
    nlink: int
    generation: int = 0
    """Of an image's inode: another one if its number has been used anew."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class View(Protocol):
    """A tree to be compared. Each method reaches a checkpoint of trio's at least every few milliseconds.

    Methods raise OSError, or a MystfuseError for broken or damaged images.
    """

    name: str
    """As messages call it."""
    lineage: Hashable
    """Views of the same one, if it is not None, come from one file system: equal keys are the same inode, unless that
    has been used anew."""

    async def root(self) -> Node: ...

    async def children(self, node: Node) -> Mapping[bytes, Node]:
        """The names in a directory, without ``.`` and ``..``, sorted."""
        ...

    async def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """Full names and values; ACLs as getxattr(2) gives them (``system.posix_acl_access``)."""
        ...

    async def target(self, node: Node) -> bytes:
        """Of a symbolic link."""
        ...

    async def read(self, node: Node, offset: int, length: int) -> bytes | memoryview:
        """Up to ``length`` bytes of a regular file from ``offset`` on; fewer only at the end."""
        ...

    def data_ranges(self, node: Node) -> AsyncIterator[tuple[int, int]]:
        """The ranges of data of a regular file (offset, length), in order; holes lie between them."""
        ...

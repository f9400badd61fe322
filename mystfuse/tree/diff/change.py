"""One difference between two trees."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mystfuse.tree.diff.view import Node


class Kind(StrEnum):
    """What became of a path."""

    ADDED = "added"
    REMOVED = "removed"
    RENAMED = "renamed"
    """The inode had another path; it may have changed too."""
    CHANGED = "changed"


class Aspect(StrEnum):
    """What differs between two inodes."""

    TYPE = "type"
    """Another kind of file; nothing else is compared then."""
    CONTENT = "content"
    """Of a regular file."""
    TARGET = "target"
    """Of a symbolic link."""
    DEVICE = "device"
    SIZE = "size"
    MODE = "mode"
    OWNER = "owner"
    GROUP = "group"
    MTIME = "mtime"
    XATTRS = "xattrs"
    """Extended attributes other than ACLs."""
    ACL = "acl"
    LINKS = "links"
    """It shares its inode with other paths than before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. All paths lead from the root on, without a slash in front; the root itself is empty."""

    path: bytes
    """Where it is now; of what was removed, where it was."""
    old: Node | None
    """None if it was added."""
    new: Node | None
    """None if it was removed."""
    old_path: bytes | None = None
    """Where it was, if it was renamed."""
    aspects: frozenset[Aspect] = frozenset()
    """What differs, if it was and is there."""

    @property
    def kind(self) -> Kind:
        if self.old is None:
            return Kind.ADDED
        if self.new is None:
            return Kind.REMOVED
        return Kind.CHANGED if self.old_path is None else Kind.RENAMED

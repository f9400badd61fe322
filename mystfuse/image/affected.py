"""What damage costs, inode by inode: the result of ``block_owners`` and ``lost_names``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MAX_INODES = 100_000
"""Inodes that are recorded; others are counted."""
MAX_PARTS = 32
"""Parts recorded of one inode."""
MANY_INODES = 1000
"""When so many inodes are recorded, of each further one only ``FEW_PARTS`` are."""
FEW_PARTS = 2
MAX_NAMES = 8
"""Names recorded of one inode."""

DATA = "data"
INDIRECT = "indirect block"
EXTENT_BLOCK = "extent block"
ATTRIBUTES = "extended attributes"
INODE = "inode"
NAME = "name"


class Part(NamedTuple):
    """A part of an inode that cannot be read."""

    what: str
    """``data``; ``indirect block``, ``extent block``: what it leads to; ``extended attributes``; ``inode``: all of it;
    ``name``: how to reach it."""
    start: int
    """Bytes of the file; 0 for what is not in the file."""
    end: int
    unverifiable: bool
    """Whether a hash block is damaged, rather than these bytes as far as is known."""


@dataclass(slots=True)
class AffectedInode:
    """An inode that damage affects."""

    ino: int
    kind: str
    """``file``, ``directory``, ``symbolic link``, ...; ``inode`` if that is not known."""
    size: int | None
    """Bytes; None if the inode is lost."""
    max_parts: int = MAX_PARTS
    parts: list[Part] = field(default_factory=list)
    lost_bytes: int = 0
    """Of the file, those of parts left out included."""
    parts_left_out: int = 0
    names: list[tuple[int, bytes]] = field(default_factory=list)
    """(inode of the directory, name)."""
    names_left_out: int = 0

    def add_part(self, part: Part) -> None:
        """Add a part that does not overlap the others."""
        self.lost_bytes += part.end - part.start
        last = self.parts[-1] if self.parts else None
        if last and last.end == part.start and (last.what, last.unverifiable) == (part.what, part.unverifiable):
            self.parts[-1] = last._replace(end=part.end)
            return
        self.parts.append(part)
        if len(self.parts) > 4 * self.max_parts:
            self.tidy()

    def tidy(self) -> None:
        """Sort and merge the parts, and keep the first ones."""
        merged: list[Part] = []
        for part in sorted(self.parts, key=lambda part: (part.start, part.end, part.what)):
            last = merged[-1] if merged else None
            if last and last.end == part.start and (last.what, last.unverifiable) == (part.what, part.unverifiable):
                merged[-1] = last._replace(end=part.end)
            elif last != part:
                merged.append(part)
        self.parts_left_out += max(len(merged) - self.max_parts, 0)
        self.parts = merged[: self.max_parts]

    def add_name(self, parent: int, name: bytes) -> None:
        """Add a name that a directory has for it."""
        if len(self.names) < MAX_NAMES:
            self.names.append((parent, name))
        else:
            self.names_left_out += 1


class AffectedInodes:
    """All of them, by number."""

    def __init__(self) -> None:
        self.recorded: dict[int, AffectedInode] = {}
        self.left_out = 0
        """Inodes that are not recorded: at most so many, since one may have been counted again and again."""

    def record(self, ino: int, kind: str, size: int | None) -> AffectedInode | None:
        """The record of an inode; None if there are too many."""
        found = self.recorded.get(ino)
        if found is None:
            if len(self.recorded) >= MAX_INODES:
                self.left_out += 1
                return None
            max_parts = MAX_PARTS if len(self.recorded) < MANY_INODES else FEW_PARTS
            found = self.recorded[ino] = AffectedInode(ino, kind, size, max_parts)
        return found

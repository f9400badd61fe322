"""READDIR: the entries of open directories, prepared many at a time and handed over as the kernel has room."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.fuse.attributes import ShownAttributes, broken, dot
from mystfuse.fuse.control_directory import ControlDirectory
from mystfuse.fuse.control_directory_names import CONTROL_INO, CONTROL_NAME
from mystfuse.fuse.lookup_counts import LookupCounts
from mystfuse.volume.volume import Volume

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 512
"""Directory entries prepared together; those that the kernel has no room for are kept for its next request."""
_AFTER_DOT, _AFTER_DOTDOT = 1, 2
"""Positions of a listing behind ``.`` and ``..``; the others are byte offsets, all of them larger."""
_POSITION_BITS, _VERSION_BITS = 32, 30
"""Of a position in a listing that the kernel keeps: see ``version_in_positions`` of fastpath/listings.c."""
_OUR_POSITIONS = 1 << _POSITION_BITS + _VERSION_BITS


@dataclass(slots=True)
class OpenDirectory:
    """A handle of a directory. The kernel sends one READDIR a handle at a time."""

    ino: int
    is_kept: bool = False
    """Whether the kernel keeps its listings."""
    position: int = -1
    """Where ``prepared`` begins."""
    changes: int = 0
    """``Volume.changes`` when ``prepared`` was made: entries from before a change must not be used."""
    size: int = 0
    """Bytes of the directory, as of ``changes``; 0 if not known."""
    prepared: list[tuple[bytes, EntryAttributes, int]] = field(default_factory=list)
    """Prepared entries, each with the position behind it."""


class DirectoryReader:
    """Answers READDIR for all open directories of a mount."""

    def __init__(
        self, volume: Volume, control: ControlDirectory | None, shown: ShownAttributes, lookup_counts: LookupCounts
    ) -> None:
        self._volume = volume
        self._control = control
        self._shown = shown
        self._lookup_counts = lookup_counts
        self._has_warned = False

    async def reply(self, directory: OpenDirectory, position: int, token: ReaddirToken) -> None:
        """Reply with entries from ``position`` on, until the kernel has no more room or the directory ends.

        Raises:
            MystfuseError: reading the first entries failed.
        """
        replied = False
        position &= (1 << _POSITION_BITS) - 1
        is_control = self._control is not None and self._control.owns(directory.ino)
        while True:
            if not directory.prepared or directory.position != position or directory.changes != self._volume.changes:
                if directory.changes != self._volume.changes:
                    directory.size = 0
                try:
                    directory.prepared = await self._prepare(directory, position)
                    # No await since they were made: they show this state.
                    directory.changes = self._volume.changes
                except MystfuseError:
                    if replied:
                        # The reply has the entries so far; the next request meets the error again.
                        return
                    raise
                directory.position = position
                if not directory.prepared:
                    return
            version = self._version_in_positions() if directory.is_kept else 0
            for index, (name, attributes, next_id) in enumerate(directory.prepared):
                if not pyfuse3.readdir_reply(token, name, attributes, version | next_id):
                    del directory.prepared[:index]
                    directory.position = position
                    return
                # For an entry without a type the kernel takes no reference to an inode.
                if next_id > _AFTER_DOTDOT and attributes.st_mode and not is_control:
                    self._lookup_counts.known(attributes.st_ino)
                position, replied = next_id, True
            directory.prepared = []

    def _version_in_positions(self) -> int:
        return _OUR_POSITIONS | (self._volume.changes & (1 << _VERSION_BITS) - 1) << _POSITION_BITS

    async def _prepare(self, directory: OpenDirectory, position: int) -> list[tuple[bytes, EntryAttributes, int]]:
        """The next entries of a directory from ``position`` on, with the position behind each; empty at its end."""
        ino = directory.ino
        if self._control and self._control.owns(ino):
            own: list[tuple[bytes, EntryAttributes]] = [
                (b".", self._control.attributes(CONTROL_INO)),
                (b"..", self._shown.of(await self._volume.inode(EXT2_ROOT_INO))),
                *self._control.entries(),
            ]
            return [(name, attributes, index) for index, (name, attributes) in enumerate(own, 1)][position:]
        if position < _AFTER_DOTDOT:
            parent, directory.size = await self._volume.dots(ino)
            dots = [(b".", dot(ino), _AFTER_DOT), (b"..", dot(parent), _AFTER_DOTDOT)]
            return dots[position:]
        offset = 0 if position == _AFTER_DOTDOT else position
        if offset and offset == directory.size and directory.changes == self._volume.changes:
            # The kernel asks once more, to learn that this is the end.
            return []
        hidden = CONTROL_NAME if self._control and ino == EXT2_ROOT_INO else None
        while True:
            found, next_offset = await self._volume.entries(ino, offset, ENTRIES_AT_ONCE)
            entries = [
                (entry.name, self._shown.of(inode) if inode else broken(entry.ino), entry.next_offset)
                for entry, inode in found
                if entry.name != hidden
            ]
            if hidden and not self._has_warned and len(entries) < len(found):
                self._has_warned = True
                log.warning("the image's own .mystfuse is hidden by the control directory (-o nocontrol shows it)")
            if entries or next_offset <= offset:
                return entries
            offset = next_offset

"""The control directory ``.mystfuse`` at the root of the mount: hidden from listings, for the mounting user and root.

``status.json`` is the mount's status, ``metrics`` the same for Prometheus; ``image`` is the whole file system as one
file, as of when it was opened. ``base`` is the same as it was mounted, ``written`` what has been written to it.
``touched`` has the parts of the image that have been read since, by the first time.

Its inode numbers begin at 2^32: EXT2 has smaller ones alone.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pyfuse3 import EntryAttributes

from mystfuse.fuse.control_directory_names import (
    BASE_INO,
    BASE_NAME,
    CONTROL_INO,
    IMAGE_INO,
    IMAGE_NAME,
    METRICS_INO,
    METRICS_NAME,
    STATUS_INO,
    STATUS_NAME,
    TOUCHED_INO,
    TOUCHED_NAME,
    WRITTEN_INO,
    WRITTEN_NAME,
)
from mystfuse.fuse.metrics import MountState, metrics

_FILES = {
    STATUS_NAME: STATUS_INO,
    METRICS_NAME: METRICS_INO,
    IMAGE_NAME: IMAGE_INO,
    BASE_NAME: BASE_INO,
    WRITTEN_NAME: WRITTEN_INO,
    TOUCHED_NAME: TOUCHED_INO,
}


@dataclass(frozen=True, slots=True)
class ControlSources:
    """Where contents come from, besides the status."""

    refresh_status: Callable[[], Awaitable[None]] | None = None
    """Brings what the status has of other processes up to date; may take a moment, and never fails. None: there is
    nothing of that kind."""
    touched: Callable[[], list[tuple[int, int]]] = list
    """The parts of the image that have been read, by the first time: offsets and lengths in bytes."""


class ControlDirectory:
    """Attributes and contents of ``.mystfuse`` and its files.

    Args:
        status: gives the present status, to be shown as JSON.
        image_size: bytes of the file system.
        owner: the mounting user and group.
        sources: of what is shown besides.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], image_size: int, owner: tuple[int, int], sources: ControlSources
    ) -> None:
        self._status = status
        self._sources = sources
        self._image_size = image_size
        self._uid, self._gid = owner

    def owns(self, ino: int) -> bool:
        """Whether inode number ``ino`` is one of ours."""
        return ino >= CONTROL_INO

    def may_use(self, uid: int) -> bool:
        """Whether user ``uid`` may look into the control directory."""
        return uid in (0, self._uid)

    def lookup(self, ino: int, name: bytes) -> EntryAttributes | None:
        """The attributes of ``name`` in the control directory, or of ``.`` in any inode of ours (a file handle);
        None if there is no such name."""
        if name != b".":
            found = _FILES.get(name) if ino == CONTROL_INO else None
        else:
            found = ino if ino in (CONTROL_INO, *_FILES.values()) else None
        return self.attributes(found) if found else None

    def attributes(self, ino: int) -> EntryAttributes:
        """The attributes of the control directory or of a file in it; never cached."""
        attributes = EntryAttributes()
        attributes.st_ino = ino
        attributes.st_mode = stat.S_IFDIR | 0o500 if ino == CONTROL_INO else stat.S_IFREG | 0o400
        attributes.st_nlink = 2 if ino == CONTROL_INO else 1
        attributes.st_uid, attributes.st_gid = self._uid, self._gid
        # Opening makes the others, so their sizes are unknown before: programs read to their ends.
        attributes.st_size = self._image_size if ino in (IMAGE_INO, BASE_INO) else 0
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    def entries(self) -> list[tuple[bytes, EntryAttributes]]:
        """The entries of the control directory, without ``.`` and ``..``."""
        return [(name, self.attributes(ino)) for name, ino in _FILES.items()]

    def refresher(self, ino: int) -> Callable[[], Awaitable[None]] | None:
        """What is to be awaited before ``contents``, if anything."""
        return None if ino == TOUCHED_INO else self._sources.refresh_status

    def contents(self, ino: int) -> bytes:
        """The contents of ``status.json``, ``metrics`` or ``touched``, as of now."""
        if ino == TOUCHED_INO:
            return "".join(f"{offset} {length}\n" for offset, length in self._sources.touched()).encode()
        status = self._status()
        if ino == METRICS_INO:
            return metrics([MountState(status["mountpoint"], status["image"], status)])
        return (json.dumps(status, indent=2) + "\n").encode()

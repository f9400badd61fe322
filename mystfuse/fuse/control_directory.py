"""The control directory ``.mystfuse`` at the root of the mount: hidden from listings, for the mounting user and root.

``status.json`` is the mount's status; ``image`` is the whole file system as one file, as of when it was opened.

Its inode numbers begin at 2^32: EXT2 has smaller ones alone.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from typing import Any

from pyfuse3 import EntryAttributes

from mystfuse.fuse.control_directory_names import CONTROL_INO, IMAGE_INO, IMAGE_NAME, STATUS_INO, STATUS_NAME

_FILES = {STATUS_NAME: STATUS_INO, IMAGE_NAME: IMAGE_INO}


class ControlDirectory:
    """Attributes and contents of ``.mystfuse`` and its files.

    Args:
        status: gives the present status, to be shown as JSON.
        image_size: bytes of the file system.
        owner: the mounting user and group.
    """

    def __init__(self, status: Callable[[], dict[str, Any]], image_size: int, owner: tuple[int, int]) -> None:
        self._status = status
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
        # Opening it makes the status, so its size is unknown before: programs read to its end.
        attributes.st_size = self._image_size if ino == IMAGE_INO else 0
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    def entries(self) -> list[tuple[bytes, EntryAttributes]]:
        """The entries of the control directory, without ``.`` and ``..``."""
        return [(name, self.attributes(ino)) for name, ino in _FILES.items()]

    def status(self) -> bytes:
        """The contents of ``status.json``, as of now."""
        return (json.dumps(self._status(), indent=2) + "\n").encode()

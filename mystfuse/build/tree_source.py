"""What an image is made of: a tree, on disk or in archives."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Protocol

from mystfuse.archives.file_tree import Contents, Entry
from mystfuse.build.directory_contents import DirectoryContents
from mystfuse.build.source_tree import Selection, SourceTree, TreeSums, scan
from mystfuse.build.tree_limits import MAX_LINKS, check_links
from mystfuse.errors import MystfuseError


class TreeSource(Protocol):
    """A tree, and where its files' data are."""

    name: str
    """As the user knows it."""
    directory: Path | None
    """What mke2fs can read by itself; None: there is nothing, the tree has to be shown."""

    def scan(
        self, epoch: int | None, selection: Selection | None, owner: tuple[int, int] | None, keep: bool
    ) -> SourceTree:
        """Look at all of it, once; arguments and errors as for ``source_tree.scan``."""
        ...

    def contents(self) -> AbstractContextManager[Contents]:
        """The data of its files."""
        ...


class DirectorySource:
    """A directory on disk."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self.directory: Path | None = directory
        self._directory = directory

    def scan(
        self, epoch: int | None, selection: Selection | None, owner: tuple[int, int] | None, keep: bool
    ) -> SourceTree:
        return scan(self._directory, epoch, selection, owner, keep)

    def contents(self) -> AbstractContextManager[Contents]:
        return closing(DirectoryContents(self._directory))


class ArchiveSource:
    """A tree in memory, which is changed.

    Args:
        root: of the tree.
        name: of the archive.
    """

    directory: Path | None = None

    def __init__(self, root: Entry, contents: Contents, name: str) -> None:
        self.name = name
        self._root = root
        self._contents = contents

    def scan(
        self, epoch: int | None, selection: Selection | None, owner: tuple[int, int] | None, keep: bool
    ) -> SourceTree:
        """The tree is always kept."""
        if selection is not None:
            _select(self._root, selection, self.name)
        sums, is_root = TreeSums(epoch), os.geteuid() == 0
        seen: set[int] = set()
        for path, entry in _names(self._root):
            is_new = id(entry) not in seen
            if not is_root:
                _check_trusted(path, entry, self.name)
            if is_new and owner is not None:
                entry.uid, entry.gid = owner
            shown = os.path.join(os.fsencode(self.name), path)
            if entry.names > MAX_LINKS:
                check_links(shown, entry.names, "its file has too many names")
            if entry.names > 1:
                seen.add(id(entry))
            filled = 4096 if entry.is_directory else entry.size - entry.hole_bytes
            sums.add(shown, path, entry, is_new, entry.names > 1, filled)
        return sums.result(self._root)

    def contents(self) -> AbstractContextManager[Contents]:
        return nullcontext(self._contents)


def _names(root: Entry) -> Iterator[tuple[bytes, Entry]]:
    """All names of a tree, a directory before what is in it, in the order in which ``source_tree.scan`` comes to
    them."""
    pending = [(b"", root)]
    while pending:
        path, entry = pending.pop()
        yield path, entry
        for name in sorted(entry.children, reverse=True):
            pending.append((path + b"/" + name if path else name, entry.children[name]))


def _select(root: Entry, selection: Selection, name: str) -> None:
    """Remove what is not taken."""
    dropped: list[tuple[Entry, bytes]] = []
    pending = [(b"", root)]
    while pending:
        path, directory = pending.pop()
        for part, entry in directory.children.items():
            below = path + b"/" + part if path else part
            if not selection.takes(below, entry.is_directory):
                dropped.append((directory, part))
            elif entry.is_directory:
                pending.append((below, entry))
    selection.check_found(name, lambda path: _mode_of(root, path))
    for directory, part in dropped:
        directory.remove(part)


def _check_trusted(path: bytes, entry: Entry, name: str) -> None:
    """Raise MystfuseError for attributes that the kernel gives no mke2fs of an ordinary user."""
    for attribute, _ in entry.attributes:
        if attribute.startswith(b"trusted."):
            shown = os.path.join(name, os.fsdecode(path))
            raise MystfuseError(f"{shown}: attribute {os.fsdecode(attribute)}: only root can make an image of it")


def _mode_of(root: Entry, path: bytes) -> int:
    entry = root
    for name in path.split(b"/"):
        found = entry.children.get(name)
        if found is None:
            missing = FileNotFoundError if stat.S_ISDIR(entry.mode) else NotADirectoryError
            raise missing(2, "No such file in it")
        entry = found
    return entry.mode

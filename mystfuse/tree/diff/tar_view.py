"""A tree in memory, of a tar archive for one, as a view."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial

import trio

from mystfuse.archives.file_tree import Contents, Entry, OpenContents
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.diff.view import Node

_NODES_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class EntryNode(Node):
    """An inode of a tree in memory."""

    entry: Entry = field(kw_only=True, compare=False, repr=False)


class TarView:
    """See ``View``. To be closed.

    Args:
        root: of the tree.
        contents: where its files' data are; stays the caller's.
        name: as messages call it.
    """

    def __init__(self, root: Entry, contents: Contents, name: str) -> None:
        self.name = name
        self.lineage: Hashable = None
        self._root = root
        self._contents = contents
        self._open_entry: Entry | None = None
        self._open_file: OpenContents

    def close(self) -> None:
        """Close the file that is open."""
        if self._open_entry is not None:
            self._open_entry = None
            self._open_file.close()

    async def root(self) -> EntryNode:
        """The root directory."""
        return _node(self._root)

    async def children(self, node: Node) -> Mapping[bytes, EntryNode]:
        """Raises NotADirectoryError."""
        entry = _entry(node)
        if not entry.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._where(entry))
        children: dict[bytes, EntryNode] = {}
        for number, (name, child) in enumerate(sorted(entry.children.items())):
            if not number % _NODES_AT_ONCE:
                await trio.lowlevel.checkpoint()
            children[name] = _node(child)
        return children

    async def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """The attributes that the archive has."""
        return dict(_entry(node).attributes)

    async def target(self, node: Node) -> bytes:
        """Of a symbolic link."""
        return _entry(node).target

    async def read(self, node: Node, offset: int, length: int) -> bytes:
        """Raises OSError, or a MystfuseError for a broken archive."""
        entry = _entry(node)
        return await call_in_thread(partial(self._read, entry, offset, length))

    async def data_ranges(self, node: Node) -> AsyncIterator[tuple[int, int]]:
        """Raises as ``read``."""
        entry = _entry(node)
        end = 0
        while end < entry.size:
            found = await call_in_thread(partial(self._next_data, entry, end))
            if found is None:
                return
            start, end = found
            yield start, end - start

    def _read(self, entry: Entry, offset: int, length: int) -> bytes:
        file = self._file(entry)
        parts: list[bytes] = []
        while length > 0 and (part := file.read(offset, length)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next_data(self, entry: Entry, offset: int) -> tuple[int, int] | None:
        """The next data: where they begin and end; None for none."""
        file = self._file(entry)
        try:
            start = file.seek(offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        return start, file.seek(start, os.SEEK_HOLE)

    def _file(self, entry: Entry) -> OpenContents:
        """A file's data: the last one stays open."""
        if self._open_entry is not entry:
            self.close()
            try:
                self._open_file = self._contents.open(entry)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._where(entry)) from error
            self._open_entry = entry
        return self._open_file

    def _where(self, entry: Entry) -> str:
        return os.path.join(self.name, os.fsdecode(entry.path))


def _entry(node: Node) -> Entry:
    assert isinstance(node, EntryNode)
    return node.entry


def _node(entry: Entry) -> EntryNode:
    is_device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
    return EntryNode(
        key=id(entry),
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size if stat.S_ISREG(entry.mode) else 0,
        rdev=entry.rdev if is_device else 0,
        mtime_ns=entry.mtime_ns,
        nlink=entry.names,
        entry=entry,
    )

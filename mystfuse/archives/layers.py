"""A tree that archives are put into one over the other, as the layers of an OCI image are (``layer.md`` of its
specification): a later member replaces an earlier one, and ``.wh.`` names remove what is below.

Nothing leads out of the tree: symbolic links on the way to a member are followed in it, as containers' tools do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace

from mystfuse.archives.file_tree import Entry
from mystfuse.archives.oci_media import OPAQUE, WHITEOUT
from mystfuse.archives.tar_members import Member, Pieces
from mystfuse.errors import FormatError

_MAX_LINKS = 40
"""Symbolic links on the way to a member, as for a path of a system call."""
MAX_BYTES = 512 << 20
"""Paths, targets, attributes and sparse maps of all members, which are in memory."""
_MAX_STEPS = 4096
"""Names on the way to a member, those in the targets of links included."""
_DIRECTORY_BYTES = 512
"""What a directory without a member of its own takes in memory, besides its path."""


@dataclass(slots=True)
class ArchivedFile(Entry):
    """An inode of an archive."""

    descriptor: int = -1
    offset: int = 0
    """Of a regular file: where its data begin in the file of ``descriptor``."""
    pieces: Pieces | None = None
    """Which bytes are data; None: all of them."""


class Layers:
    """The tree, from below up."""

    def __init__(self) -> None:
        self.root = _directory(b"", 0)
        self._has_root = False
        self._filled: set[int] = set()
        """Directories below which the present layer has put something. None of them is removed meanwhile, so that their
        ids stay theirs."""
        self._taken = 0
        self._latest: tuple[tuple[bytes, ...] | None, Entry] = None, self.root
        """The latest member's directory, which is often that of the next one."""

    def add(self, members: Iterable[Member], descriptor: int, offset: int, with_whiteouts: bool) -> None:
        """Put a layer on top.

        Args:
            descriptor, offset: of the file with its data, and where in it the archive begins.
            with_whiteouts: whether ``.wh.`` names remove files, or are names as others.

        Raises:
            FormatError: a member has no place in the tree; the message names it.
        """
        self._filled.clear()
        self._latest = None, self.root
        members = self._counted(members)
        if with_whiteouts:
            # All of them before anything else: they are about the layers below, wherever they stand.
            members = list(members)
            made = {member.path for member in members if stat.S_ISDIR(member.mode)}
            for member in members:
                if member.path and member.path[-1].startswith(WHITEOUT):
                    self._remove(member.path, made)
        for member in members:
            if with_whiteouts and any(name.startswith(WHITEOUT) for name in member.path):
                continue
            try:
                self._put(member, descriptor, offset)
            except FormatError as error:
                raise error.at(member.shown) from None

    def _counted(self, members: Iterable[Member]) -> Iterator[Member]:
        for member in members:
            self._take(_bytes_of(member))
            yield member

    def _take(self, count: int) -> None:
        self._taken += count
        if self._taken > MAX_BYTES:
            raise FormatError(f"names, attributes and maps of holes of more than {MAX_BYTES} bytes")

    def _remove(self, path: tuple[bytes, ...], made: Set[tuple[bytes, ...]]) -> None:
        """Apply a whiteout to the layers below."""
        place: Entry = self.root
        for length, name in enumerate(path[:-1], 1):
            found = place.children.get(name)
            if found is None:
                return
            if not found.is_directory:
                if path[:length] in made:
                    # This layer puts a new directory in its place: what a link leads to stays.
                    return
                break
            place = found
        above = self._existing(path[:-1])
        if above is None:
            return
        if path[-1] == OPAQUE:
            for name in list(above.children):
                above.remove(name)
        elif path[-1][len(WHITEOUT) :] in above.children:
            above.remove(path[-1][len(WHITEOUT) :])

    def _put(self, member: Member, descriptor: int, offset: int) -> None:
        if not self._has_root:
            self.root.atime_ns = self.root.mtime_ns = self.root.ctime_ns = max(self.root.mtime_ns, member.mtime_ns)
        if not member.path:
            if not stat.S_ISDIR(member.mode):
                raise FormatError("the root of the tree is no directory")
            self._describe(self.root, member)
            self._has_root = True
            return
        above = self._directory_of(member)
        name = member.path[-1]
        old = above.children.get(name)
        if not stat.S_IFMT(member.mode):
            new: Entry = self._linked(member)
            if new is old:
                return
        elif old is not None and old.is_directory and stat.S_ISDIR(member.mode):
            self._describe(old, member)
            return
        else:
            new = _entry_of(member, _join(above, name), descriptor, offset)
        if old is not None:
            if id(old) in self._filled:
                raise FormatError("a directory with files, and also something else")
            above.remove(name)
            self._latest = None, self.root
        above.children[name] = new

    def _describe(self, entry: Entry, member: Member) -> None:
        entry.mode, entry.uid, entry.gid = member.mode, member.uid, member.gid
        entry.atime_ns = entry.mtime_ns = entry.ctime_ns = member.mtime_ns
        entry.attributes = member.attributes

    def _linked(self, member: Member) -> Entry:
        """The inode that a hard link names, with one name more: a symbolic link is an inode a name, as for mke2fs."""
        above = self._existing(member.link[:-1])
        found = above.children.get(member.link[-1]) if above is not None and member.link else None
        where = os.fsdecode(b"/".join(member.link))
        if found is None:
            raise FormatError(f"a hard link to {where}, which is not there (yet)")
        if found.is_directory:
            raise FormatError(f"a hard link to {where}, a directory")
        place = self._directory_of(member)
        if place.children.get(member.path[-1]) is found:
            return found
        if stat.S_ISLNK(found.mode):
            return replace(found, path=_join(place, member.path[-1]), names=1, children={})
        found.names += 1
        return found

    def _directory_of(self, member: Member) -> Entry:
        """The directory that a member is in, made with those above it where the archive has none."""
        path = member.path[:-1]
        if path != self._latest[0]:
            place = self._walk(path, member.mtime_ns)
            self._filled.update(map(id, place))
            self._latest = path, place[-1]
        return self._latest[1]

    def _existing(self, path: tuple[bytes, ...]) -> Entry | None:
        try:
            return self._walk(path, None)[-1]
        except (FormatError, KeyError):
            return None

    def _walk(self, path: tuple[bytes, ...], time: int | None) -> list[Entry]:
        """The directories on the way to one, the root first.

        Args:
            time: of those that are made; None: none is made, but KeyError raised.
        """
        place: list[Entry] = [self.root]
        links = steps = 0
        pending = list(reversed(path))
        while pending:
            name = pending.pop()
            steps += 1
            if steps > _MAX_STEPS:
                raise FormatError("its path, with the links in it, has too many names")
            if name == b"..":
                # Of a link's target; the root's parent is the root.
                if len(place) > 1:
                    place.pop()
                continue
            above = place[-1]
            found = above.children.get(name)
            if found is None:
                if time is None:
                    raise KeyError(name)
                found = above.children[name] = _directory(_join(above, name), time)
                self._take(len(found.path) + _DIRECTORY_BYTES)
            if found.is_directory:
                place.append(found)
            elif stat.S_ISLNK(found.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise FormatError("its path leads through too many symbolic links")
                if found.target.startswith(b"/"):
                    del place[1:]
                pending += [part for part in reversed(found.target.split(b"/")) if part not in (b"", b".")]
            else:
                raise FormatError(f"its path leads through {os.fsdecode(found.path)}, which is no directory")
        return place


def _entry_of(member: Member, path: bytes, descriptor: int, offset: int) -> ArchivedFile:
    hole_bytes = 0 if member.pieces is None else member.size - sum(length for _, length in member.pieces)
    time, size = member.mtime_ns, member.size or len(member.target)
    return ArchivedFile(
        path, member.mode, member.uid, member.gid, size, member.rdev, time, time, time, hole_bytes, member.target,
        member.attributes, descriptor=descriptor, offset=offset + member.offset, pieces=member.pieces,
    )  # fmt: skip


def _directory(path: bytes, time: int) -> ArchivedFile:
    return ArchivedFile(path, stat.S_IFDIR | 0o755, 0, 0, 0, 0, time, time, time)


def _join(above: Entry, name: bytes) -> bytes:
    return above.path + b"/" + name if above.path else name


def _bytes_of(member: Member) -> int:
    attributes = sum(len(name) + len(value) for name, value in member.attributes)
    return sum(map(len, member.path)) + len(member.target) + attributes + 16 * len(member.pieces or ())

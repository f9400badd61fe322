"""What differs between two trees: both are walked at once, name by name."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.xattr import POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.system.number_set import NumberSet
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.image_view import ImageView, ino_of
from mystfuse.tree.diff.renames import find_origins
from mystfuse.tree.diff.same_content import ContentComparison
from mystfuse.tree.diff.view import Node, View, check_path
from mystfuse.tree.image_tree import check_first_visit

T = TypeVar("T")

_ACLS = frozenset({POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT})
_SECOND = 1_000_000_000
LOST_AND_FOUND = b"lost+found"
"""At the root of every ext2 file system."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a difference."""

    ignored: frozenset[Aspect] = frozenset()
    """These are not compared."""
    unseen_xattrs: tuple[bytes, ...] = ()
    """Beginnings of names of extended attributes that one of the views cannot see."""

    def apply(self, change: Change) -> Change | None:
        """A change that was found without regard to what is ignored, as it is under these rules; None if nothing is
        left of it."""
        if not change.aspects & self.ignored:
            return change
        aspects = change.aspects - self.ignored
        return replace(change, aspects=aspects) if aspects or change.kind is not Kind.CHANGED else None


ALL = Rules()


def in_order(changes: Iterable[Change]) -> list[Change]:
    """Changes sorted as those of ``compare``."""
    return sorted(changes, key=lambda change: change.path.split(b"/"))


async def compare(
    old: View, new: View, rules: Rules = ALL, advance: Callable[[int], None] = lambda count: None
) -> AsyncGenerator[Change, None]:
    """What differs between two trees, sorted by the names in paths, so that a directory comes before what is in it.

    If both have the same lineage, an inode that has another path is RENAMED. What is in a renamed directory is compared
    as if that had always had its new name (``renames``). All changes are kept in memory then; otherwise only the
    listings on the way to a path are, and the inodes that have several names.

    Times are equal if one of them has whole seconds alone, as in tar archives and small inodes, and the other one's
    seconds are those. An empty ``lost+found`` at the root, which every ext2 file system gets when it is made, is no
    difference if the other tree has none, unless both are images; nor is its time.

    Args:
        advance: called with the number of bytes of files compared since the last call.

    Raises:
        OSError, MystfuseError: as the views do; messages name the view and the path.
    """
    comparison = _Comparison(old, new, rules, advance)
    if old.lineage is None or old.lineage != new.lineage:
        async with aclosing(comparison.changes()) as changes:
            async for change in changes:
                yield change
    else:
        async with aclosing(comparison.changes()) as changes:
            found = [change async for change in changes]
        for change in await comparison.with_renames(found):
            await trio.lowlevel.checkpoint()
            yield change


@dataclass(slots=True)
class _Side:
    """One of the views, and what is known of it."""

    view: View
    visited: set[int] = field(default_factory=set)
    """Directories of an image, which are in one place each."""
    named: NumberSet = field(default_factory=NumberSet)
    """Inodes of an image that say that they have one name."""
    first_names: dict[Hashable, bytes] = field(default_factory=dict)
    """Of inodes with several names: the first one that is in both trees."""

    async def children(self, node: Node | None, path: bytes) -> Mapping[bytes, Node]:
        if node is None or not node.is_directory:
            return {}
        check_path(path, self.view.name)
        if isinstance(self.view, ImageView):
            self.check_first_visit(ino_of(node), path)
        return await self.ask(path, self.view.children(node))

    def check_first_visit(self, ino: int, path: bytes) -> None:
        try:
            check_first_visit(ino, self.visited)
        except MystfuseError as error:
            raise self.naming(error, path) from error

    async def ask(self, path: bytes, answer: Awaitable[T]) -> T:
        """An answer of the view; errors say where it was."""
        try:
            return await answer
        except MystfuseError as error:
            raise self.naming(error, path) from error

    def check_link_count(self, node: Node, path: bytes) -> None:
        """Raise CorruptFilesystem for a file of an image that has more names than it says: whether it shares its inode
        is known by that."""
        if node.nlink > 1 or node.is_directory or not isinstance(self.view, ImageView):
            return
        if not self.named.add(ino_of(node)):
            error = CorruptFilesystem(f"inode {ino_of(node)} has more names than its link count says")
            raise self.naming(error, path)

    def naming(self, error: MystfuseError, path: bytes) -> MystfuseError:
        return error.at(f"{self.view.name}: {os.fsdecode(path) or '/'}")

    def first_name(self, node: Node, path: bytes) -> bytes:
        """The first of the names that the inode has in both trees."""
        return self.first_names.setdefault(node.key, path) if node.nlink > 1 else path


class _Comparison:
    def __init__(self, old: View, new: View, rules: Rules, advance: Callable[[int], None]) -> None:
        self._old = _Side(old)
        self._new = _Side(new)
        self._rules = rules
        self._contents = ContentComparison(old, new)
        self._advance = advance
        self._known: dict[tuple[Hashable, Hashable], frozenset[Aspect]] = {}
        """What differs between inodes that have several names."""

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Everything that differs, without regard to renames."""
        root = self._old.view.root, self._new.view.root
        pending: list[Iterator[tuple[bytes, Node | None, Node | None]]]
        pending = [iter([(b"", await self._old.ask(b"", root[0]()), await self._new.ask(b"", root[1]()))])]
        while pending:
            pair = next(pending[-1], None)
            if pair is None:
                pending.pop()
                continue
            path, old, new = pair
            for side, node in (self._old, old), (self._new, new):
                if node is not None:
                    side.check_link_count(node, path)
            if old is None or new is None:
                side, node = (self._old, old) if new is None else (self._new, new)
                assert node is not None
                if not await self._is_of_every_file_system(path, side, node):
                    yield Change(path, old, new)
            elif aspects := await self.aspects(path, old, path, new):
                yield Change(path, old, new, aspects=aspects)
            old_children = await self._old.children(old, path)
            new_children = await self._new.children(new, path)
            if old_children or new_children:
                pending.append(_pairs(path + b"/" if path else b"", old_children, new_children))

    async def _is_of_every_file_system(self, path: bytes, side: _Side, node: Node) -> bool:
        """Whether it is the empty ``lost+found`` of an image or a mount, which the other tree need not have."""
        views = self._old.view, self._new.view
        if path != LOST_AND_FOUND or all(isinstance(view, ImageView) for view in views):
            return False
        return node.is_directory and not await side.ask(path, side.view.children(node))

    async def with_renames(self, found: list[Change]) -> list[Change]:
        """The changes, of which those that add and remove the same become one, or none."""
        origins = find_origins(found)
        gone = {origin.removal.path for origin in origins.values()}
        result: list[Change] = []
        for change in found:
            origin = origins.get(change.path) if change.old is None else None
            if origin is not None:
                old = origin.removal.old
                assert old is not None
                assert change.new is not None
                aspects = await self.aspects(origin.removal.path, old, change.path, change.new)
                if origin.is_renamed or aspects:
                    old_path = origin.removal.path if origin.is_renamed else None
                    result.append(Change(change.path, old, change.new, old_path, aspects))
            elif change.new is not None or change.path not in gone:
                result.append(change)
        return result

    async def aspects(self, old_path: bytes, old: Node, path: bytes, new: Node) -> frozenset[Aspect]:
        """What differs between an inode and what it was."""
        if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
            return frozenset({Aspect.TYPE})
        if old.is_directory or (old.nlink == 1 and new.nlink == 1):
            return await self._differing(old_path, old, path, new)
        key = old.key, new.key
        aspects = self._known.get(key)
        if aspects is None:
            aspects = self._known[key] = await self._differing(old_path, old, path, new)
        if self._old.first_name(old, path) != self._new.first_name(new, path):
            aspects |= {Aspect.LINKS} - self._rules.ignored
        return aspects

    async def _differing(self, old_path: bytes, old: Node, path: bytes, new: Node) -> frozenset[Aspect]:
        ignored = self._rules.ignored
        if await self._contents.is_untouched(old, new):
            self._advance(new.size)
            return frozenset()
        found = {aspect for aspect, differs in _of_attributes(old, new) if differs}
        if Aspect.XATTRS not in ignored or Aspect.ACL not in ignored:
            found |= _of_xattrs(
                await self._old.ask(old_path, self._old.view.xattrs(old)),
                await self._new.ask(path, self._new.view.xattrs(new)),
                self._rules.unseen_xattrs,
            )
        if old.is_symlink:
            old_target = await self._old.ask(old_path, self._old.view.target(old))
            if old_target != await self._new.ask(path, self._new.view.target(new)):
                found.add(Aspect.TARGET)
        elif old.is_regular and Aspect.CONTENT not in ignored:
            if not await self._new.ask(path, self._contents.is_same(old, new)):
                found.add(Aspect.CONTENT)
            self._advance(new.size)
        if path == LOST_AND_FOUND:
            found.discard(Aspect.MTIME)
        return frozenset(found) - ignored


def _pairs(
    prefix: bytes, old: Mapping[bytes, Node], new: Mapping[bytes, Node]
) -> Iterator[tuple[bytes, Node | None, Node | None]]:
    for name in sorted(old.keys() | new.keys()):
        yield prefix + name, old.get(name), new.get(name)


def _of_attributes(old: Node, new: Node) -> Iterator[tuple[Aspect, bool]]:
    yield Aspect.SIZE, old.size != new.size
    # Those of a symbolic link mean nothing.
    yield Aspect.MODE, not old.is_symlink and old.mode != new.mode
    yield Aspect.OWNER, old.uid != new.uid
    yield Aspect.GROUP, old.gid != new.gid
    yield Aspect.DEVICE, old.rdev != new.rdev
    yield Aspect.MTIME, not _is_same_time(old.mtime_ns, new.mtime_ns)


def _is_same_time(old: int, new: int) -> bool:
    if old == new:
        return True
    return (not old % _SECOND or not new % _SECOND) and old // _SECOND == new // _SECOND


def _of_xattrs(old: Mapping[bytes, bytes], new: Mapping[bytes, bytes], unseen: tuple[bytes, ...]) -> set[Aspect]:
    if old == new:
        return set()
    return {
        Aspect.ACL if name in _ACLS else Aspect.XATTRS
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name) and not name.startswith(unseen)
    }

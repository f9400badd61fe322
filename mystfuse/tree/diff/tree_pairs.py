"""Which path of an old tree has become which of a new one, when both are states of one file system.

- A path that is in both trees is compared with itself, whatever inode it has.
- A path that is in the new one alone has been renamed if its inode had a path that is in the old one alone.
- A renamed directory takes what is in it along: inside it, paths are compared as if it had always had the new name.
- All else was added or removed, a directory with everything in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.tree.diff.changed_inodes import is_same_file
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.view import check_path

Children = Mapping[bytes, Inode]
"""The names in a directory, or some of them, and their inodes."""


class Place(NamedTuple):
    """A path in one of the trees."""

    path: bytes
    """From the root on, without a slash in front."""
    directory: int
    """The inode number of the directory that it is in; 0 for the root."""
    name: bytes
    inode: Inode


class Pair(NamedTuple):
    """A path of the old tree and what it has become."""

    old: Place
    new: Place
    is_renamed: bool


class TreePairs:
    """Compares two trees by names. ``find`` fills it.

    Args:
        survives: whether the inode with a number is the same file in both.
        children: the names in a directory that survives, in both trees; those that lead to nothing that differs may be
            left out of both.
    """

    def __init__(
        self,
        old: ImageView,
        new: ImageView,
        survives: Callable[[int], bool],
        children: Callable[[int], Awaitable[tuple[Children, Children]]],
    ) -> None:
        self.pairs: list[Pair] = []
        self._old = _Side(old, survives)
        self._new = _Side(new, survives)
        self._children = children
        self._pending: list[Pair] = []

    @property
    def removed(self) -> list[Place]:
        """Paths of the old tree that are gone."""
        return self._old.left

    @property
    def added(self) -> list[Place]:
        """Paths that the new tree alone has."""
        return self._new.left

    async def find(self) -> None:
        """Compare the two.

        Raises:
            CorruptFilesystem: also when a directory is in several places, so that the comparison might never end.
            IntegrityError, ImageReadError
        """
        roots = [await side.view.volume.inode(EXT2_ROOT_INO) for side in (self._old, self._new)]
        old, new = (Place(b"", 0, b"", root) for root in roots)
        self._pending.append(Pair(old, new, is_renamed=False))
        while True:
            while self._pending:
                await self._compare(self._pending.pop())
            # What is surely gone or new is taken apart first: something in it may have been moved out, or into it.
            if self._match() or await self._old.expand() or await self._new.expand():
                continue
            # What is left survives: at a path that the other tree has too, or in a directory that waits for this one.
            if not (await self._old.expand_all() or await self._new.expand_all()):
                break
        self._settle()

    async def _compare(self, pair: Pair) -> None:
        """Record a pair, and compare what is in it."""
        self.pairs.append(pair)
        old, new, _ = pair
        if not old.inode.is_directory:
            if new.inode.is_directory:
                await self._new.list_all(new)
            return
        if not new.inode.is_directory:
            await self._old.list_all(old)
            return
        await trio.lowlevel.checkpoint()
        if self._old.has_listed(old) or self._new.has_listed(new):
            before, after = await self._old.rest(old), await self._new.rest(new)
        elif is_same_file(old.inode, new.inode):
            before, after = await self._children(old.inode.ino)
            self._old.check_first_visit(old.inode.ino)
            self._new.check_first_visit(new.inode.ino)
        else:
            before, after = await self._old.children(old), await self._new.children(new)
        for name, inode in before.items():
            place = _place(old, name, inode)
            if name in after:
                partner = _place(new, name, after[name])
                self._old.take(place)
                self._new.take(partner)
                self._pending.append(Pair(place, partner, is_renamed=False))
            else:
                self._old.add(place)
        for name, inode in after.items():
            if name not in before:
                self._new.add(_place(new, name, inode))

    def _match(self) -> bool:
        """Pair paths of the two sides that are of the same file; whether there are any."""
        old, new = self._old, self._new
        found = False
        for ino in sorted(old.fresh | new.fresh):
            before, after = sorted(old.by_ino.get(ino, ())), sorted(new.by_ino.get(ino, ()))
            for one, other in zip(before, after, strict=False):
                old.take(one)
                new.take(other)
                self._pending.append(Pair(one, other, is_renamed=True))
                found = True
        old.fresh.clear()
        new.fresh.clear()
        return found

    def _settle(self) -> None:
        """What a directory took along when it was renamed has not been renamed itself."""
        directories = {pair.old.path: pair.new.path for pair in self.pairs if pair.new.inode.is_directory}
        for index, pair in enumerate(self.pairs):
            old, new, is_renamed = pair
            if is_renamed and old.name == new.name and directories.get(_above(old.path)) == _above(new.path):
                self.pairs[index] = pair._replace(is_renamed=False)


class _Side:
    """The paths that one of the trees alone has."""

    def __init__(self, view: ImageView, survives: Callable[[int], bool]) -> None:
        self.view = view
        self.by_ino: dict[int, set[Place]] = {}
        """Those that may be the other tree's under another path, by inode number."""
        self.fresh: set[int] = set()
        """Inode numbers of those that have been added since they were last matched."""
        self._survives = survives
        self._left: dict[bytes, Place] = {}
        self._unlisted: dict[bytes, Place] = {}
        """Directories whose contents have not been added."""
        self._listed: dict[bytes, Children] = {}
        """What is in the others."""
        self._visited: set[int] = set()

    @property
    def left(self) -> list[Place]:
        return list(self._left.values())

    def add(self, place: Place) -> None:
        """A path that the other tree lacks."""
        if place.path in self._left:
            return
        self._left[place.path] = place
        ino = place.inode.ino
        if place.inode.is_directory:
            self._unlisted[place.path] = place
        if self._survives(ino):
            self.by_ino.setdefault(ino, set()).add(place)
            self.fresh.add(ino)

    def take(self, place: Place) -> None:
        """The path, if the other tree seemed to lack it, has found its partner."""
        self._left.pop(place.path, None)
        self._unlisted.pop(place.path, None)
        self.by_ino.get(place.inode.ino, set()).discard(place)

    def has_listed(self, place: Place) -> bool:
        """Whether what is in a directory has been added."""
        return place.path in self._listed

    async def rest(self, place: Place) -> Children:
        """What is in a directory and has no partner."""
        if not self.has_listed(place):
            return await self.children(place)
        return {
            name: inode
            for name, inode in self._listed[place.path].items()
            if _place(place, name, inode).path in self._left
        }

    async def expand(self) -> bool:
        """Add what is in those directories that are surely in this tree alone; whether there are any."""
        return await self._list([place for place in self._unlisted.values() if not self._survives(place.inode.ino)])

    async def expand_all(self) -> bool:
        """The same for all directories."""
        return await self._list(list(self._unlisted.values()))

    async def _list(self, places: Iterable[Place]) -> bool:
        found = False
        for place in places:
            found = True
            del self._unlisted[place.path]
            await self.list_all(place)
        return found

    async def list_all(self, place: Place) -> None:
        """Add everything that is in a directory."""
        children = self._listed[place.path] = await self.children(place)
        for name, inode in children.items():
            self.add(_place(place, name, inode))

    async def children(self, place: Place) -> Children:
        """All names in a directory."""
        self.check_first_visit(place.inode.ino)
        return await self.view.inodes(place.inode.ino)

    def check_first_visit(self, ino: int) -> None:
        """Raise CorruptFilesystem if the comparison was in the directory before."""
        if ino in self._visited:
            raise CorruptFilesystem(f"directory inode {ino} is in more than one place of the tree")
        self._visited.add(ino)


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _place(directory: Place, name: bytes, inode: Inode) -> Place:
    path = directory.path + b"/" + name if directory.path else name
    check_path(path, "the mount")
    return Place(path, directory.inode.ino, name, inode)

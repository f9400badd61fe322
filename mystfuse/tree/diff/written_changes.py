"""What has been written to a mount since it began, from the blocks that it has written.

What it costs grows with the changes: blocks of inode tables that have been written show which inodes differ, written
blocks of directories which names do, and block maps which data may. An inode does not record its names: where a file
has changed and the directory around it has not, they are searched for (``inode_names``); in the worst case that reads
the inode tables of all groups with directories, and all directories.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.tree.diff.change import Aspect, Change
from mystfuse.tree.diff.changed_inodes import (
    ChangedInode,
    ChangedNames,
    all_names,
    compare_names,
    find_changed_inodes,
    is_same_file,
)
from mystfuse.tree.diff.control_files import open_control_files
from mystfuse.tree.diff.image_view import ImageView, node_of
from mystfuse.tree.diff.inode_aspects import InodeAspects
from mystfuse.tree.diff.inode_names import InodeNames, Link
from mystfuse.tree.diff.link_changes import LinkChanges
from mystfuse.tree.diff.mount_device import MountDevice
from mystfuse.tree.diff.tree_pairs import Children, Pair, TreePairs
from mystfuse.tree.diff.unnoticed_inodes import find_unnoticed
from mystfuse.volume.volume import Volume

_INODES_AT_ONCE = 1000


class MountStates:
    """A mount as it was when it began, and as it is. Use ``open_mount_states``."""

    def __init__(self, old: ImageView, new: ImageView, written: Sequence[int]) -> None:
        self.old = old
        """As it was mounted."""
        self.new = new
        """As it was when this was opened: later writes do not show."""
        self.written = written
        """The numbers of the blocks that have been written, ascending."""

    async def changes(self) -> list[Change]:
        """What differs, sorted by path; directories come before what is in them.

        ``tree_pairs`` has the rules by which paths belong together, and ``inode_aspects`` those for what differs.
        ``LINKS`` is about names in directories, whatever paths these have: to rename a directory changes no link in it.
        Owners are those in the image, whatever the mount shows. In the worst case, all directories are read, see above.

        Raises:
            CorruptFilesystem: the file system is broken.
            ImageReadError: the mount could not read blocks, perhaps because they are damaged.
        """
        return await _Comparison(self.old, self.new, self.written).changes()


@asynccontextmanager
async def open_mount_states(mountpoint: str, io_timeout: float = math.inf) -> AsyncIterator[MountStates]:
    """The two states of a mount of ours, for its mounting user and root.

    While this is open, the mount keeps the old contents of blocks that it writes; up to four may be open at a time,
    copies of ``.mystfuse/image`` included.

    Args:
        mountpoint: resolved, or as messages are to call it.
        io_timeout: seconds that the mount gets for each answer.

    Raises:
        MountError: not a mount of ours, or one without a control directory.
        ImageReadError: opening or reading it failed; StorageTimeout if it does not answer.
        FormatError: it gives what we cannot read.
    """
    files = await open_control_files(mountpoint, io_timeout)
    try:
        lineage = object()
        before = await Volume.open(MountDevice(files, True, io_timeout))
        after = await Volume.open(MountDevice(files, False, io_timeout))
        old = ImageView(before, f"{mountpoint} as it was mounted", lineage)
        yield MountStates(old, ImageView(after, mountpoint, lineage), files.numbers)
    finally:
        files.close()


async def changes_since_mount(mountpoint: str, io_timeout: float = math.inf) -> list[Change]:
    """What has been written to a mount; see ``MountStates.changes``, and ``open_mount_states`` for what it raises."""
    async with open_mount_states(mountpoint, io_timeout) as states:
        return await states.changes()


class _Comparison:
    def __init__(self, old: ImageView, new: ImageView, written: Sequence[int]) -> None:
        self._old = old
        self._new = new
        self._written = written
        self._written_set = frozenset(written)
        self._inodes: dict[int, ChangedInode] = {}
        self._names: dict[int, ChangedNames] = {}
        """Of directories that survive."""
        self._paths: dict[int, dict[bytes, int]] = {}
        """Names that lead to something that differs, with inode numbers, by directory."""
        self._rooted = {EXT2_ROOT_INO}
        """Directories that names lead to from the root."""
        self._links = LinkChanges(self._survives)

    async def changes(self) -> list[Change]:
        self._inodes = await find_changed_inodes(self._old.volume, self._new.volume, self._written)
        for ino in await find_unnoticed(self._old.volume, self._new.volume, self._written, self._inodes):
            inodes = await self._old.volume.inode(ino), await self._new.volume.inode(ino)
            self._inodes[ino] = ChangedInode(*inodes)
        await self._compare_directories()
        await self._find_paths()
        trees = TreePairs(self._old, self._new, self._survives, self._children)
        await trees.find()
        found = [Change(place.path, node_of(place.inode), None) for place in trees.removed]
        found += [Change(place.path, None, node_of(place.inode)) for place in trees.added]
        aspects = InodeAspects(self._old.volume, self._new.volume, self._written_set.__contains__)
        for pair in trees.pairs:
            change = await self._change_of(pair, aspects)
            if change is not None:
                found.append(change)
        return sorted(found, key=lambda change: change.path)

    def _survives(self, ino: int) -> bool:
        changed = self._inodes.get(ino)
        return changed is None or changed.survives

    async def _compare_directories(self) -> None:
        """Find out which names have come and gone."""
        for ino, changed in self._inodes.items():
            old, new = changed
            if changed.survives and old is not None and new is not None:
                if new.is_directory:
                    names = await compare_names(self._old.volume, self._new.volume, old, new, self._written)
                    self._names[ino] = names
                    self._links.compare(ino, names.old, names.new)
                continue
            if old is not None and old.is_directory:
                self._links.compare(ino, await all_names(self._old.volume, old), {})
            if new is not None and new.is_directory:
                self._links.compare(ino, {}, await all_names(self._new.volume, new))

    async def _find_paths(self) -> None:
        """Find the names of everything that differs and survives, and of the directories above."""
        finder = InodeNames(self._new.volume)
        directories: list[int] = []
        sought: dict[int, int] = {}
        for ino in self._inodes.keys() | self._links.inodes:
            if not self._survives(ino):
                continue
            changed = self._inodes.get(ino)
            inode = changed.new if changed is not None else await self._new.volume.inode(ino)
            assert inode is not None
            if inode.is_directory:
                directories.append(ino)
            else:
                sought[ino] = inode.i_links_count
        likely = [ino for ino, (_, new) in self._inodes.items() if new is not None and new.is_directory]
        found = await finder.find(sought, likely)
        self._links.present = found
        for ino, links in found.items():
            for link in links:
                await self._climb(finder, ino, link)
            if not links:
                raise CorruptFilesystem(f"inode {ino} has changed, but no directory names it")
        for ino in directories:
            if ino != EXT2_ROOT_INO:
                await self._climb(finder, ino, await finder.above(ino))

    async def _climb(self, finder: InodeNames, ino: int, link: Link | None) -> None:
        """Note the names that lead from the root to an inode."""
        way: set[int] = set()
        while True:
            if link is None:
                raise CorruptFilesystem(f"directory inode {ino} has changed, but no path leads to it")
            self._paths.setdefault(link.directory, {})[link.name] = ino
            ino = link.directory
            if ino in self._rooted:
                break
            if ino in way:
                raise CorruptFilesystem(f"directory inode {ino} is above itself")
            way.add(ino)
            await trio.lowlevel.checkpoint()
            link = await finder.above(ino)
        self._rooted |= way

    async def _children(self, ino: int) -> tuple[Children, Children]:
        """See ``TreePairs``."""
        names = self._names.get(ino) or ChangedNames({}, {})
        before, after = dict(names.old), dict(names.new)
        paths = self._paths.get(ino, {})
        for name, child in names.old.items():
            if names.new.get(name) == child and self._survives(child) and name not in paths:
                del before[name], after[name]
        for name, child in paths.items():
            if name not in names.old and name not in names.new:
                before[name] = after[name] = child
        return await _inodes(self._old.volume, before), await _inodes(self._new.volume, after)

    async def _change_of(self, pair: Pair, aspects: InodeAspects) -> Change | None:
        old, new, is_renamed = pair
        found: frozenset[Aspect] = frozenset()
        is_same = is_same_file(old.inode, new.inode)
        if not is_same or new.inode.ino in self._inodes:
            found = await aspects.compare(old.inode, new.inode)
        if Aspect.TYPE not in found and self._links.differ(old, new):
            found |= {Aspect.LINKS}
        if not found and not is_renamed:
            return None
        return Change(new.path, node_of(old.inode), node_of(new.inode), old.path if is_renamed else None, found)


async def _inodes(volume: Volume, names: dict[bytes, int]) -> dict[bytes, Inode]:
    """The inodes of names; raises as ``Volume.inode``."""
    numbers = sorted(set(names.values()))
    found: dict[int, Inode] = {}
    for start in range(0, len(numbers), _INODES_AT_ONCE):
        await trio.lowlevel.checkpoint()
        some = numbers[start : start + _INODES_AT_ONCE]
        inodes = await volume.run(FileSystem.inodes, some)
        for ino, inode in zip(some, inodes, strict=True):
            found[ino] = inode or await volume.inode(ino)
    return {name: found[ino] for name, ino in names.items()}

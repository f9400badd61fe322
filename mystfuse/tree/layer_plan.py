"""What an OCI layer has to hold so that the tree below it becomes another: names, whiteouts, opaque directories.

Rules (image-spec, layer.md), and what they leave open:

- A name that is gone is a whiteout in its directory, and what was below it is not named.
- A directory that is another one than before is opaque, with all that is in it: one name hides its old contents.
- What has been renamed is a whiteout, and all of it at the new place.
- All names of an inode are in the layer, or none: a link cannot lead out of it.
- Directories above a name are there with it: who unpacks a layer by itself would make up their attributes, and who puts
  it into a tree changes their times.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mystfuse.archives.oci_media import OPAQUE, WHITEOUT
from mystfuse.errors import CorruptFilesystem, MystfuseError, one_line
from mystfuse.tree.diff.change import Aspect, Change
from mystfuse.tree.diff.view import Node, View
from mystfuse.tree.tar_members import has_member


@dataclass(slots=True)
class LayerPlan:
    """The names in a layer; paths lead from the root on, without a slash in front."""

    members: dict[bytes, Node] = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    """Paths that are gone."""
    opaque: set[bytes] = field(default_factory=set)
    """Directories among the members."""
    sockets: set[bytes] = field(default_factory=set)
    """Paths that a layer cannot hold."""

    @property
    def data_size(self) -> int:
        """Bytes of all files, each inode once."""
        return sum({node.key: node.size for node in self.members.values()}.values())


async def plan_layer(changes: Iterable[Change], old: View, new: View) -> LayerPlan:
    """What makes the tree ``new`` of ``old``.

    Args:
        changes: all that differs; below a directory that is renamed, added or removed, some may be left out.

    Raises:
        MystfuseError: a name looks like a whiteout; or reading a view failed.
        OSError: as the views.
    """
    planner = _Planner(old, new)
    for change in sorted(changes, key=lambda change: change.path.split(b"/")):
        await planner.add(change)
    await planner.add_links()
    planner.add_whiteouts()
    await planner.add_parents()
    for path in (*planner.plan.members, *planner.plan.whiteouts):
        if path.rpartition(b"/")[2].startswith(WHITEOUT):
            name = one_line(os.fsdecode(path))
            raise MystfuseError(
                f"{new.name}: {name}: a layer cannot hold names that begin with .wh., which mean that a name is gone"
            )
    return planner.plan


class _Planner:
    def __init__(self, old: View, new: View) -> None:
        self.plan = LayerPlan()
        self._old, self._new = _Paths(old), _Paths(new)
        self._is_one_file_system = old.lineage is not None and old.lineage == new.lineage
        self._whole: set[bytes] = set()
        """Directories with all that is in them."""
        self._present: dict[bytes, Node] = {}
        """What the changes say of the new tree."""
        self._left: set[bytes] = set()
        """Paths at which something was."""
        self._seen: set[Hashable] = set()
        """Directories that have been walked."""
        self._links: list[Change] = []
        """Inodes of which only the names differ."""
        self._old_keys: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        """By the keys of inodes that are there: what was at their paths."""
        self._new_keys: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        """The reverse."""

    async def add(self, change: Change) -> None:
        if change.new is None:
            self._left.add(change.path)
            return
        if change.old_path is not None:
            self._left.add(change.old_path)
        path, old, node = change.path, change.old, change.new
        self._present[path] = node
        if not node.is_directory:
            self._old_keys[node.key].add(None if old is None or change.old_path is not None else old.key)
            if old is not None:
                self._new_keys[old.key].add(node.key)
        if any(above in self._whole for above in _above(path)):
            return
        is_replaced = old is not None and self._is_one_file_system and old.key != node.key
        if not node.is_directory:
            if change.aspects == {Aspect.LINKS} and change.old_path is None and not is_replaced:
                self._links.append(change)
            else:
                await self._add_file(path, node)
        elif old is not None and old.is_directory and change.old_path is None and not is_replaced:
            self.plan.members[path] = node
        else:
            await self._add_whole(path, node)

    async def _add_file(self, path: bytes, node: Node) -> None:
        if has_member(node.mode):
            self.plan.members[path] = node
            return
        self.plan.sockets.add(path)
        if await self._old.find(path) is not None:
            self._left.add(path)

    async def _add_whole(self, path: bytes, node: Node) -> None:
        """Add a directory, and all that is in it."""
        self._whole.add(path)
        before = await self._old.find(path)
        if before is not None and before.is_directory:
            self.plan.opaque.add(path)
        async for below, each in self._walk(path, node, self._seen):
            if has_member(each.mode):
                self.plan.members[below] = each
            else:
                self.plan.sockets.add(below)

    async def _walk(self, path: bytes, node: Node, seen: set[Hashable]) -> AsyncIterator[tuple[bytes, Node]]:
        yield path, node
        pending = [(path, node)]
        while pending:
            directory, inode = pending.pop()
            if inode.key in seen:
                raise CorruptFilesystem(f"{self._new.view.name}: {directory!r} is in more than one place of the tree")
            seen.add(inode.key)
            for name, child in (await self._new.view.children(inode)).items():
                below = _join(directory, name)
                yield below, child
                if child.is_directory:
                    pending.append((below, child))

    async def add_links(self) -> None:
        """Add the other names of inodes that are in the layer, and those whose names alone differ."""
        members = self.plan.members
        for change in self._links:
            old, node = change.old, change.new
            assert old is not None and node is not None
            if len(self._old_keys[node.key]) > 1 or len(self._new_keys[old.key]) > 1:
                await self._add_file(change.path, node)
        linked = {node.key: node.nlink for node in members.values() if node.nlink > 1 and not node.is_directory}
        for path, node in self._present.items():
            if node.key in linked and not node.is_directory:
                members[path] = node
        for node in members.values():
            if node.key in linked:
                linked[node.key] -= 1
        if not any(missing > 0 for missing in linked.values()):
            return
        # Names that are as they were: only looking at all of them finds these.
        async for path, node in self._walk(b"", await self._new.view.root(), set()):
            if linked.get(node.key, 0) > 0:
                members[path] = node

    def add_whiteouts(self) -> None:
        members = self.plan.members
        for path in self._left:
            if path in members:
                continue
            above = next(_above(path), None)
            while above is not None and above not in self._left and above not in self._whole:
                present = self._present.get(above)
                if present is not None and not present.is_directory:
                    break
                above = next(_above(above), None)
            # Otherwise something above it hides it.
            if above is None:
                self.plan.whiteouts.add(path)

    async def add_parents(self) -> None:
        """Add the directories above all names."""
        for path in (*self.plan.members, *self.plan.whiteouts):
            for above in _above(path):
                if above not in self.plan.members:
                    node = await self._new.find(above)
                    if node is None or not node.is_directory:
                        raise MystfuseError(f"{self._new.view.name}: {above!r} has changed meanwhile")
                    self.plan.members[above] = node


class _Paths:
    """Looks paths up in a view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._listings: dict[Hashable, Mapping[bytes, Node]] = {}

    async def find(self, path: bytes) -> Node | None:
        """What is at a path; None if nothing is."""
        node: Node | None = await self.view.root()
        for name in path.split(b"/") if path else ():
            if node is None or not node.is_directory:
                return None
            listing = self._listings.get(node.key)
            if listing is None:
                listing = self._listings[node.key] = await self.view.children(node)
            node = listing.get(name)
        return node


def in_order(plan: LayerPlan) -> Iterator[tuple[bytes, Node | None]]:
    """The names to be written, with their nodes or None for a whiteout: a directory, what it lacks, what is in it."""
    keys: list[tuple[tuple[tuple[bool, bytes], ...], bytes, Node | None]] = []
    for path, node in plan.members.items():
        keys.append((_key(path), path, node))
    for path in plan.whiteouts:
        directory, _, name = path.rpartition(b"/")
        keys.append(((*_key(directory), (False, name)), _join(directory, WHITEOUT + name), None))
    for path in plan.opaque:
        keys.append(((*_key(path), (False, b"")), _join(path, OPAQUE), None))
    for _, path, found in sorted(keys, key=lambda item: item[0]):
        yield path, found


def _key(path: bytes) -> tuple[tuple[bool, bytes], ...]:
    return tuple((True, name) for name in path.split(b"/")) if path else ()


def _above(path: bytes) -> Iterator[bytes]:
    """The directories above a path, the nearest first, the root last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _join(directory: bytes, name: bytes) -> bytes:
    return b"%s/%s" % (directory, name) if directory else name

"""Judging the changes between two states of a file system by walks over both, without any of the code's shortcuts."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.image_view import ImageView, node_of
from mystfuse.tree.diff.tree_pairs import Children, TreePairs
from mystfuse.tree.diff.view import Node
from mystfuse.tree.diff.written_changes import MountStates
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import MemoryDevice
from tests.support.written_state import apply, parse_written


class Name(NamedTuple):
    """A name in a directory, which its number and generation tell from others."""

    directory: int
    generation: int
    name: bytes


@dataclass(frozen=True)
class Described:
    """A path of a tree."""

    inode: Inode
    node: Node
    name: Name
    content: bytes
    xattrs: dict[bytes, bytes]
    target: bytes

    @property
    def file(self) -> tuple[int, int, int]:
        """What it has in common with other names and states of the same file."""
        return self.inode.ino, self.inode.i_generation, stat.S_IFMT(self.inode.i_mode)


async def describe(view: ImageView) -> dict[bytes, Described]:
    """All of a tree."""
    tree: dict[bytes, Described] = {}
    volume = view.volume

    async def add(path: bytes, inode: Inode, name: Name) -> None:
        content = target = b""
        if inode.is_regular:
            # Zeros at the end do not count, see ``InodeAspects.compare``.
            data = bytes(await volume.read(inode.ino, 0, inode.size)).rstrip(b"\0")
            content = hashlib.sha256(data).digest()
        elif inode.is_symlink:
            target = await volume.target(inode.ino)
        tree[path] = Described(inode, node_of(inode), name, content, await volume.xattrs(inode.ino), target)
        if inode.is_directory:
            for child, found in (await view.inodes(inode.ino)).items():
                below = path + b"/" + child if path else child
                await add(below, found, Name(inode.ino, inode.i_generation, child))

    await add(b"", await volume.inode(EXT2_ROOT_INO), Name(0, 0, b""))
    return tree


def aspects_of(old: Described, new: Described, before: set[Name], after: set[Name]) -> frozenset[Aspect]:
    """What differs.

    Args:
        before, after: the other names of the two.
    """
    if stat.S_IFMT(old.node.mode) != stat.S_IFMT(new.node.mode):
        return frozenset({Aspect.TYPE})
    acls = {b"system.posix_acl_access", b"system.posix_acl_default"}
    differing = {name for name in old.xattrs.keys() | new.xattrs.keys() if old.xattrs.get(name) != new.xattrs.get(name)}
    differs = {
        # Without the zeros at its end.
        Aspect.CONTENT: old.content != new.content or old.node.size != new.node.size,
        Aspect.TARGET: old.target != new.target,
        Aspect.DEVICE: old.node.rdev != new.node.rdev,
        Aspect.SIZE: old.node.size != new.node.size,
        Aspect.MODE: old.node.mode != new.node.mode,
        Aspect.OWNER: old.node.uid != new.node.uid,
        Aspect.GROUP: old.node.gid != new.node.gid,
        Aspect.MTIME: old.node.mtime_ns != new.node.mtime_ns,
        Aspect.XATTRS: bool(differing - acls),
        Aspect.ACL: bool(differing & acls),
        Aspect.LINKS: before != after and not new.node.is_directory,
    }
    return frozenset(aspect for aspect, does in differs.items() if does)


def names_by_file(tree: dict[bytes, Described]) -> dict[tuple[int, int, int], set[Name]]:
    found: dict[tuple[int, int, int], set[Name]] = {}
    for described in tree.values():
        found.setdefault(described.file, set()).add(described.name)
    return found


def assert_right(changes: Sequence[Change], old: dict[bytes, Described], new: dict[bytes, Described]) -> None:
    """The changes lead from one tree to the other, all of them are needed, and a rename is told where there was one."""
    assert [change.path for change in changes] == sorted({change.path for change in changes}), "sorted, each once"
    by_path = {change.path: change for change in changes}
    old_names, new_names = names_by_file(old), names_by_file(new)
    sources: dict[bytes, bytes | None] = {}
    for path in sorted(new):
        change = by_path.get(path)
        found = new[path]
        parent, _, name = path.rpartition(b"/")
        source: bytes | None
        if change is None or change.kind is Kind.CHANGED:
            above = sources[parent] if path else b""
            assert above is not None, f"{path!r} lies in what was added"
            source = (above + b"/" + name if above else name) if path else b""
        else:
            assert change.kind in (Kind.ADDED, Kind.RENAMED), change
            assert path not in old, change
            source = change.old_path
        sources[path] = source
        if source is None:
            assert change is not None and change.new == found.node
            continue
        assert source in old, (path, source)
        before = old[source]
        expected = aspects_of(
            before, found, old_names[before.file] - {before.name}, new_names[found.file] - {found.name}
        )
        if change is None:
            assert not expected, f"{path!r} differs in {expected}"
            continue
        assert (change.old, change.new) == (before.node, found.node)
        assert change.aspects == expected, (path, change.aspects, expected)
        if change.kind is Kind.RENAMED:
            assert source not in new and before.file == found.file
        else:
            assert expected, f"{path!r} does not differ"
    used = [source for source in sources.values() if source is not None]
    removed = [change for change in changes if change.kind is Kind.REMOVED]
    assert sorted([*used, *(change.path for change in removed)]) == sorted(old), "each old path has one fate"
    for change in removed:
        assert change.old == old[change.path].node and change.path not in new
    gone = {old[change.path].file for change in removed if change.path not in new}
    come = {new[change.path].file for change in changes if change.kind is Kind.ADDED}
    assert not gone & come, "a rename was not told"


async def assert_states_compare_right(states: MountStates) -> list[Change]:
    """Check the changes of a mount's states; returns them."""
    changes = await states.changes()
    old, new = await describe(states.old), await describe(states.new)
    assert_right(changes, old, new)
    await _assert_same_pairs(states, changes, old, new)
    return changes


async def _assert_same_pairs(
    states: MountStates, changes: list[Change], old: dict[bytes, Described], new: dict[bytes, Described]
) -> None:
    """The same paths belong together as in a comparison of everything."""
    both = {described.file for described in old.values()} & {described.file for described in new.values()}
    survivors = {ino for ino, _, _ in both}

    async def children(ino: int) -> tuple[Children, Children]:
        return await states.old.inodes(ino), await states.new.inodes(ino)

    trees = TreePairs(states.old, states.new, survivors.__contains__, children)
    await trees.find()
    kinds = (Kind.ADDED, Kind.REMOVED, Kind.RENAMED)
    expected = [(place.path, Kind.ADDED, None) for place in trees.added]
    expected += [(place.path, Kind.REMOVED, None) for place in trees.removed]
    renamed = [pair for pair in trees.pairs if pair.is_renamed]
    found = [(change.path, change.kind, change.old_path) for change in changes if change.kind in kinds]
    assert sorted(found) == sorted([*expected, *[(pair.new.path, Kind.RENAMED, pair.old.path) for pair in renamed]])


async def states_of(volume: Volume, image: bytes) -> MountStates:
    """The states of a volume in memory.

    Args:
        image: what it began with.
    """
    file = await volume.open_written()
    try:
        written = parse_written(await file.read(0, file.size))
    finally:
        file.close()
    old = await Volume.open(MemoryDevice(image))
    new = await Volume.open(MemoryDevice(apply(image, written)))
    return MountStates(ImageView(old, "old"), ImageView(new, "new"), sorted(written))

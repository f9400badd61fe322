"""Which added paths are removed ones with another name, when both trees are states of one file system.

``tree_pairs`` has the same rules for states that are known by what was written.
"""

from __future__ import annotations

import stat
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from mystfuse.tree.diff.change import Change
from mystfuse.tree.diff.view import Node


class Origin(NamedTuple):
    """What an added path was."""

    removal: Change
    is_renamed: bool
    """False if it has its name still, in a directory that has been renamed."""


def find_origins(changes: Iterable[Change]) -> dict[bytes, Origin]:
    """What added paths were, by path.

    A renamed directory takes what is in it along: inside it, a name is what it was before, whatever inode it has. All
    else has been renamed if the same inode has lost a path.

    Args:
        changes: parents first.
    """
    return _Origins(changes).found


class _Origins:
    def __init__(self, changes: Iterable[Change]) -> None:
        self.found: dict[bytes, Origin] = {}
        self._removed: dict[bytes, Change] = {}
        self._by_identity: dict[Hashable, deque[bytes]] = defaultdict(deque)
        added: list[Change] = []
        for change in changes:
            if change.old is None:
                added.append(change)
            elif change.new is None:
                self._removed[change.path] = change
                self._by_identity[_identity(change.old)].append(change.path)
        # Directories first: what is in them goes with them.
        self._find(added, _is_directory, self._by_name, self._by_inode)
        self._find(added, _is_no_directory, self._by_name)
        self._find(added, _is_no_directory, self._by_inode)

    def _find(
        self,
        added: Iterable[Change],
        accepts: Callable[[Change], bool],
        *ways: Callable[[Change], Origin | None],
    ) -> None:
        for change in added:
            if change.path in self.found or not accepts(change):
                continue
            for way in ways:
                origin = way(change)
                if origin is not None:
                    self.found[change.path] = origin
                    del self._removed[origin.removal.path]
                    break

    def _by_name(self, change: Change) -> Origin | None:
        """The same name in a directory that has been renamed, or is in one."""
        directory, _, name = change.path.rpartition(b"/")
        above = self.found.get(directory)
        if above is None:
            return None
        removal = self._removed.get(above.removal.path + b"/" + name)
        return None if removal is None else Origin(removal, False)

    def _by_inode(self, change: Change) -> Origin | None:
        assert change.new is not None
        paths = self._by_identity.get(_identity(change.new), deque())
        while paths:
            removal = self._removed.get(paths.popleft())
            if removal is not None:
                return Origin(removal, True)
        return None


def _identity(node: Node) -> Hashable:
    return node.key, node.generation, stat.S_IFMT(node.mode)


def _is_directory(change: Change) -> bool:
    return change.new is not None and change.new.is_directory


def _is_no_directory(change: Change) -> bool:
    return not _is_directory(change)

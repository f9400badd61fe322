"""How much differs: counts, and bytes of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.view import Node


@dataclass(slots=True)
class Statistics:
    """What ``add`` was told of."""

    paths: Counter[Kind] = field(default_factory=Counter)
    """By what became of them."""
    size: Counter[Kind] = field(default_factory=Counter)
    """Bytes of the files that were added, removed, or have other contents: new ones, but of those removed. An inode
    with several names counts once."""
    aspects: Counter[Aspect] = field(default_factory=Counter)
    """How many paths that were and are there differ in each."""
    _counted: set[tuple[Kind, Hashable]] = field(default_factory=set)

    def add(self, change: Change) -> None:
        """Count one change."""
        self.paths[change.kind] += 1
        self.aspects.update(change.aspects)
        node = change.old if change.new is None else change.new
        if node is not None and _has_new_bytes(change) and self._is_first(change.kind, node):
            self.size[change.kind] += node.size

    def _is_first(self, kind: Kind, node: Node) -> bool:
        if node.nlink == 1:
            return True
        key = kind, node.key
        if key in self._counted:
            return False
        self._counted.add(key)
        return True


def _has_new_bytes(change: Change) -> bool:
    return change.kind in (Kind.ADDED, Kind.REMOVED) or bool(change.aspects & {Aspect.CONTENT, Aspect.TYPE})

"""Which inodes have other names than before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mystfuse.tree.diff.inode_names import Link
from mystfuse.tree.diff.tree_pairs import Place


class _Name(NamedTuple):
    """A name in a directory of the old or the new tree. Whatever path a directory has, it is the same directory."""

    directory: int
    is_old: bool | None
    """None for a directory that both trees have: its number may have been used anew."""
    name: bytes


class LinkChanges:
    """Names that have come and gone, by inode.

    Args:
        survives: whether the inode with a number is the same file in both trees.
    """

    def __init__(self, survives: Callable[[int], bool]) -> None:
        self.present: Mapping[int, set[Link]] = {}
        """All present names of those in ``inodes`` that survive."""
        self._survives = survives
        self._removed: dict[int, set[_Name]] = {}
        self._added: dict[int, set[_Name]] = {}

    @property
    def inodes(self) -> set[int]:
        """The inodes that have got or lost a name."""
        return self._removed.keys() | self._added.keys()

    def compare(self, directory: int, old: Mapping[bytes, int], new: Mapping[bytes, int]) -> None:
        """Note the names, with inode numbers, that a directory had and has; those that it had and has may be left
        out."""
        for names, others, changed, is_old in ((old, new, self._removed, True), (new, old, self._added, False)):
            for name, ino in names.items():
                if others.get(name) != ino or not self._survives(ino):
                    changed.setdefault(ino, set()).add(self._name(directory, is_old, name))

    def differ(self, old: Place, new: Place) -> bool:
        """Whether a path shares its inode with others than before."""
        if max(old.inode.i_links_count, new.inode.i_links_count) < 2 or new.inode.is_directory:
            return False
        one, other = old.inode.ino, new.inode.ino
        before = self._names_before(one) - {self._name(old.directory, True, old.name)}
        after = self._names_after(other) - {self._name(new.directory, False, new.name)}
        return before != after

    def _names_before(self, ino: int) -> set[_Name]:
        present: set[_Name] = set()
        if self._survives(ino):
            present = self._present(ino) - self._added.get(ino, set())
        return present | self._removed.get(ino, set())

    def _names_after(self, ino: int) -> set[_Name]:
        return self._present(ino) if self._survives(ino) else self._added.get(ino, set())

    def _present(self, ino: int) -> set[_Name]:
        return {self._name(directory, False, name) for directory, name in self.present.get(ino, ())}

    def _name(self, directory: int, is_old: bool, name: bytes) -> _Name:
        return _Name(directory, None if self._survives(directory) else is_old, name)

"""The expected contents of a worker's part of the mount."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from soaking.contents import Contents


@dataclass(eq=False, slots=True)
class File:
    """A regular file, which may have several names, or none while it is open."""

    contents: Contents
    ino: int = 0
    """0: not known yet."""
    links: int = 1
    generation: int = 1
    """The last one written."""
    xattrs: dict[str, bytes] = field(default_factory=dict)

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation


@dataclass(eq=False, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False, slots=True)
class Directory:
    """A directory. In a shared directory, ``children`` has only names that begin with ``prefix``.

    ``others`` are further names that it always has.
    """

    path: str
    """Of a top directory; others have ``parent`` and ``name``."""
    parent: Directory | None = None
    name: str = ""
    children: dict[str, Node] = field(default_factory=dict)
    prefix: str | None = None
    others: frozenset[str] = frozenset()

    def location(self) -> str:
        """Its path."""
        return self.path if self.parent is None else f"{self.parent.location()}/{self.name}"

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    def below(self) -> Iterator[Directory]:
        """Itself and all directories below it."""
        yield self
        for child in self.children.values():
            if isinstance(child, Directory):
                yield from child.below()

    def is_below(self, other: Directory) -> bool:
        """Whether it is ``other``, or somewhere below it."""
        return self is other or (self.parent is not None and self.parent.is_below(other))


Node = File | Link | Directory


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, and its node."""

    directory: Directory
    name: str
    node: Node

    @property
    def path(self) -> str:
        return f"{self.directory.location()}/{self.name}"

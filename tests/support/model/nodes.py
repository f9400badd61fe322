"""The inodes of the model."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.model.contents import Content
from tests.support.model.results import (
    CAPABILITY,
    NAME_MAX,
    Unknown,
    failure,
    spell,
)


@dataclass(eq=False)
class Node:
    """An inode. Values that the model has lost (a mode changed by an ACL) are UNKNOWN."""

    kind: int
    permissions: int | Unknown
    uid: int = 0
    gid: int | Unknown = 0
    links: int = 1
    content: Content = field(default_factory=Content)
    target: str = ""
    device: int = 0
    entries: dict[str, Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    default_acl: bool = False
    flags: int = 0
    is_nameless: bool = False
    """Made without a name, and has had none."""

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG

    def children(self) -> Iterator[Node]:
        """Every node below this directory."""
        for child in self.entries.values():
            yield child
            yield from child.children()


@dataclass
class OpenNode:
    """An open file of the model."""

    node: Node
    flags: int

    @property
    def access(self) -> int:
        return self.flags & os.O_ACCMODE


class Modelled(dict[str, bytes]):
    """The attributes that the model knows; equal to any that differ only in unknown ones."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and dict(self) == {name: other[name] for name in other if _is_modelled(name)}

    __hash__ = None


def _listed_type(node: Node) -> tuple[bool, bool, bool]:
    return node.is_directory, node.is_file, node.kind == stat.S_IFLNK


def _attribute_name(name: str) -> str:
    """The name of an attribute, checked as the kernel does before it looks for the file."""
    name = spell(name)
    if len(name) > NAME_MAX:
        raise failure(errno.ERANGE)
    return name


def _is_modelled(name: str) -> bool:
    return not name.startswith("system.") and name != CAPABILITY


def _may_have(node: Node, name: str) -> bool:
    """Users' attributes are for files and directories."""
    return node.is_file or node.is_directory or not name.startswith("user.")

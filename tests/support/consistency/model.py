"""What the writers' calls made: of each name which inode, of each inode its attributes, of each cell its version."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.consistency.records import FIRST_NAME, Kind, Layout, Record
from tests.support.consistency.registers import Register

PAGE = 4096
PAST_END = -1
"""The version of a cell behind the end of its file."""


class Attributes(NamedTuple):
    """Of an inode. None: not known, any value is right."""

    mode: int
    links: int | None
    size: int | None
    owner: int = 0
    time: int | None = None
    xattr: int = 0
    content: int = 0


@dataclass(eq=False)
class Node:
    """An inode, from its making on."""

    ino: int
    target: int = 0
    history: Register[Attributes] = field(default_factory=Register)
    cells: list[Register[int]] = field(default_factory=list)
    size: int = 0

    @property
    def now(self) -> Attributes:
        return self.history.states[-1]

    def __repr__(self) -> str:
        return f"inode {self.ino}"


class Impossible(Exception):
    """A call of a writer, which knows its objects, failed or did what it cannot do."""


class Model:
    """All objects of a run.

    Args:
        forgiven: errnos with which a writer's call may fail, and then changes nothing.
    """

    def __init__(self, forgiven: frozenset[int] = frozenset()) -> None:
        self.names: dict[int, Register[Node | None]] = {}
        self._forgiven = forgiven
        names = Layout["WRITERS"] * Layout["DIRECTORIES"] * Layout["NAMES"]
        for number in (*range(Layout["WRITERS"] * Layout["FILES"]), *range(FIRST_NAME, FIRST_NAME + names)):
            self.names[number] = Register()
            self.names[number].set(None, 0, 0)

    def node(self, number: int) -> Node:
        """What the object is after all calls so far."""
        node = self.names[number].states[-1]
        if node is None:
            raise Impossible(f"object {number} does not exist")
        return node

    def apply(self, call: Record) -> None:
        """Follow a writer's call. Give each writer's calls in their order.

        Raises:
            Impossible: the call cannot have had this result.
        """
        if call.error:
            # The kernel counts a file's links down itself when unlink(2) has been answered, also if another process has
            # asked for its attributes in between, and lets no file of 0 links be linked (fs/fuse/dir.c,
            # fuse_entry_unlinked; fs/namei.c, vfs_link). Whoever asks for the attributes gets the right number.
            is_miscounted = call.kind == Kind.DO_LINK and call.error == errno.ENOENT
            if call.error not in self._forgiven and not is_miscounted:
                raise Impossible(f"failed: {call}")
            if call.kind == Kind.DO_WRITE:
                self._write(call, fails=True)
            return
        kind, values = call.kind, call.values
        if kind in (Kind.DO_CREATE, Kind.DO_SYMLINK, Kind.DO_MKDIR):
            self._make(call)
        elif kind == Kind.DO_WRITE:
            self._write(call)
        elif kind == Kind.DO_RESIZE:
            self._resize(call)
        elif kind in (Kind.DO_RENAME, Kind.DO_EXCHANGE):
            self._move(call)
        elif kind == Kind.DO_LINK:
            node = self.node(call.object)
            if call.object >= FIRST_NAME:
                self._name(values[0], node, call)
            self._add_links(node, 1, call)
        elif kind in (Kind.DO_UNLINK, Kind.DO_RMDIR):
            node = self.node(call.object)
            if call.object >= FIRST_NAME:
                self._name(call.object, None, call)
            self._add_links(node, -1, call)
        else:
            self._set_attribute(call)

    def _set_attribute(self, call: Record) -> None:
        node, value = self.node(call.object), call.values[0]
        before = node.now
        if call.kind == Kind.DO_CHMOD:
            after = before._replace(mode=stat.S_IFMT(before.mode) | value)
        elif call.kind == Kind.DO_CHOWN:
            after = before._replace(owner=value << 32 | value)
        elif call.kind == Kind.DO_TIME:
            after = before._replace(time=value)
        elif call.kind == Kind.DO_XATTR:
            after = before._replace(xattr=value)
        elif call.kind == Kind.DO_FILL:
            after = before._replace(content=value, size=Layout["NAME_BYTES"], time=None)
        else:
            raise Impossible(f"no call of a writer: {call}")
        node.history.set(after, call.start, call.end)

    def _name(self, number: int, node: Node | None, call: Record) -> None:
        self.names[number].set(node, call.start, call.end)

    def _add_links(self, node: Node, change: int, call: Record) -> None:
        links = node.now.links
        if links is not None:
            node.history.set(node.now._replace(links=links + change), call.start, call.end)

    def _make(self, call: Record) -> None:
        ino, second, third = call.values[:3]
        node = Node(ino)
        if call.kind == Kind.DO_SYMLINK:
            node.target = second
            attributes = Attributes(third, 1, 8 + second % 70)
        elif call.kind == Kind.DO_MKDIR:
            # Removing it takes two links off, one after the other.
            attributes = Attributes(second, None, None)
        else:
            attributes = Attributes(second, 1, 0)
        node.history.set(attributes, call.start, call.end)
        if call.object < FIRST_NAME:
            is_small = call.object % Layout["FILES"]
            count = (Layout["PAGE_CELLS"], Layout["SMALL_CELLS"], 0)[is_small]
            node.cells = [Register() for _ in range(count)]
            for cell in node.cells:
                cell.set(PAST_END, call.start, call.end)
        self._name(call.object, node, call)

    def _cell_bytes(self, number: int) -> int:
        return Layout["SMALL_CELL"] if number % Layout["FILES"] else Layout["PAGE_CELL"]

    def _write(self, call: Record, fails: bool = False) -> None:
        first, wanted, version, written = call.values[:4]
        written = 0 if fails else written
        node = self.node(call.object)
        for index in range(first, first + wanted):
            before = node.cells[index].states[-1]
            node.cells[index].set(version, call.start, call.end)
            if index >= first + written:
                # The kernel puts it into its cache before it asks, and takes it out again when that fails.
                node.cells[index].set(before, call.start, call.end)
        end = (first + written) * self._cell_bytes(call.object) if written else 0
        # A file grows page by page: the kernel's own ext2 shows each.
        for size in range((node.size // PAGE + 1) * PAGE, end, PAGE):
            self._set_size(node, call, size)
        self._set_size(node, call, max(node.size, end))

    def _resize(self, call: Record) -> None:
        node = self.node(call.object)
        if node.cells:
            end = call.values[0] // self._cell_bytes(call.object)
            for cell in node.cells[end:]:
                if cell.states[-1] != PAST_END:
                    cell.set(PAST_END, call.start, call.end)
        self._set_size(node, call, call.values[0])

    def _set_size(self, node: Node, call: Record, size: int) -> None:
        if size > node.size and node.cells:
            for cell in node.cells[: size // self._cell_bytes(call.object)]:
                if cell.states[-1] == PAST_END:
                    cell.set(0, call.start, call.end)
        node.size = size
        node.history.set(node.now._replace(size=size, time=None), call.start, call.end)

    def _move(self, call: Record) -> None:
        other = call.values[0]
        node, replaced = self.node(call.object), self.names[other].states[-1]
        if node is replaced:
            # Two names of one file: nothing happens.
            return
        is_exchange = call.kind == Kind.DO_EXCHANGE
        self._name(call.object, replaced if is_exchange else None, call)
        self._name(other, node, call)
        if replaced is not None and not is_exchange:
            self._add_links(replaced, -1, call)

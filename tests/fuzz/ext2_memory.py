"""Blocks of a file system in memory, for the targets of the fuzzer that need no device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Concatenate, ParamSpec, TypeVar

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.blocks import Blocks, Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.directory import list_entries
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.superblock import Superblock
from tests.fuzz.images import SparseImage, load

P = ParamSpec("P")
T = TypeVar("T")
ADMIN = Caller(0, 0)
ROOT = 2
SOUND = ("small", "old", "large")
NO_ROOM = 1 << 20


class Memory:
    """The blocks of an image, all in memory, and a commit."""

    def __init__(self, image: SparseImage) -> None:
        self.image = image
        self.superblock = Superblock.parse(image.get(1024, 1024))
        self.filesystem = FileSystem(self.superblock)

    def get(self, number: int) -> bytes | None:
        size = self.superblock.block_size
        return self.image.get(number * size, size)

    def holds(self, number: int) -> bool:
        return True

    def blocks(self) -> Blocks:
        return Blocks(self.get)

    def change(self, operation: Callable[Concatenate[Change, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation and commit its changes; if it raises, nothing changes."""
        transaction = Transaction(self.superblock.block_size, self.get, _Nothing(), lambda: NO_ROOM)
        transaction.restart()
        result = operation(Change(self.filesystem, transaction, ADMIN, 1_700_000_000 * 10**9), *args, **kwargs)
        size = self.superblock.block_size
        for number, content in transaction.changed.items():
            self.image.put(number * size, bytes(content))
        for first, run in transaction.runs:
            self.image.put(first * size, bytes(run))
        self.filesystem.orphans |= transaction.orphaned
        self.filesystem.orphans -= transaction.released
        for action in transaction.on_commit:
            action()
        return result

    def inode_offset(self, ino: int) -> int:
        superblock = self.superblock
        group, index = divmod(ino - 1, superblock.s_inodes_per_group)
        table = self.filesystem.groups.descriptor(self.blocks(), group).bg_inode_table
        return table * superblock.block_size + index * superblock.s_inode_size


class _Nothing:
    """Blocks written since then are in the image itself."""

    def get(self, number: int) -> bytes | None:
        return None

    def holds(self, number: int) -> bool:
        return True


@cache
def numbers(name: str) -> dict[bytes, int]:
    """Inode numbers by name in the root directory of an image."""
    memory = Memory(load(name).copy())
    root = memory.filesystem.inode(memory.blocks(), ROOT)
    entries, _ = list_entries(memory.superblock, memory.blocks(), root, 0, 100)
    return {entry.name: entry.ino for entry in entries}


def change(
    memory: Memory,
    operation: Callable[Concatenate[Change, P], object],
    *args: P.args,
    **kwargs: P.kwargs,
) -> bool:
    """Whether the operation changed something; if not, it said why."""
    try:
        memory.change(operation, *args, **kwargs)
    except (CorruptFilesystem, OSError):
        return False
    return True

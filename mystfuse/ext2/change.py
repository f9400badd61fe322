"""The context of an operation that changes a file system."""

from __future__ import annotations

from mystfuse.ext2.allocation import Allocator
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.xattr import find_attribute


class Change:
    """The context of one operation that changes ``filesystem``: it happens whole, when ``transaction`` is committed, or
    not at all.

    Args:
        now_ns: the time of the operation, in nanoseconds since the epoch.
    """

    def __init__(self, filesystem: FileSystem, transaction: Transaction, caller: Caller, now_ns: int) -> None:
        self.filesystem = filesystem
        self.transaction = transaction
        self.caller = caller
        self.now_ns = now_ns
        self.superblock: Superblock = filesystem.superblock
        self.allocator: Allocator = filesystem.allocator

    def inode(self, ino: int) -> Inode:
        """See ``FileSystem.inode``."""
        return self.filesystem.inode_table.read(self.transaction, ino)

    def write_inode(self, inode: Inode) -> None:
        """See ``InodeTable.write``."""
        self.filesystem.inode_table.write(self.transaction, inode)

    def read_back(self, ino: int) -> Inode:
        """See ``InodeTable.read_back``."""
        return self.filesystem.inode_table.read_back(self.transaction, ino)

    def find_attribute(self, inode: Inode, name_index: int) -> bytes | None:
        """See ``xattr.find_attribute``."""
        read_inode = self.filesystem.inode_table.parse_reserved
        return find_attribute(self.superblock, self.transaction, inode, name_index, read_inode)

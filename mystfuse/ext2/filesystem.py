"""The operations of the file system, as plain functions of blocks in memory.

Every method takes the ``Blocks`` of the operation it is part of first, and may raise ``BlocksMissing`` at any point; it
is then run again from the start. File data is not read here: ``map_file`` says where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL, EISDIR, ENOTDIR

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.block_map import Run, map_runs
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.directory import Entry, list_entries, read_parent
from mystfuse.ext2.group import descriptor_block
from mystfuse.ext2.inode import Inode, locate_inode, read_inode
from mystfuse.ext2.name_index import NameIndexes
from mystfuse.ext2.superblock import GROUP_DESCRIPTOR_SIZE, Superblock
from mystfuse.ext2.symlink import read_target
from mystfuse.ext2.xattr import read_xattrs


@dataclass(frozen=True, slots=True)
class Statistics:
    """What statfs(2) reports. Blocks are of ``block_size`` bytes, file-system overhead taken off as ext2 does."""

    block_size: int
    blocks: int
    free_blocks: int
    available_blocks: int
    """Free to ordinary users."""
    inodes: int
    free_inodes: int


class FileSystem:
    """An EXT2 file system whose superblock has been read."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self._name_indexes = NameIndexes()

    def inode(self, blocks: Blocks, ino: int) -> Inode:
        """The inode with number ``ino``.

        Raises:
            CorruptFilesystem: there is none, or it is broken.
        """
        return read_inode(self.superblock, blocks, ino)

    def inodes(self, blocks: Blocks, numbers: list[int]) -> list[Inode | None]:
        """What the entries of a directory refer to; None for what cannot be had or cannot be: a damaged or
        broken inode, or the root."""
        superblock = self.superblock
        possible = [ino for ino in numbers if 0 < ino <= superblock.s_inodes_count]
        groups = {(ino - 1) // superblock.s_inodes_per_group for ino in possible}
        # Name all the descriptors, then all the inodes' blocks, rather than meet them one by one.
        blocks.want(sorted({descriptor_block(superblock, group) for group in groups}))
        located: set[int] = set()
        for ino in possible:
            try:
                located.add(locate_inode(superblock, blocks, ino)[0])
            except MystfuseError:
                continue
        blocks.want(sorted(located))
        found: list[Inode | None] = []
        for ino in numbers:
            try:
                found.append(self.inode(blocks, ino) if ino != EXT2_ROOT_INO else None)
            except MystfuseError:
                found.append(None)
        return found

    def lookup(self, blocks: Blocks, parent: int, name: bytes) -> Inode | None:
        """What ``name`` in directory ``parent`` refers to; None if there is no such name.

        Raises:
            NotADirectoryError: ``parent`` is something else.
            CorruptFilesystem: the directory or the inode is broken, or a name leads back to the root.
        """
        directory = self._directory(blocks, parent)
        if name == b".":
            return directory
        if name == b"..":
            return self._directory(blocks, self.parent(blocks, directory))
        ino = self._name_indexes.find(self.superblock, blocks, directory, name)
        if not ino:
            return None
        if ino == EXT2_ROOT_INO:
            raise CorruptFilesystem(f"directory inode {parent}: an entry refers to the root directory")
        return self.inode(blocks, ino)

    def parent(self, blocks: Blocks, directory: Inode) -> int:
        """The inode number of the directory above."""
        if directory.ino == EXT2_ROOT_INO:
            return EXT2_ROOT_INO
        return read_parent(self.superblock, blocks, directory)

    def entries(self, blocks: Blocks, ino: int, offset: int, max_entries: int) -> tuple[list[Entry], int]:
        """Entries of a directory from byte ``offset`` on, without ``.`` and ``..``; see ``directory.list_entries``.

        Raises:
            NotADirectoryError, CorruptFilesystem
        """
        return list_entries(self.superblock, blocks, self._directory(blocks, ino), offset, max_entries)

    def regular_file(self, blocks: Blocks, ino: int) -> Inode:
        """The inode with number ``ino``, which has to be a regular file; IsADirectoryError if it is not."""
        inode = self.inode(blocks, ino)
        if not inode.is_regular:
            raise IsADirectoryError(EISDIR, f"inode {ino} is not a regular file")
        return inode

    def map_file(self, blocks: Blocks, inode: Inode, first: int, count: int) -> list[Run]:
        """Where ``count`` blocks of a regular file are, from its block ``first`` on.

        Raises:
            CorruptFilesystem: its block map is broken.
        """
        return map_runs(self.superblock, blocks, inode, first, count)

    def target(self, blocks: Blocks, inode: Inode) -> bytes:
        """The target of a symbolic link; OSError (EINVAL) if the inode is something else."""
        if not inode.is_symlink:
            raise OSError(EINVAL, f"inode {inode.ino} is not a symbolic link")
        return read_target(self.superblock, blocks, inode)

    def xattrs(self, blocks: Blocks, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of an inode by full name."""
        return read_xattrs(self.superblock, blocks, inode)

    def statistics(self) -> Statistics:
        """Sizes and free space, by the rules of the kernel's ext4_calculate_overhead (fs/ext4/super.c)."""
        superblock = self.superblock
        table_blocks = -(-superblock.s_inodes_per_group * superblock.s_inode_size // superblock.block_size)
        descriptor_blocks = -(-superblock.groups_count * GROUP_DESCRIPTOR_SIZE // superblock.block_size)
        overhead = superblock.s_first_data_block + superblock.groups_count * (table_blocks + 2)
        overhead += self._groups_with_superblock() * (1 + descriptor_blocks + superblock.s_reserved_gdt_blocks)
        overhead += superblock.journal_size // superblock.block_size
        return Statistics(
            superblock.block_size,
            max(superblock.s_blocks_count - overhead, 0),
            superblock.s_free_blocks_count,
            max(superblock.s_free_blocks_count - superblock.s_r_blocks_count, 0),
            superblock.s_inodes_count,
            superblock.s_free_inodes_count,
        )

    def _groups_with_superblock(self) -> int:
        """How many groups hold a superblock and descriptors: with sparse_super 0, 1, and powers of 3, 5 and 7."""
        count = self.superblock.groups_count
        if "sparse_super" not in self.superblock.features:
            return count
        groups = {0, 1}
        for base in (3, 5, 7):
            power = base
            while power < count:
                groups.add(power)
                power *= base
        return sum(group < count for group in groups)

    def _directory(self, blocks: Blocks, ino: int) -> Inode:
        inode = self.inode(blocks, ino)
        if not inode.is_directory:
            raise NotADirectoryError(ENOTDIR, f"inode {ino} is not a directory")
        return inode

"""A file system: what all operations share, and the operations that change nothing, as plain functions of blocks.

Every method takes the ``Blocks`` of the operation it is part of first, and may raise ``BlocksMissing`` at any point; it
is then run again from the start. File data is not read here: ``map_file`` says where it is. Operations that change
something take a ``Change``: ``create``, ``link_and_unlink``, ``rename``, ``setattr``, ``xattr_changes``,
``write``, ``truncate`` and ``orphans``.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from errno import EINVAL, EISDIR, ENOTDIR

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.allocation import Allocator
from mystfuse.ext2.block_groups import GroupTable
from mystfuse.ext2.block_map import Run, Stretch, map_runs, map_stretch
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.directory import Entry, list_entries, read_parent
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.inode_table import InodeTable
from mystfuse.ext2.name_indexes import NameIndexes
from mystfuse.ext2.superblock import Superblock, read_free_counts
from mystfuse.ext2.symlink import read_target
from mystfuse.ext2.xattr import read_xattrs


@dataclass(frozen=True, slots=True)
class Statistics:
    """What statfs(2) reports. Blocks are of ``block_size`` bytes, file-system overhead taken off as ext2 does."""

    block_size: int
    blocks: int
    free_blocks: int
    available_blocks: int
    """Blocks free to ordinary users."""
    inodes: int
    free_inodes: int


_MAX_GOALS = 1024
_MAX_NEW_FILES = 16_384


class FileSystem:
    """An EXT2 file system whose superblock has been read, and its caches.

    Caches are in memory alone, and change only when a transaction is committed.
    """

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self.orphans: set[int] = set()
        """Inodes without a name that are still in use: open, or known to the kernel."""
        self.groups = GroupTable(superblock)
        self.inode_table = InodeTable(self.groups, self.orphans)
        self.allocator = Allocator(self.groups, self.inode_table)
        self.name_indexes = NameIndexes(superblock)
        self._next_generation = secrets.randbits(32)
        self._goals: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._new_files: OrderedDict[int, None] = OrderedDict()
        """Files without contents that were made since the mount: with inline_data, those may begin in their inodes
        (fs/ext4/ext4.h, EXT4_STATE_MAY_INLINE_DATA)."""
        self._overhead = self._count_overhead()

    def fork(self) -> FileSystem:
        """The same file system for a snapshot of its blocks."""
        fork = FileSystem(self.superblock)
        fork.orphans.update(self.orphans)
        return fork

    def next_generation(self) -> int:
        """An i_generation for a new inode, so that its number, if used before, is not mistaken for the old file."""
        self._next_generation = self._next_generation + 1 & 0xFFFFFFFF
        return self._next_generation

    def goal(self, ino: int, logical: int) -> int:
        """The block that should follow the block that was last written just in front of ``logical``, or 0."""
        end, physical = self._goals.get(ino, (-1, 0))
        return physical if end == logical else 0

    def set_goal(self, ino: int, logical: int, physical: int) -> None:
        """Record that a file was written up to block ``logical``: block number ``physical`` should follow."""
        self._goals[ino] = logical, physical
        self._goals.move_to_end(ino)
        if len(self._goals) > _MAX_GOALS:
            self._goals.popitem(last=False)

    def note_new_file(self, ino: int) -> None:
        """Record that a file has been made, which has no contents yet."""
        self._new_files[ino] = None
        if len(self._new_files) > _MAX_NEW_FILES:
            self._new_files.popitem(last=False)

    def is_new_file(self, ino: int) -> bool:
        """Whether a file has been made lately, and has had no contents since."""
        return ino in self._new_files

    def note_contents(self, ino: int) -> None:
        """Record that a file has contents, or room for some."""
        self._new_files.pop(ino, None)

    def forget(self, ino: int) -> None:
        """The number is free, or another inode's."""
        self.name_indexes.forget(ino)
        self._goals.pop(ino, None)
        self._new_files.pop(ino, None)

    def forget_all(self) -> None:
        """Drop all caches except the orphans. Takes no memory."""
        self.name_indexes.forget_all()
        self._goals.clear()
        self._new_files.clear()
        self.inode_table.forget_all()

    def inode(self, blocks: Blocks, ino: int) -> Inode:
        """The inode with number ``ino``.

        Raises:
            CorruptFilesystem: there is none, or it is broken.
        """
        return self.inode_table.read(blocks, ino)

    def find_inode(self, blocks: Blocks, ino: int) -> Inode | None:
        """The same for a number from a file handle, not from the file system: its holder may have kept it for long, or
        made it up. None if no file has that number.

        Raises:
            CorruptFilesystem: the inode is in use and broken.
        """
        superblock = self.superblock
        if ino != EXT2_ROOT_INO and not superblock.s_first_ino <= ino <= superblock.s_inodes_count:
            return None
        return self.inode_table.read(blocks, ino) if self.inode_table.is_in_use(blocks, ino) else None

    def find_parent(self, blocks: Blocks, ino: int) -> Inode | None:
        """The directory above a directory, as ``find_inode`` finds both.

        Raises:
            NotADirectoryError: ``ino`` is something else.
            CorruptFilesystem: one of the two is broken.
        """
        if self.find_inode(blocks, ino) is None:
            return None
        return self.find_inode(blocks, self.parent(blocks, self.directory(blocks, ino)))

    def inodes(self, blocks: Blocks, numbers: list[int]) -> list[Inode | None]:
        """The inodes of a directory's entries; see ``InodeTable.read_all``."""
        return self.inode_table.read_all(blocks, numbers)

    def lookup(self, blocks: Blocks, parent: int, name: bytes) -> Inode | None:
        """The inode of ``name`` in directory ``parent``; None if there is no such name.

        Raises:
            NotADirectoryError: ``parent`` is something else.
            CorruptFilesystem: the directory or the inode is broken, or a name leads back to the root.
        """
        directory = self.directory(blocks, parent)
        if name == b".":
            return directory
        if name == b"..":
            return self.directory(blocks, self.parent(blocks, directory))
        found = self.name_indexes.find(blocks, directory, name)
        if not found:
            if directory.is_casefolded:
                # Another spelling may be there, and which ones are the same is a table of the kernel's.
                raise UnsupportedFeature(
                    f"directory inode {parent}: names are looked up by casefold, which mystfuse does not have"
                )
            return None
        ino = found[0].ino
        if ino == EXT2_ROOT_INO:
            raise CorruptFilesystem(f"directory inode {parent}: an entry refers to the root directory")
        return self.inode_table.read(blocks, ino)

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
        return list_entries(self.superblock, blocks, self.directory(blocks, ino), offset, max_entries)

    def listing(
        self, blocks: Blocks, ino: int, offset: int, max_entries: int
    ) -> tuple[list[tuple[Entry, Inode | None]], int]:
        """The same with the inode of each entry, as ``inodes`` gives them."""
        entries, next_offset = self.entries(blocks, ino, offset, max_entries)
        inodes = self.inodes(blocks, [entry.ino for entry in entries])
        return list(zip(entries, inodes, strict=True)), next_offset

    def regular_file(self, blocks: Blocks, ino: int) -> Inode:
        """The inode with number ``ino``, which has to be a regular file; IsADirectoryError if it is not."""
        inode = self.inode_table.read(blocks, ino)
        if not inode.is_regular:
            raise IsADirectoryError(EISDIR, f"inode {ino} is not a regular file")
        return inode

    def map_file(self, blocks: Blocks, inode: Inode, first: int, count: int) -> list[Run]:
        """Where ``count`` blocks of a regular file are, from its block ``first`` on.

        Raises:
            CorruptFilesystem: its block map is broken.
        """
        return map_runs(self.superblock, blocks, inode, first, count)

    def map_stretch(self, blocks: Blocks, inode: Inode, first: int) -> Stretch:
        """How far a regular file has data, or a hole, from its block ``first`` on.

        Raises:
            CorruptFilesystem: its block map is broken.
        """
        return map_stretch(self.superblock, blocks, inode, first)

    def target(self, blocks: Blocks, inode: Inode) -> bytes:
        """The target of a symbolic link; OSError (EINVAL) if the inode is something else."""
        if not inode.is_symlink:
            raise OSError(EINVAL, f"inode {inode.ino} is not a symbolic link")
        return read_target(self.superblock, blocks, inode)

    def xattrs(self, blocks: Blocks, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of an inode by full name."""
        return read_xattrs(self.superblock, blocks, inode, self.inode_table.parse_reserved)

    def statistics(self, blocks: Blocks) -> Statistics:
        """Sizes and present free space, by the rules of the kernel's ext4_statfs (fs/ext4/super.c)."""
        superblock = self.superblock
        free_blocks, free_inodes = read_free_counts(superblock, blocks)
        reserved = superblock.s_r_blocks_count
        if "extent" in superblock.features:
            # ext4_calculate_resv_clusters
            clusters = superblock.s_blocks_count // superblock.blocks_per_cluster
            reserved += min(clusters // 50, 4096) * superblock.blocks_per_cluster
        return Statistics(
            superblock.block_size,
            max(superblock.s_blocks_count - self._overhead, 0),
            free_blocks,
            max(free_blocks - reserved, 0),
            superblock.s_inodes_count,
            free_inodes,
        )

    def _count_overhead(self) -> int:
        """Blocks that can never hold files (fs/ext4/super.c, ext4_calculate_overhead)."""
        superblock = self.superblock
        known = superblock.s_overhead_clusters * superblock.blocks_per_cluster
        if 0 < known <= superblock.s_blocks_count:
            return known
        overhead = superblock.s_first_data_block + superblock.groups_count * (superblock.table_blocks + 2)
        overhead += superblock.superblock_copies * (1 + superblock.descriptor_blocks + superblock.s_reserved_gdt_blocks)
        return overhead + superblock.journal_size // superblock.block_size

    def directory(self, blocks: Blocks, ino: int) -> Inode:
        """The inode with number ``ino``, which has to be a directory; NotADirectoryError if it is not."""
        inode = self.inode_table.read(blocks, ino)
        if not inode.is_directory:
            raise NotADirectoryError(ENOTDIR, f"inode {ino} is not a directory")
        return inode

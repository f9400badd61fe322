"""The index of a directory by the hashes of its names, a tree: block 0 of the directory is its root, behind ``.`` and
``..``; other index blocks look like one empty entry; the leaves are blocks of names.

An entry of the tree is a hash and a block: that block, or those below it, have the names from this hash on, up to the
next entry's. If the lowest bit of the hash is set, names with the hash without it are in the block in front, too.

Source: Documentation/filesystems/ext4/directory.rst ("Hash Tree Directories"); fs/ext4/namei.c (dx_probe,
ext4_htree_next_block, dx_root_limit, dx_node_limit); fs/ext4/ext4.h (ext4_dir_htree_level).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_map import map_block
from mystfuse.ext2.blocks import Block, Blocks, Transaction
from mystfuse.ext2.directory import Found, directory_block, find_in_block
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.name_hash import VERSIONS
from mystfuse.ext2.superblock import Superblock

ENTRY = struct.Struct("<II")  # hash block
ENTRY_SIZE = ENTRY.size
COUNTS = struct.Struct("<HH")  # limit count, in place of the first entry's hash, which is 0
_HASH = struct.Struct("<I")
_REC_LEN = struct.Struct("<H")
_ROOT = struct.Struct("<4xHBx4s4xHBx4s4xBBBB")
"""``.`` and ``..`` (rec_len name_len name each), then hash_version info_length indirect_levels unused_flags."""
INFO_OFFSET = 24
INFO_LENGTH = 8
NODE_START = 8
"""The offset of the entries of an index block other than the root."""
INDEX_TAIL = 8
"""Bytes that metadata_csum takes at the end of an index block."""
_BLOCK_MASK = 0x0FFFFFFF
MAX_CONTINUED = 8
"""Leaves with one and the same hash that a look-up reads, before it reads the directory as one without an index: each
may be a miss, of which an operation may have few."""


class UnusableIndex(CorruptFilesystem):
    """An index that the kernel's driver does not use either: it then reads the directory as a linear one."""


class IndexBlock(NamedTuple):
    """An index block that has been checked."""

    number: int
    block: Block
    start: int
    """The offset of its entries."""
    limit: int
    """How many there may be; ``used`` are there."""
    used: int
    version: int = 0
    """In the root: the hash function."""
    levels: int = 0
    """In the root: how many levels of index blocks are below it."""

    @property
    def is_full(self) -> bool:
        return self.used == self.limit

    def entry(self, slot: int) -> tuple[int, int]:
        """An entry: hash and block. (The first one's hash is what ``COUNTS`` has.)"""
        value, child = ENTRY.unpack_from(self.block, self.start + slot * ENTRY_SIZE)
        return value, child & _BLOCK_MASK


class Step(NamedTuple):
    """An index block on the way to a leaf, and the entry that leads on."""

    node: IndexBlock
    slot: int


class Path(NamedTuple):
    """The way to the leaf for a name."""

    hash: int
    version: int
    steps: tuple[Step, ...]
    """From the root down."""
    leaf: int
    """The block in the directory."""


KnownBlocks = dict[int, IndexBlock]
"""Index blocks of one directory by their places in it, as the last commit left them."""


def max_levels(superblock: Superblock) -> int:
    """Index blocks on the way to a leaf, at most."""
    return 3 if "large_dir" in superblock.features else 2


def root_limit(superblock: Superblock, start: int) -> int:
    """How many entries a root has room for, whose entries begin at byte ``start``."""
    return (superblock.block_size - start - (0 if superblock.checksums is None else INDEX_TAIL)) // ENTRY_SIZE


def node_limit(superblock: Superblock) -> int:
    """The same for an index block below the root."""
    return root_limit(superblock, NODE_START)


def find_path(
    superblock: Superblock, blocks: Blocks, inode: Inode, name: bytes, known: KnownBlocks | None = None
) -> Path:
    """The way to the leaf of directory ``inode`` where ``name`` is, or would be. The file system has dir_index.

    Args:
        known: index blocks that need not be read, and get those that are; None for a directory that the operation has
            changed.

    Raises:
        UnusableIndex: the kernel's driver would do without it.
        BlocksMissing, MystfuseError
    """
    name_hash = superblock.name_hash
    assert name_hash is not None
    known = {} if known is None else known
    node = known.get(0)
    if node is None:
        node = known[0] = _root(superblock, blocks, inode)
    version, levels = node.version, node.levels
    value = name_hash.of(version, name)
    steps: list[Step] = []
    logicals = [0]
    while True:
        slot = _search(node, value)
        steps.append(Step(node, slot))
        child = _child(inode, node, slot, logicals)
        if len(steps) > levels:
            return Path(value, version, tuple(steps), child)
        logicals.append(child)
        below = known.get(child)
        if below is None:
            below = known[child] = _node(superblock, blocks, inode, child)
        node = below


def next_path(superblock: Superblock, blocks: Blocks, inode: Inode, path: Path) -> Path | None:
    """The way to the next leaf if names with the same hash may go on there; None if not. Raises as ``find_path``."""
    steps = list(path.steps)
    while steps and steps[-1].slot + 1 == steps[-1].node.used:
        steps.pop()
    if not steps:
        return None
    node, slot = steps.pop()
    value, _ = node.entry(slot + 1)
    if value & ~1 != path.hash:
        return None
    steps.append(Step(node, slot + 1))
    child = _child(inode, node, slot + 1, [0])
    logicals = [0]
    while len(steps) < len(path.steps):
        logicals.append(child)
        node = _node(superblock, blocks, inode, child)
        steps.append(Step(node, 0))
        child = _child(inode, node, 0, logicals)
    return Path(path.hash, path.version, tuple(steps), child)


def leaf_block(superblock: Superblock, blocks: Blocks, inode: Inode, path: Path) -> tuple[int, Block]:
    """The leaf: its block number, and the block; raises as ``directory_block``."""
    return _block_of(superblock, blocks, inode, path.leaf)


def find_by_hash(
    superblock: Superblock, blocks: Blocks, inode: Inode, name: bytes, known: KnownBlocks | None = None
) -> tuple[Found, int, int] | None:
    """Where the index finds ``name``, as ``NameIndexes.find`` gives it; None if it says that there is no such name.

    Args:
        known: see ``find_path``.

    Raises:
        BlocksMissing
        MystfuseError: the index or the leaf is broken, or many leaves have the hash: the name may still be there.
    """
    first = find_path(superblock, blocks, inode, name, known)
    path: Path | None = first
    for _ in range(MAX_CONTINUED):
        if path is None:
            if isinstance(blocks, Transaction):
                blocks.absent = inode.ino, name, first
            return None
        number, block = leaf_block(superblock, blocks, inode, path)
        if found := find_in_block(superblock, inode, block, path.leaf, name):
            return found, path.leaf, number
        path = next_path(superblock, blocks, inode, path)
    raise UnusableIndex(f"directory inode {inode.ino}: over {MAX_CONTINUED} leaves have one hash")


def _root(superblock: Superblock, blocks: Blocks, inode: Inode) -> IndexBlock:
    number, block = _block_of(superblock, blocks, inode, 0)
    dot_len, dot_size, dot, dots_len, dots_size, dots, version, length, levels, flags = _ROOT.unpack_from(block)
    end = superblock.block_size - 12
    # The kernel does not look at the names; but what is behind a `..` that ends sooner are names, not an index.
    if (dot_len, dot_size, dot[:1], dots_size, dots[:2]) != (12, 1, b".", 2, b"..") or dots_len != end:
        raise _unusable(inode, "its root does not look like one")
    if version >= VERSIONS:
        raise _unusable(inode, f"its hash version {version} is unknown")
    if flags & 1 or levels >= max_levels(superblock):
        raise _unusable(inode, f"{levels} levels, flags {flags:#x}")
    start = INFO_OFFSET + length
    limit = root_limit(superblock, start)
    return IndexBlock(number, block, start, limit, _used(inode, block, start, limit), version, levels)


def _node(superblock: Superblock, blocks: Blocks, inode: Inode, logical: int) -> IndexBlock:
    number, block = _block_of(superblock, blocks, inode, logical)
    (rec_len,) = _REC_LEN.unpack_from(block, 4)
    if rec_len != superblock.block_size and not (superblock.block_size == 65536 and rec_len in (0, 65535)):
        raise CorruptFilesystem(f"directory inode {inode.ino}: block {logical} is no index block")
    limit = node_limit(superblock)
    return IndexBlock(number, block, NODE_START, limit, _used(inode, block, NODE_START, limit))


def _used(inode: Inode, block: Block, start: int, expected: int) -> int:
    """How many entries an index block has."""
    limit, count = COUNTS.unpack_from(block, start)
    if limit != expected or not 0 < count <= limit:
        raise _unusable(inode, f"{count} entries of {limit}, where {expected} have room")
    return int(count)


def _search(node: IndexBlock, value: int) -> int:
    """The last entry whose hash is not above ``value``; the first one's counts as 0."""
    unpack, block, start = _HASH.unpack_from, node.block, node.start
    low, high = 1, node.used - 1
    while low <= high:
        middle = low + high >> 1
        if unpack(block, start + middle * ENTRY_SIZE)[0] > value:
            high = middle - 1
        else:
            low = middle + 1
    return low - 1


def _child(inode: Inode, node: IndexBlock, slot: int, above: list[int]) -> int:
    """The block that an entry leads to."""
    _, child = node.entry(slot)
    if child in above:
        raise _unusable(inode, f"block {child} is below itself")
    return child


def _block_of(superblock: Superblock, blocks: Blocks, inode: Inode, logical: int) -> tuple[int, Block]:
    if logical >= inode.size // superblock.block_size:
        raise CorruptFilesystem(f"directory inode {inode.ino}: its index leads to block {logical}, behind its end")
    number = map_block(superblock, blocks, inode, logical)
    return number, directory_block(superblock, inode, blocks, logical, number)


def _unusable(inode: Inode, what: str) -> UnusableIndex:
    return UnusableIndex(f"directory inode {inode.ino}: its index cannot be used: {what}")

"""What the group descriptors of a damaged file system say, from their copies where they are damaged themselves."""

from __future__ import annotations

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.block_groups import INODE_UNINIT, MAX_GROUPS_COUNTED, GroupDescriptor, GroupTable
from mystfuse.ext2.blocks import Blocks, BlocksMissing
from mystfuse.ext2.fixed_blocks import descriptor_copies
from mystfuse.ext2.superblock import Superblock
from mystfuse.image.verified_blocks import VerifiedBlocks
from mystfuse.system.number_set import runs_of_bits

_MOST_COPIES = 1000
"""Copies of a block of descriptors that are tried."""


class GroupPlaces:
    """Where the bitmaps and inode tables are, and how much of them counts. ``read`` comes first."""

    def __init__(self, superblock: Superblock, blocks: VerifiedBlocks) -> None:
        self.groups = GroupTable(superblock)
        self.numbers = range(min(superblock.groups_count, MAX_GROUPS_COUNTED))
        """Of the groups that are looked at."""
        self._superblock = superblock
        self._blocks = blocks
        self._descriptors: dict[int, bytes] = {}
        """By the number of the block that is the first to have them."""
        self._copied: set[int] = set()
        """Indices of the blocks of the table that come from copies: these have the right places, and old flags."""

    async def read(self) -> None:
        """Read the descriptors.

        Raises:
            StorageTimeout: storage does not answer.
        """
        superblock = self._superblock
        count = -(-len(self.numbers) // superblock.descriptors_per_block)
        for start in range(0, count, self._blocks.at_once):
            indices = range(start, min(start + self._blocks.at_once, count))
            self._descriptors |= await self._blocks.read([superblock.descriptor_block(index) for index in indices])
        missing = [index for index in range(count) if superblock.descriptor_block(index) not in self._descriptors]
        copies = {index: descriptor_copies(superblock, index) for index in missing}
        for _ in range(_MOST_COPIES):
            wanted = {index: number for index, left in copies.items() if (number := next(left, None)) is not None}
            if not wanted:
                return
            found = await self._blocks.read(wanted.values())
            for index, number in wanted.items():
                if number in found:
                    self._descriptors[superblock.descriptor_block(index)] = found[number]
                    self._copied.add(index)
                    del copies[index]

    def of(self, group: int) -> GroupDescriptor | None:
        """Where the bitmaps and the inode table of a group are; None if no copy of its descriptor is intact."""
        try:
            places = self.groups.places(Blocks(self._descriptors.get), group)
        except (BlocksMissing, CorruptFilesystem):
            return None
        if group // self._superblock.descriptors_per_block in self._copied:
            return places._replace(bg_flags=0, bg_itable_unused=0)
        return places

    def inodes_used(self, group: int, places: GroupDescriptor) -> int:
        """How many of a group's inodes may ever have been used: those behind them are nothing."""
        if places.bg_flags & INODE_UNINIT:
            return 0
        return max(self._superblock.s_inodes_per_group - places.bg_itable_unused, 0)

    async def count_in_use(self, group: int, inodes: range) -> int | None:
        """How many of some inodes of a group its inode bitmap has in use, if that is known."""
        places = self.of(group)
        if places is None:
            return None
        if places.bg_flags & INODE_UNINIT:
            return 0
        bitmap = await self._read_one(places.bg_inode_bitmap)
        if bitmap is None:
            return None
        _, low = self.groups.locate_inode(inodes.start)
        return (int.from_bytes(bitmap, "little") >> low & ((1 << len(inodes)) - 1)).bit_count()

    async def blocks_in_use(self, group: int) -> int | None:
        """A bit for each block of a group that its block bitmap has in use, if that is known; where it has never been
        written, only metadata is, which is left out."""
        places = self.of(group)
        if places is None:
            return None
        if not places.has_block_bitmap:
            return 0
        bitmap = await self._read_one(places.bg_block_bitmap)
        if bitmap is None:
            return None
        bits, per_cluster = int.from_bytes(bitmap, "little"), self._superblock.blocks_per_cluster
        if per_cluster == 1:
            return bits
        size = self.groups.size(group)
        bits &= (1 << -(-size // per_cluster)) - 1
        return sum(((1 << count * per_cluster) - 1) << first * per_cluster for first, count in runs_of_bits(bits, 0))

    async def _read_one(self, number: int) -> bytes | None:
        return (await self._blocks.read([number])).get(number)

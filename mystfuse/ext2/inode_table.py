"""The inode table: where an inode is, reading it, and writing it."""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.block_groups import GroupTable
from mystfuse.ext2.blocks import Block, Blocks, BlocksMissing, Transaction
from mystfuse.ext2.constants import EXT2_ROOT_INO, EXT4_EA_INODE_FL
from mystfuse.ext2.inode import ExtendedFormat, Inode, birth_time

READ_AHEAD = 32 * 1024
"""Bytes of inode table to fetch together: inodes made together are used together."""
_LINKS_COUNT_OFFSET = 26
_MAX_PARSED = 4096
_PARSED_BYTES = 2 << 20
"""Bounds on cached inodes, and on their bytes: one may have 32 KiB."""


class InodeTable:
    """The inodes of a file system.

    Args:
        orphans: inode numbers that are in use though no name is left.
    """

    def __init__(self, groups: GroupTable, orphans: Container[int]) -> None:
        self._groups = groups
        self._known_places = groups.known_places
        self._superblock = groups.superblock
        self._orphans = orphans
        self._inodes_count = groups.superblock.s_inodes_count
        self._per_group = groups.superblock.s_inodes_per_group
        self._block_size = groups.superblock.block_size
        self._inode_size = groups.superblock.s_inode_size
        self._parsed: dict[int, tuple[Block, Inode]] = {}
        """Inodes as they were in the inode table, and parsed."""
        superblock = groups.superblock
        self._checksums = superblock.checksums
        self._extended = (
            ExtendedFormat.of(superblock.features, superblock.block_size) if superblock.is_extended else None
        )
        self._most_parsed = min(_MAX_PARSED, _PARSED_BYTES // groups.superblock.s_inode_size)

    def forget_all(self) -> None:
        """Parse every inode again. Takes no memory."""
        self._parsed.clear()

    def locate(self, blocks: Blocks, ino: int) -> tuple[int, int]:
        """Where inode ``ino`` is: (block number, byte offset in the block).

        Raises:
            BlocksMissing: its group's descriptor is not in memory.
            CorruptFilesystem: no such inode number.
        """
        if not 0 < ino <= self._inodes_count:
            raise CorruptFilesystem(f"inode number {ino} is not between 1 and {self._inodes_count}")
        group, index = divmod(ino - 1, self._per_group)
        position, offset = divmod(index * self._inode_size, self._block_size)
        places = self._known_places.get(group) or self._groups.places(blocks, group)
        return places.bg_inode_table + position, offset

    def read(self, blocks: Blocks, ino: int) -> Inode:
        """An inode that an entry refers to.

        Raises:
            BlocksMissing: naming its block, and its neighbours in the inode table.
            CorruptFilesystem: no such inode number, one that no entry may have, a free one, or a broken one.
            UnsupportedFeature: see ``Inode.parse``.
        """
        number, offset = self.locate(blocks, ino)
        block = blocks.find(number)
        if block is None:
            return self._parse(blocks, ino, number, offset)
        content = block[offset : offset + self._inode_size]
        known = self._parsed.get(ino)
        if known is not None and known[0] == content and (known[1].i_links_count or ino in self._orphans):
            return known[1]
        inode = self._parse(blocks, ino, number, offset)
        self._remember(content, inode)
        return inode

    def _remember(self, content: Block, inode: Inode) -> None:
        """Keep an inode that has been parsed from ``content``, or would be."""
        if len(self._parsed) >= self._most_parsed:
            self._parsed.clear()
        self._parsed[inode.ino] = content, inode

    def read_all(self, blocks: Blocks, numbers: list[int]) -> list[Inode | None]:
        """The inodes of a directory's entries; None for a damaged or broken inode, or the root. A listing needs the
        names alone, so damage is reported to a lookup."""
        with blocks.speculating():
            possible = [ino for ino in numbers if 0 < ino <= self._superblock.s_inodes_count and ino != EXT2_ROOT_INO]
            # Name all descriptors, then all blocks of the inodes, rather than miss them one by one.
            self._groups.want_places(blocks, {self._groups.locate_inode(ino)[0] for ino in possible})
            located: dict[int, tuple[int, int]] = {}
            for ino in possible:
                with suppress(MystfuseError):
                    located[ino] = self.locate(blocks, ino)
            blocks.want({number for number, _ in located.values()})
            found: dict[int, Inode] = {}
            for ino, place in located.items():
                with suppress(MystfuseError):
                    found[ino] = self._parse(blocks, ino, *place)
            return [found.get(ino) for ino in numbers]

    def birth_time(self, blocks: Blocks, ino: int) -> int | None:
        """i_crtime of an inode, in nanoseconds since the epoch; None if it is too small.

        Raises:
            BlocksMissing, MystfuseError: as ``read``.
        """
        self.read(blocks, ino)
        number, offset = self.locate(blocks, ino)
        return birth_time(blocks.block(number), offset, self._inode_size)

    def is_in_use(self, blocks: Blocks, ino: int) -> bool:
        """Whether the inode table has links for an inode, whatever the bitmap says.

        Raises:
            BlocksMissing, MystfuseError: the inode's block is not in memory, or damaged.
        """
        number, offset = self.locate(blocks, ino)
        block = blocks.find(number) or self._block(blocks, ino, number)
        return block[offset + _LINKS_COUNT_OFFSET : offset + _LINKS_COUNT_OFFSET + 2] != b"\0\0"

    def _parse(self, blocks: Blocks, ino: int, number: int, offset: int) -> Inode:
        """The inode that is at byte ``offset`` of block ``number``; raises as ``read``."""
        if ino != EXT2_ROOT_INO and ino < self._superblock.s_first_ino:
            raise CorruptFilesystem(f"inode {ino} is reserved, no entry may refer to it")
        block = blocks.find(number) or self._block(blocks, ino, number)
        if self._extended is None:
            inode = Inode.parse(block, ino, offset, self._inode_size)
        else:
            inode = self._parse_extended(block, ino, offset, self._extended)
            if inode.i_flags & EXT4_EA_INODE_FL:
                raise CorruptFilesystem(f"inode {ino} holds an extended attribute, no entry may refer to it")
        if not inode.i_links_count and ino not in self._orphans:
            raise CorruptFilesystem(f"inode {ino} is not in use, but something refers to it")
        return inode

    def parse_reserved(self, blocks: Blocks, ino: int) -> Inode:
        """An inode that no name may refer to: the journal's, or one that holds the value of an attribute.

        Raises:
            BlocksMissing, MystfuseError: as ``read``.
        """
        number, offset = self.locate(blocks, ino)
        block = blocks.find(number) or self._block(blocks, ino, number)
        if self._extended is None:
            return Inode.parse(block, ino, offset, self._inode_size)
        return self._parse_extended(block, ino, offset, self._extended)

    def parse(self, data: bytes, ino: int) -> Inode:
        """The inode in these s_inode_size bytes, whether or not it is in use.

        Raises:
            FormatError: it is broken.
        """
        if self._extended is not None:
            return self._parse_extended(data, ino, 0, self._extended)
        return Inode.parse(data, ino)

    def _parse_extended(self, block: Block, ino: int, offset: int, extended: ExtendedFormat) -> Inode:
        """An inode of ext4."""
        content = bytes(block[offset : offset + self._inode_size])
        if self._checksums is not None:
            self._checksums.check_inode(ino, content)
        return Inode.parse(content, ino, flags=extended.flags).with_high_parts(content, 0, extended)

    def _block(self, blocks: Blocks, ino: int, number: int) -> Block:
        """The block that inode ``ino`` is in."""
        try:
            return blocks.block(number, self._ahead(number))
        except BlocksMissing as missing:
            raise missing.of("inode", ino)  # noqa: B904  # it is the same exception

    def _ahead(self, number: int) -> range:
        """The aligned run of blocks around an inode-table block that is worth fetching with it."""
        count = max(READ_AHEAD // self._superblock.block_size, 1)
        first = number // count * count
        end = min(first + count, self._superblock.s_blocks_count)
        return range(max(first, self._superblock.s_first_data_block + 1), end)

    def write(self, transaction: Transaction, inode: Inode) -> None:
        """Write an inode that was read before.

        Raises:
            BlocksMissing, CorruptFilesystem: as ``locate``.
        """
        number, offset = self.locate(transaction, inode.ino)
        block = transaction.change(number)
        inode.pack_into(block, offset)
        if self._extended is not None:
            self._finish_extended(inode, block, offset, self._extended)
        if inode.is_exact:
            self._remember(block[offset : offset + self._inode_size], inode)

    def _finish_extended(self, inode: Inode, block: bytearray, offset: int, extended: ExtendedFormat) -> None:
        """What of an inode only ext4 has, after the rest has been written."""
        inode.pack_high_parts_into(block, offset, extended)
        if self._checksums is not None:
            self._checksums.set_inode(inode.ino, block, offset, self._inode_size)

    def write_new(self, transaction: Transaction, inode: Inode) -> None:
        """Write an inode whose number was free so far; nothing of its predecessor is left.

        Raises:
            BlocksMissing: the inode's block is not in memory.
            CorruptFilesystem: as ``locate``.
        """
        number, offset = self.locate(transaction, inode.ino)
        block = transaction.change(number)
        inode.pack_new_into(block, offset, self._inode_size)
        if self._extended is not None:
            self._finish_extended(inode, block, offset, self._extended)
        if inode.is_exact:
            self._remember(block[offset : offset + self._inode_size], inode)

    def field(self, blocks: Blocks, ino: int, position: int) -> int:
        """A field of 32 bits that ``Inode`` does not have, at byte ``position`` of an inode that was read before.

        Raises:
            BlocksMissing, CorruptFilesystem: as ``locate``.
        """
        number, offset = self.locate(blocks, ino)
        return int.from_bytes(blocks.block(number)[offset + position : offset + position + 4], "little")

    def set_field(self, transaction: Transaction, ino: int, position: int, value: int) -> None:
        """Change such a field."""
        number, offset = self.locate(transaction, ino)
        block = transaction.change(number)
        block[offset + position : offset + position + 4] = value.to_bytes(4, "little")
        if self._checksums is not None:
            self._checksums.set_inode(ino, block, offset, self._inode_size)

    def read_back(self, transaction: Transaction, ino: int) -> Inode:
        """An inode that the transaction has written, as later operations read it: with its times cut to what it can
        hold. What an operation returns comes from here, since the kernel keeps it for a day.

        Raises:
            BlocksMissing, CorruptFilesystem: as ``locate``.
        """
        number, offset = self.locate(transaction, ino)
        block = transaction.block(number)
        known = self._parsed.get(ino)
        if known is not None and known[0] == block[offset : offset + self._inode_size]:
            return known[1]
        if self._extended is not None:
            return self._parse_extended(block, ino, offset, self._extended)
        return Inode.parse(block, ino, offset, self._inode_size)

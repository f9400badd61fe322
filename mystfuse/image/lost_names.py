"""The names of the inodes that damage affects, and the inodes whose names it has taken away.

One pass over the intact blocks of all directories, which ``block_owners`` has found. Paths are put together from the
names of directories, and where a directory's own name is lost, from its ``..``.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_ROOT_INO, PATH_MAX
from mystfuse.ext2.directory import names_in
from mystfuse.ext2.inline_data import inline_directory
from mystfuse.ext2.inode import ExtendedFormat, Inode
from mystfuse.ext2.inode_blocks import DIRECTORY, KINDS_OF_ENTRIES, UNKNOWN_KIND, inodes_in_use
from mystfuse.image.affected import INODE, MAX_INODES, NAME, AffectedInode, Part
from mystfuse.image.block_owners import INLINE, BlockOwners
from mystfuse.image.verified_blocks import VerifiedBlocks
from mystfuse.system.number_set import NumberSet

MAX_PATHS_BYTES = 64 << 20
"""Of the directories' paths that are kept."""
MAX_STEPS = 10_000_000
"""From a directory to the one above, for all paths together: half a minute. Then paths begin with ``<inode N>``."""
_IS_DIRECTORY = next(number for number, kind in KINDS_OF_ENTRIES.items() if kind == DIRECTORY)


class LostNames:
    """The names of affected inodes. ``find`` enters them in ``owners.affected``, and adds inodes that have none."""

    def __init__(self, owners: BlockOwners, blocks: VerifiedBlocks) -> None:
        count = len(owners.directory_inodes)
        self._owners = owners
        self._blocks = blocks
        self._parents = array("I", bytes(4 * count))
        """Of each directory, by its index: the directory that has its name, 0 if none is known to."""
        self._dotdots = array("I", bytes(4 * count))
        """What its ``..`` says; 0 if that is not known."""
        self._places = array("Q", bytes(8 * count))
        self._names = bytearray(1)
        """The directories' names, each behind a byte with its length."""
        self._paths: dict[int, bytes] = {EXT2_ROOT_INO: b""}
        self._paths_bytes = 0
        self._steps = 0

    @property
    def directory_bytes(self) -> int:
        """What ``find`` reads."""
        return len(self._owners.directory_blocks[0]) * self._blocks.block_size

    async def find(self, advance: Callable[[int], None]) -> None:
        """Read all directories.

        Args:
            advance: called with the number of bytes read since the last call.

        Raises:
            StorageTimeout: storage does not answer.
        """
        numbers, indices, places = self._owners.directory_blocks
        named = NumberSet()
        named.add(EXT2_ROOT_INO)
        for start in range(0, len(numbers), self._blocks.at_once):
            step = range(start, min(start + self._blocks.at_once, len(numbers)))
            found = await self._blocks.read([numbers[position] for position in step])
            for position in step:
                block = found.get(numbers[position])
                place = places[position]
                if block is not None and place == INLINE:
                    block = self._inline_names(indices[position], block)
                if block is not None:
                    self._read_names(indices[position], block, place in (0, INLINE), named)
            advance(len(step) * self._blocks.block_size)
        if self._owners.has_lost_names:
            await self._find_nameless(named)

    def _inline_names(self, index: int, table_block: bytes) -> bytes | None:
        """The names in the inode of a directory, as a block would have them; None if they are broken."""
        superblock = self._owners.superblock
        ino, size = self._owners.directory_inodes[index], superblock.s_inode_size
        offset = (ino - 1) % superblock.s_inodes_per_group * size % superblock.block_size
        extended = ExtendedFormat.of(superblock.features, superblock.block_size)
        content = table_block[offset : offset + size]
        try:
            inode = Inode.parse(content, ino, flags=extended.flags).with_high_parts(content, 0, extended)
            return inline_directory(superblock, inode)
        except MystfuseError:
            return None

    def _read_names(self, index: int, block: bytes, is_first: bool, named: NumberSet) -> None:
        owners = self._owners
        directory = owners.directory_inodes[index]
        recorded, lost = owners.affected.recorded, owners.lost_inodes
        has_filetype = owners.superblock.has_filetype
        for name, ino, file_type in names_in(owners.superblock, block):
            if name in (b".", b".."):
                if is_first and name == b"..":
                    self._dotdots[index] = ino
                continue
            if ino > owners.superblock.s_inodes_count:
                continue
            named.add(ino)
            if file_type == _IS_DIRECTORY or not has_filetype:
                self._name_directory(ino, directory, name)
            affected = recorded.get(ino)
            if affected is None and ino in lost:
                affected = owners.affected.record(ino, KINDS_OF_ENTRIES.get(file_type, UNKNOWN_KIND), None)
                if affected is not None:
                    affected.add_part(Part(INODE, 0, 0, False))
            if affected is not None:
                affected.add_name(directory, name)

    def _name_directory(self, ino: int, parent: int, name: bytes) -> None:
        index = self._owners.index_of(ino)
        if index >= 0 and not self._parents[index]:
            self._parents[index] = parent
            self._places[index] = len(self._names)
            self._names.append(len(name))
            self._names += name

    async def _find_nameless(self, named: NumberSet) -> None:
        """Record the inodes in use that no directory has a name for."""
        owners, superblock = self._owners, self._owners.superblock
        per_block = superblock.block_size // superblock.s_inode_size
        wanted: dict[int, list[int]] = {}
        count = 0
        for ino in owners.in_use.without(named):
            if ino < superblock.s_first_ino:
                continue
            count += 1
            if count > MAX_INODES:
                owners.affected.left_out += 1
                continue
            group, index = owners.groups.locate_inode(ino)
            places = owners.places.of(group)
            if places is not None:
                wanted.setdefault(places.bg_inode_table + index // per_block, []).append(ino)
        numbers = sorted(wanted)
        for start in range(0, len(numbers), self._blocks.at_once):
            found = await self._blocks.read(numbers[start : start + self._blocks.at_once])
            for number, block in found.items():
                inos = set(wanted[number])
                first = min(inos) - (min(inos) - 1) % superblock.s_inodes_per_group % per_block
                for inode in inodes_in_use(superblock, block, first):
                    if inode.ino in inos:
                        affected = owners.affected.record(inode.ino, inode.kind, inode.size)
                        if affected is not None:
                            affected.add_part(Part(NAME, 0, 0, False))

    def paths_of(self, affected: AffectedInode) -> list[bytes]:
        """The paths of an inode, sorted. A part of which the name is lost is ``<inode N>``, and so is the beginning of
        a path that does not lead up to the root, or is too long for a system call."""
        if affected.ino == EXT2_ROOT_INO:
            return [b"/"]
        if affected.names:
            return sorted({self._path(parent) + b"/" + name for parent, name in affected.names})
        index = self._owners.index_of(affected.ino)
        if index >= 0:
            return [self._path(affected.ino)]
        return []

    def _path(self, ino: int) -> bytes:
        """The path of a directory, without a slash at its end."""
        owners = self._owners
        names: list[tuple[int, bytes]] = []
        seen: set[int] = set()
        length = 0
        path: bytes | None = None
        while path is None:
            path = self._paths.get(ino)
            if path is not None:
                break
            self._steps += 1
            if ino in seen or length > PATH_MAX or self._steps > MAX_STEPS:
                path = _unnamed(ino)
                break
            seen.add(ino)
            index = owners.index_of(ino)
            affected = owners.affected.recorded.get(ino)
            if index >= 0 and self._parents[index]:
                start = self._places[index]
                names.append((ino, bytes(self._names[start + 1 : start + 1 + self._names[start]])))
                ino = self._parents[index]
            elif affected is not None and affected.names:
                parent, name = affected.names[0]
                names.append((ino, name))
                ino = parent
            elif index >= 0 and self._dotdots[index] and self._dotdots[index] != ino:
                names.append((ino, _unnamed(ino)))
                ino = self._dotdots[index]
            else:
                path = _unnamed(ino)
                break
            length += 1 + len(names[-1][1])
        for ino, name in reversed(names):
            path += b"/" + name
            if self._paths_bytes < MAX_PATHS_BYTES and length <= PATH_MAX:
                self._paths[ino] = path
                self._paths_bytes += len(path)
        return path


def _unnamed(ino: int) -> bytes:
    return b"<inode %d>" % ino

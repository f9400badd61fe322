"""What the damaged ranges of an image belong to: files, directories, the file system's own blocks, the hash tree, LUKS.

``verify.find_damage`` finds the ranges. Here only blocks that the hash tree verifies are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mystfuse.devices.device import Device, Extent, PendingRead
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, MystfuseError, StorageTimeout
from mystfuse.ext2.constants import EXT2_MAX_BLOCK_LOG_SIZE, EXT2_MIN_BLOCK_LOG_SIZE, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.image.block_owners import BlockOwners
from mystfuse.image.damaged_ranges import DamagedRanges
from mystfuse.image.first_bytes import FIRST_BYTES, is_luks
from mystfuse.image.keys import Keys
from mystfuse.image.lost_names import LostNames
from mystfuse.image.open import TrustedImage
from mystfuse.image.pipeline import run_verity
from mystfuse.image.progress import Progress
from mystfuse.image.verified_blocks import VerifiedBlocks
from mystfuse.image.verify import BadRange

if TYPE_CHECKING:
    from mystfuse.formats.luks import LuksHeader

MAX_AREAS = 1000
"""Damaged hash blocks that are recorded."""
_BACKUP_GROUPS = (1, 3, 5, 7, 9, 25, 27, 49)
"""Groups that hold a copy of the superblock, sparse_super or not: mke2fs names these for e2fsck -b."""
_BLOCK_GROUP_NR = slice(90, 92)
"""s_block_group_nr: the group that a superblock is in (fs/ext4/ext4.h)."""


class Area(NamedTuple):
    """Damage outside the file system."""

    what: str
    offset: int
    """Byte offset in the image file."""
    length: int
    loss: str
    """What is lost, in words."""


@dataclass(slots=True)
class Damage:
    """What is damaged. Feed it the bad ranges, in order, with ``add``; then ``find_owners`` fills in the rest."""

    data: DamagedRanges = field(default_factory=DamagedRanges)
    """Of the image's data."""
    areas: list[Area] = field(default_factory=list)
    areas_count: int = 0
    unnamed: str = ""
    """Why the files are not known by name; empty if they are."""
    payload_offset: int = 0
    """Where the file system begins in the image file: elsewhere than at 0 if it is encrypted."""
    owners: BlockOwners | None = None
    names: LostNames | None = None
    padding_bytes: int = 0
    """Damaged bytes of the data behind the file system."""

    def add(self, bad: BadRange) -> None:
        """Add a range that ``find_damage`` has found."""
        if bad.what.startswith("data"):
            self.data.add(bad.offset, bad.offset + bad.length, unverifiable=bad.what != "data")
        else:
            self._add_area(Area(bad.what, bad.offset, bad.length, "the data below it cannot be verified"))

    def _add_area(self, area: Area) -> None:
        self.areas_count += 1
        if len(self.areas) < MAX_AREAS:
            self.areas.append(area)

    async def find_owners(self, image: TrustedImage, keys: Keys, io_timeout: float, progress: Progress) -> None:
        """Find out what the ranges belong to, as far as that can be verified.

        Args:
            keys: for an encrypted image; wiped in every case.
            progress: shown while keys are derived, and while the file system is read.
        """
        async with run_verity(image, io_timeout) as (_, verity):
            assert verity is not None
            try:
                await self._find_in(_Quiet(verity), keys, progress)
            except MystfuseError as error:
                # What names would come from is damaged itself, or cannot be opened, or storage hangs.
                self.unnamed = str(error)
            finally:
                keys.wipe()
                await keys.end_deriver()

    async def _find_in(self, verified: Device, keys: Keys, progress: Progress) -> None:
        superblock = await find_superblock(verified)
        filesystem, unit = verified, 1
        if superblock is None:
            header = await self._read_luks(verified)
            self._sort_out_luks(header, verified.size)
            self.payload_offset, unit = header.payload_offset, header.sector_size
            if not keys:
                raise FormatError("the image is encrypted: with its key (--key-file, --passphrase-file) they are")
            # Only here: it takes 15 ms to import.
            from mystfuse.image.unlock import unlock

            filesystem = (await unlock(verified, header, keys, progress)).device
            superblock = await find_superblock(filesystem)
        if superblock is None:
            raise FormatError("the superblock and its copies are damaged, or it is no EXT2 file system")
        # One that is intact may claim any size.
        superblock.check_fits(filesystem.size)
        damaged = self.data.moved(self.payload_offset, filesystem.size, unit)
        self.padding_bytes = sum(
            part.end - part.start for part in damaged.within(superblock.size, max(filesystem.size, superblock.size))
        )
        blocks = VerifiedBlocks(filesystem, superblock.block_size, damaged)
        owners = BlockOwners(superblock, blocks, damaged)
        with progress("looking for owners", owners.table_bytes) as advance:
            await owners.find(advance)
        names = LostNames(owners, blocks)
        with progress("looking for names", names.directory_bytes) as advance:
            await names.find(advance)
        self.owners, self.names = owners, names

    async def _read_luks(self, verified: Device) -> LuksHeader:
        """The LUKS header; raises FormatError where there is none, or a damaged one."""
        from mystfuse.image.unlock import read_luks_header

        first = await _read(verified, 0, min(FIRST_BYTES, verified.size))
        if first is None:
            self._add_first("superblock or LUKS header")
            raise FormatError("the superblock and its copies are damaged, or the LUKS header is")
        if not is_luks(first):
            raise FormatError("the superblock and its copies are damaged, or it is no EXT2 file system")
        try:
            header = await read_luks_header(verified)
        except IntegrityError:
            header = None
        if header is None:
            self._add_first("LUKS header")
            raise FormatError("the LUKS header is damaged")
        return header

    def _add_first(self, what: str) -> None:
        """Record the first damaged range as that of what an image is opened by."""
        for part in self.data:
            self._add_area(Area(what, part.start, part.end - part.start, "the image cannot be opened"))
            break

    def _sort_out_luks(self, header: LuksHeader, size: int) -> None:
        """Record what is damaged in front of the payload, and behind it. The header itself has been read."""
        position = 0
        for slot in sorted(header.keyslots, key=lambda slot: slot.offset):
            if slot.offset < position:
                # Key slots that share their place: all but one are useless.
                continue
            self._add_luks_areas(position, slot.offset, "unused LUKS area", "nothing is lost")
            position = slot.offset + slot.material_size
            loss = "its passphrase does not open the image any more"
            self._add_luks_areas(slot.offset, position, f"key material of LUKS key slot {slot.number}", loss)
        self._add_luks_areas(position, header.payload_offset, "unused LUKS area", "nothing is lost")
        if header.payload_size is not None:
            end = header.payload_offset + header.payload_size
            self._add_luks_areas(end, size, "unused LUKS area", "nothing is lost")

    def _add_luks_areas(self, start: int, end: int, what: str, loss: str) -> None:
        if start < end:
            for part in self.data.within(start, end):
                self._add_area(Area(what, part.start, part.end - part.start, loss))


class _Quiet:
    """A device whose damage has been reported already."""

    def __init__(self, device: Device) -> None:
        self.size = device.size
        self._device = device

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        return await self._device.read(extents, quietly=True)

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        return self._device.begin(extents)


async def _read(device: Device, offset: int, length: int) -> bytes | None:
    """Bytes of a device; None if they are damaged, unreadable or outside it."""
    if offset + length > device.size:
        return None
    try:
        (data,) = await device.read([Extent(offset, length)])
    except StorageTimeout:
        raise
    except (IntegrityError, ImageReadError):
        return None
    return bytes(data)


async def find_superblock(device: Device) -> Superblock | None:
    """The superblock of an EXT2 file system or, if it is damaged, an intact copy; None if there is none.

    Copies are looked for where mke2fs puts them unless -g says otherwise.

    Raises:
        FormatError: the superblock is intact, and has features or values that mystfuse refuses.
        StorageTimeout: storage does not answer.
    """
    first = await _read(device, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)
    if first is not None:
        return Superblock.parse(first) if first[56:58] == b"\x53\xef" else None
    for log in range(EXT2_MIN_BLOCK_LOG_SIZE, EXT2_MAX_BLOCK_LOG_SIZE + 1):
        size = 1 << log
        for group in _BACKUP_GROUPS:
            copy = await _read(device, (group * 8 * size + (log == EXT2_MIN_BLOCK_LOG_SIZE)) * size, SUPERBLOCK_SIZE)
            if copy is None or int.from_bytes(copy[_BLOCK_GROUP_NR], "little") != group:
                continue
            try:
                found = Superblock.parse(copy)
                found.check_fits(device.size)
            except FormatError:
                continue
            if found.block_size == size and found.s_blocks_per_group == 8 * size:
                return found
    return None

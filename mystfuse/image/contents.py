"""The form that verified bytes must have: an EXT2 file system, or a LUKS header, of the data's size.

The root hash says which bytes are right, but not how to read them: the verity superblock does, which it does not cover.
A carrier could let the data begin a level higher, so that hash blocks stood in for data, or end before their end.
Neither are the data that were hashed. Everything that opens an image, ``verify`` included, calls this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse.devices.device import Device, Extent
from mystfuse.errors import FormatError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.formats.verity import MAX_BLOCK_SIZE
from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks

if TYPE_CHECKING:
    from mystfuse.formats.luks import LuksHeader


async def read_contents(device: Device, is_whole: bool) -> LuksHeader | None:
    """Find out what a device contains: the LUKS header, or None for an EXT2 file system.

    Args:
        is_whole: whether the device has a hash tree, so that its size is that of its contents.

    Raises:
        FormatError: neither, an impossible one, or one of another size than the device's.
        IntegrityError, ImageReadError: as the device does.
    """
    (first,) = await device.read([Extent(0, min(FIRST_BYTES, device.size))])
    if is_luks(first) or not is_ext2(first):
        # Only here: importing the LUKS parsers takes 15 ms.
        try:
            from mystfuse.image.unlock import read_luks_header
        except ImportError as error:
            # This daemon was confined before the image became an encrypted one.
            raise FormatError("it has become another image while it was being opened") from error

        header = await read_luks_header(device)
        if header is not None:
            size = header.check_fits(device.size)
            # LUKS1 has no field for its size, nor LUKS2 if it is "dynamic": then verify looks at the end of the tree,
            # and a mount at the file system inside.
            if is_whole and header.payload_size is not None:
                left = device.size - header.payload_offset - size
                if left >= MAX_BLOCK_SIZE:
                    raise FormatError(f"the LUKS payload has {size} bytes, but {left} more are covered by the tree")
            return header
    await _refuse_other_kinds(device, first)
    check_filesystem(bytes(first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE]), device.size, is_whole)
    return None


async def _refuse_other_kinds(device: Device, first: memoryview) -> None:
    """Raise FormatError, which says what it is, if a device that begins with ``first`` holds anything but a file system
    of the ext family."""
    if is_ext2(first):
        return
    try:
        # Only here: images hold what they should, but for few.
        from mystfuse.formats.others.kind import END_SIZE, START_SIZE, Sample
        from mystfuse.image.identify import identify_sample
    except ImportError:
        # This daemon was confined before the image became another one.
        raise FormatError("not an EXT2 file system") from None
    start, end = Extent(0, min(START_SIZE, device.size)), max(0, device.size - END_SIZE)
    parts = await device.read([start, Extent(end, device.size - end)])
    kind = identify_sample(Sample.of(bytes(parts[0]), bytes(parts[1]), device.size))
    raise FormatError(f"not an EXT2 file system but {kind.title}")


async def check_decrypted(device: Device, is_whole: bool) -> None:
    """Raise FormatError unless a device holds an EXT2 file system of its size; arguments as for ``read_contents``."""
    (first,) = await device.read([Extent(0, min(FIRST_BYTES, device.size))])
    await _refuse_other_kinds(device, first)
    check_filesystem(bytes(first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE]), device.size, is_whole)


def check_filesystem(superblock: bytes, size: int, is_whole: bool) -> None:
    """Raise FormatError unless an EXT2 superblock is that of a file system in ``size`` bytes.

    mke2fs leaves out a last block group that would have no room for its own metadata (lib/ext2fs/initialize.c), and the
    tree covers whole blocks: up to a group may be left over, and no more.
    """
    if size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        raise FormatError(f"{size} bytes are too few for an EXT2 file system")
    parsed = Superblock.parse(superblock)
    parsed.check_fits(size)
    if is_whole and size - parsed.size >= parsed.s_blocks_per_group * parsed.block_size:
        raise FormatError(
            f"the EXT2 file system has {parsed.size} bytes, but the tree covers {size}: not what the tree was made for"
        )

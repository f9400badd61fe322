"""Which data blocks differ between two verified images: their hash trees are compared from the root hash down, and only
where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import trio

from mystfuse.devices.verity import VerityDevice

_AT_ONCE = 64
"""Hash blocks of each tree that are compared together."""


class _Pair(NamedTuple):
    """A block whose digests are not the same in both trees."""

    number: int
    """Within its level."""
    old: bytes
    new: bytes


async def differing_blocks(old: VerityDevice, new: VerityDevice, most: int) -> list[int] | None:
    """The numbers of the data blocks that have other digests, ascending.

    Returns:
        None if more than ``most`` blocks of a level have, or the trees cannot be compared: they have other salts,
        algorithms or sizes.

    Raises:
        DamagedBlocks: a hash block that is needed is corrupted.
        ImageReadError: reading one failed.
    """
    if _shape(old) != _shape(new):
        return None
    pairs = [_Pair(0, old.root_hash, new.root_hash)] if old.root_hash != new.root_hash else []
    for level in reversed(range(len(old.geometry.levels))):
        below: list[_Pair] = []
        for start in range(0, len(pairs), _AT_ONCE):
            await trio.lowlevel.checkpoint()
            some = pairs[start : start + _AT_ONCE]
            numbers = [pair.number for pair in some]
            old_blocks = await old.hash_blocks(level, numbers, [pair.old for pair in some])
            new_blocks = await new.hash_blocks(level, numbers, [pair.new for pair in some])
            below += _differing(old, numbers, old_blocks, new_blocks)
            if len(below) > most:
                return None
        pairs = below
    return [pair.number for pair in pairs if pair.number < old.superblock.data_blocks]


def _shape(device: VerityDevice) -> object:
    superblock = device.superblock
    return (
        superblock.algorithm,
        superblock.salt,
        superblock.hash_type,
        superblock.data_block_size,
        superblock.hash_block_size,
        superblock.data_blocks,
    )


def _differing(
    device: VerityDevice, numbers: Sequence[int], old: Sequence[bytes], new: Sequence[bytes]
) -> Iterator[_Pair]:
    """The digests in hash blocks that differ."""
    count, size = device.geometry.digests_per_block, device.superblock.digest_size
    for number, one, other in zip(numbers, old, new, strict=True):
        for slot in range(count):
            place = slice(slot * size, (slot + 1) * size)
            if one[place] != other[place]:
                yield _Pair(number * count + slot, one[place], other[place])

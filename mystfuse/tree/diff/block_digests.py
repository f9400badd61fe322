"""Comparing files of two images by the digests of their blocks, which both hash trees have."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import lru_cache

import trio

from mystfuse.crypto.hashing import BlockHasher
from mystfuse.devices.device import Extent, coalesce
from mystfuse.devices.verity import VerityDevice
from mystfuse.ext2.block_map import Run
from mystfuse.tree.diff.image_view import ImageView, ino_of
from mystfuse.tree.diff.view import Node

_BLOCKS_AT_ONCE = 1024


def have_comparable_digests(old: ImageView, new: ImageView) -> bool:
    """Whether blocks with the same bytes have the same digests in both images."""
    return (
        old.verity is not None
        and new.verity is not None
        and _rules_of(old.verity) == _rules_of(new.verity)
        and old.volume.superblock.block_size == new.volume.superblock.block_size
    )


def _rules_of(verity: VerityDevice) -> tuple[str, bytes, int, int]:
    superblock = verity.superblock
    return superblock.algorithm, superblock.salt, superblock.hash_type, superblock.data_block_size


async def differing_ranges(
    old_view: ImageView, old: Node, new_view: ImageView, new: Node
) -> AsyncGenerator[tuple[int, int], None]:
    """The ranges (offset, length) of blocks with other digests of two files in images that have comparable ones, up to
    the end of the shorter one. The bytes may be the same: the last block also has what is behind the end of the file,
    and of blocks that are smaller than those of the hash tree several share a digest.

    Raises:
        CorruptFilesystem, IntegrityError, ImageReadError
    """
    size = min(old.size, new.size)
    for view, node in ((old_view, old), (new_view, new)):
        if (await view.volume.inode(ino_of(node))).is_inline:
            # Its contents are in no block.
            yield 0, size
            return
    block_size = old_view.volume.superblock.block_size
    blocks = -(-size // block_size)
    for first in range(0, blocks, _BLOCKS_AT_ONCE):
        await trio.lowlevel.checkpoint()
        count = min(_BLOCKS_AT_ONCE, blocks - first)
        old_runs = await old_view.volume.file_runs(ino_of(old), first, count)
        new_runs = await new_view.volume.file_runs(ino_of(new), first, count)
        if old_runs == new_runs and await _are_same_blocks(old_view, new_view, old_runs):
            continue
        old_marks, new_marks = await _marks(old_view, old_runs), await _marks(new_view, new_runs)
        length = len(old_marks) // count
        begin: int | None = None
        for index in range(count + 1):
            place = slice(index * length, (index + 1) * length)
            if index < count and old_marks[place] != new_marks[place]:
                begin = index if begin is None else begin
            elif begin is not None:
                yield (first + begin) * block_size, (index - begin) * block_size
                begin = None


async def _are_same_blocks(old_view: ImageView, new_view: ImageView, runs: Sequence[Run]) -> bool:
    """Whether blocks that are in the same place in both images have the same digests."""
    assert old_view.verity is not None
    assert new_view.verity is not None
    extents = _whole_blocks(old_view, runs)
    return await old_view.verity.digests(extents) == await new_view.verity.digests(extents)


async def _marks(view: ImageView, runs: Sequence[Run]) -> bytes:
    """For each block as many bytes, joined, that are the same for the same contents: its digests; or that of the larger
    block that it is in, and its place there. For holes these are the digests of zeros if they have some."""
    verity = view.verity
    assert verity is not None
    block_size, unit = view.volume.superblock.block_size, verity.superblock.data_block_size
    extents = _whole_blocks(view, runs)
    found = dict(zip(extents, await verity.digests(extents), strict=True))
    size = verity.tree.digest_size
    by_block = {
        extent.offset // unit + index: digests[index * size : (index + 1) * size]
        for extent, digests in found.items()
        for index in range(extent.length // unit)
    }
    parts: list[bytes] = []
    for physical, length in runs:
        start = physical * block_size
        if unit <= block_size:
            end = start + length * block_size
            of_zeros = _digest_of_zeros(verity.superblock.algorithm, verity.superblock.salt,
                                        verity.superblock.hash_type, unit)  # fmt: skip
            parts += (
                map(by_block.__getitem__, range(start // unit, end // unit))
                if physical
                else [of_zeros] * (length * block_size // unit)
            )
        else:
            for offset in range(start, start + length * block_size, block_size):
                parts.append(by_block[offset // unit] if physical else bytes(size))
                parts.append((offset % unit if physical else unit).to_bytes(4, "little"))
    return b"".join(parts)


def _whole_blocks(view: ImageView, runs: Iterable[Run]) -> list[Extent]:
    """The blocks of the hash tree that blocks of the file system lie in."""
    assert view.verity is not None
    block_size, unit = view.volume.superblock.block_size, view.verity.superblock.data_block_size
    extents: list[Extent] = []
    for physical, length in runs:
        if physical:
            start = physical * block_size // unit * unit
            end = -(-(physical + length) * block_size // unit) * unit
            extents.append(Extent(start, end - start))
    return coalesce(extents, view.verity.size) if extents else []


@lru_cache(maxsize=4)
def _digest_of_zeros(algorithm: str, salt: bytes, hash_type: int, block_size: int) -> bytes:
    return BlockHasher(algorithm, salt, hash_type).digest(bytes(block_size))

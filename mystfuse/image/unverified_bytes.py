"""The bytes of an image elsewhere that no digest covers, fssig and verity superblock: are they right, and if not, what
does the place itself say?"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from mystfuse.crypto.hashing import BlockHasher
from mystfuse.devices.source import Remoteness, Source, read_again, remoteness
from mystfuse.errors import FormatError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, VOUCHER, TreeGeometry, VeritySuperblock


def is_borne_out(source: Source, superblock: VeritySuperblock, geometry: TreeGeometry, root_hash: bytes | None) -> bool:
    """Whether the top hash block has the root hash, by this superblock; and whether its other fields are as certain as
    where the image comes from: its salt vouches for them, or no others write to the cache.

    Raises:
        ImageReadError: reading failed.
    """
    if remoteness(source) is Remoteness.SHARED_CACHE and not superblock.salt.startswith(VOUCHER):
        return False
    if root_hash is None or not geometry.levels:
        return True
    block = source.read(geometry.levels[-1].offset, superblock.hash_block_size)
    hasher = BlockHasher(superblock.algorithm, superblock.salt, superblock.hash_type)
    return hmac.compare_digest(hasher.digest(block), root_hash)


def reread(source: Source, hash_offset: int | None) -> Source | None:
    """The source with fssig and verity superblock from the place itself, past every cache; None if there is no other
    place. What the cache has by now is not compared: it may be another than was read before.

    Args:
        hash_offset: where the superblock is, if there is no fssig.

    Raises:
        ImageReadError: reading failed.
    """
    pieces: list[tuple[int, bytes]] = []
    if hash_offset is None and source.size >= FSSIG_SIZE:
        _read_again(source, source.size - FSSIG_SIZE, FSSIG_SIZE, pieces)
        try:
            hash_offset = Fssig.parse(pieces[0][1]).hash_offset if pieces else None
        except FormatError:
            hash_offset = None
    if hash_offset is not None and 0 < hash_offset <= source.size - VERITY_SUPERBLOCK_SIZE:
        _read_again(source, hash_offset, VERITY_SUPERBLOCK_SIZE, pieces)
    return _Corrected(source, pieces) if pieces else None


def _read_again(source: Source, offset: int, length: int, pieces: list[tuple[int, bytes]]) -> None:
    """Read a range again, and add what comes to the pieces."""
    again = read_again(source, offset, length)
    if again is not None:
        pieces.append((offset, again))


class _Corrected:
    """A source with some ranges by other bytes."""

    def __init__(self, source: Source, pieces: Sequence[tuple[int, bytes]]) -> None:
        self.name = source.name
        self.size = source.size
        self.close = source.close
        self._source = source
        self._pieces = pieces

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._source.read_into(offset, buffer)
        end = offset + len(buffer)
        for start, piece in self._pieces:
            low, high = max(start, offset), min(start + len(piece), end)
            if low < high:
                buffer[low - offset : high - offset] = piece[low - start : high - start]

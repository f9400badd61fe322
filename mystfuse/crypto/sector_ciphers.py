"""AES over many sectors in one call, as dm-crypt does it, by the kernels that were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels
from mystfuse.kernels.interface import SECTOR_SIZE, Bytes, SectorCipher

# To the type checker both implementations are one; a test compares their interfaces.
if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.sectors import CbcCipher, EcbCipher, XtsCipher
else:
    from mystfuse.kernels.native.sectors import CbcCipher, EcbCipher, XtsCipher

__all__ = [
    "SECTOR_SIZE",
    "Bytes",
    "CbcCipher",
    "EcbCipher",
    "SectorCipher",
    "XtsCipher",
    "find_zero_sectors",
    "make_sector_cipher",
]

_ZEROS = bytes(SECTOR_SIZE)


def make_sector_cipher(
    chain_mode: str, iv_mode: str, key: memoryview, sector_size: int = SECTOR_SIZE, iv_tweak: int = 0
) -> SectorCipher:
    """The cipher ``aes-{chain_mode}-{iv_mode}`` of dm-crypt with a key of a valid size.

    Args:
        sector_size: bytes that are one unit of XTS or CBC: 512 to 4096.
        iv_tweak: added to the number of a sector, always counted in 512-byte units.
    """
    if chain_mode == "xts":
        return XtsCipher(key, sector_size, iv_tweak, iv_mode)
    if chain_mode == "cbc":
        return CbcCipher(key, sector_size, iv_tweak, iv_mode)
    return EcbCipher(key)


def find_zero_sectors(data: bytes) -> list[tuple[int, int]]:
    """The ranges of whole sectors, from and to, that are all zeros, of data that begins with a sector."""
    ranges: list[tuple[int, int]] = []
    start = data.find(_ZEROS)
    while start >= 0:
        start = -(-start // SECTOR_SIZE) * SECTOR_SIZE
        end = start
        while data[end : end + SECTOR_SIZE] == _ZEROS:
            end += SECTOR_SIZE
        if end > start:
            ranges.append((start, end))
        start = data.find(_ZEROS, max(end, start + 1))
    return ranges

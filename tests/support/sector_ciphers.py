"""Sector ciphers to test, and their keys and sectors."""

from __future__ import annotations

import pytest

from mystfuse.crypto.sector_ciphers import SectorCipher, make_sector_cipher

SECTOR_SIZES = (512, 1024, 2048, 4096)
FIRST_SECTORS = (0, 8, 0xFFFFFFF8, 0xFFFFFFFF, 0x100000000, 1 << 40)
"""The first of consecutive sectors, some of them across the end of 32 bits."""


def cipher_of(chain_mode: str, iv_mode: str, key: bytes, sector_size: int = 512, iv_tweak: int = 0) -> SectorCipher:
    return make_sector_cipher(chain_mode, iv_mode, memoryview(key), sector_size, iv_tweak)


on_both_kernels = pytest.mark.usefixtures("kernel")

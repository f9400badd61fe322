"""Checksums of ext4: known values, and C, by the instruction and by tables, gives those of the loop in Python."""

from __future__ import annotations

import random

import pytest

from mystfuse.kernels.pure import checksums as pure
from tests.support.kernels import needs_native


def test_known_values() -> None:
    # RFC 3720, appendix B.4, and the check value of CRC-32C; both with inversions.
    assert pure.crc32c(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283
    assert pure.crc32c(bytes(32), 0xFFFFFFFF) ^ 0xFFFFFFFF == 0x8A9136AA
    assert pure.crc32c(b"\xff" * 32, 0xFFFFFFFF) ^ 0xFFFFFFFF == 0x62A8AB43
    # CRC-16/ARC.
    assert pure.crc16(b"123456789", 0) == 0xBB3D


def test_pieces_give_the_same_as_the_whole() -> None:
    data = bytes(range(256)) * 5
    for checksum in (pure.crc32c, pure.crc16):
        assert checksum(data[77:], checksum(data[:77], 0x1234)) == checksum(data, 0x1234)


@needs_native
@pytest.mark.parametrize("seed", range(20))
def test_c_gives_the_same(seed: int) -> None:
    from mystfuse.kernels.native import checksums as native
    from mystfuse.kernels.native import lib

    source = random.Random(seed)
    for size in (0, 1, 7, 8, 9, 63, 64, 1020, 4096, source.randrange(10_000)):
        data, crc = source.randbytes(size), source.getrandbits(32)
        shift = source.randrange(8)
        for given in (data, bytearray(data), memoryview(bytes(shift) + data)[shift:]):
            assert native.crc32c(given, crc) == pure.crc32c(data, crc)
            assert native.crc16(given, crc & 0xFFFF) == pure.crc16(data, crc & 0xFFFF)
        assert lib.crc32c_update_by_tables(crc, data, size) == pure.crc32c(data, crc)

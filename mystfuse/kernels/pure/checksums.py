"""Checksums of ext4, without C: CRC-32C (RFC 3720, Castagnoli) and CRC-16 (ANSI), each a table of 256 steps."""

from __future__ import annotations

from mystfuse.kernels.interface import Bytes


def _table(polynomial: int) -> list[int]:
    table: list[int] = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        table.append(crc)
    return table


_CRC32C = _table(0x82F63B78)
_CRC16 = _table(0xA001)


def crc32c(data: Bytes, crc: int) -> int:
    """The CRC-32C of bytes that follow others with the CRC ``crc``, as the kernel's crc32c(): nothing is inverted."""
    table = _CRC32C
    for byte in memoryview(data).cast("B"):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def crc16(data: Bytes, crc: int) -> int:
    """The CRC-16 of bytes that follow others with the CRC ``crc``, as the kernel's crc16()."""
    table = _CRC16
    for byte in memoryview(data).cast("B"):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc

"""Checksums by one call of C."""

from __future__ import annotations

from mystfuse.kernels.interface import Bytes
from mystfuse.kernels.native._kernel import ffi, lib


def crc32c(data: Bytes, crc: int) -> int:
    """See ``pure.checksums.crc32c``."""
    if not isinstance(data, bytes):
        data = ffi.from_buffer("uint8_t[]", data)
    return int(lib.crc32c_update(crc, data, len(data)))


def crc16(data: Bytes, crc: int) -> int:
    """See ``pure.checksums.crc16``."""
    if not isinstance(data, bytes):
        data = ffi.from_buffer("uint8_t[]", data)
    return int(lib.crc16_update(crc, data, len(data)))

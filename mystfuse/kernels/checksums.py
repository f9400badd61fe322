"""Checksums of ext4's metadata, by the kernels that were chosen: ``crc32c``, ``crc16``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels

if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.checksums import crc16, crc32c
else:
    from mystfuse.kernels.native.checksums import crc16, crc32c

__all__ = ["crc16", "crc32c"]

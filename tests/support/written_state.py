"""The state of a mount, put together from ``.mystfuse/base`` and ``.mystfuse/written`` by a reader of its own."""

from __future__ import annotations

import os
import struct
from pathlib import Path


def read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while part := os.pread(descriptor, 1 << 20, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)


def parse_written(data: bytes) -> dict[int, bytes]:
    """The blocks of a file ``written``, by number: as docs/formats.md has it."""
    magic, version, block_size, count, data_offset = struct.unpack_from("<8sIIQQ", data)
    assert (magic, version) == (b"mystwrit", 1)
    assert data_offset % 4096 == data_offset % block_size == 0
    numbers = struct.unpack_from(f"<{count}I", data, 32)
    assert len(set(numbers)) == count
    assert len(data) == data_offset + count * block_size and not any(data[32 + 4 * count : data_offset])
    starts = range(data_offset, len(data), block_size)
    return {number: data[start : start + block_size] for number, start in zip(numbers, starts, strict=True)}


def apply(base: bytes, written: dict[int, bytes]) -> bytes:
    """The image with the written blocks over it."""
    merged = bytearray(base)
    for number, block in written.items():
        merged[number * len(block) : (number + 1) * len(block)] = block
    return bytes(merged)


def written_of(mountpoint: Path) -> dict[int, bytes]:
    return parse_written((mountpoint / ".mystfuse/written").read_bytes())


def state_of(mountpoint: Path) -> bytes:
    """The present state of a mount."""
    return apply((mountpoint / ".mystfuse/base").read_bytes(), written_of(mountpoint))

"""Building a hash tree in one pass over the data, in memory that does not grow with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from mystfuse.crypto.hashing import BlockHasher
from mystfuse.errors import MystfuseError
from mystfuse.formats.verity import TreeGeometry, TreeLevel, VeritySuperblock
from mystfuse.system.pool import ReadBuffer, run_in_order

CHUNK = 1 << 20
"""Bytes of data hashed at a time."""


class _LevelWriter:
    """Collects the digests of one level into hash blocks, writes each when it is full, and passes its digest up."""

    def __init__(self, fd: int, level: TreeLevel, block_size: int, hasher: BlockHasher, digests_per_block: int) -> None:
        self.parent: _LevelWriter | None = None
        self.root_hash = b""
        self._fd = fd
        self._position = level.offset
        self._block_size = block_size
        self._payload = digests_per_block * hasher.digest_size
        self._hasher = hasher
        self._digests = bytearray()

    def add(self, digests: bytes) -> None:
        self._digests += digests
        full = len(self._digests) // self._payload
        if full:
            self._write(full)

    def finish(self) -> None:
        if self._digests:
            self._write(1)

    def _write(self, count: int) -> None:
        payloads = (self._digests[index * self._payload : (index + 1) * self._payload] for index in range(count))
        blocks = b"".join(payload.ljust(self._block_size, b"\0") for payload in payloads)
        del self._digests[: count * self._payload]
        write_all(self._fd, blocks, self._position)
        self._position += len(blocks)
        digests = self._hasher.digests(blocks, self._block_size)
        if self.parent is None:
            self.root_hash = digests
        else:
            self.parent.add(digests)


def write_tree(
    fd: int, superblock: VeritySuperblock, hash_offset: int, advance: Callable[[int], None] | None = None
) -> bytes:
    """Hash the data before ``hash_offset`` of the file ``fd`` and write superblock and tree behind it.

    Args:
        advance: called with the number of data bytes that have been hashed since the last call.

    Returns:
        The root hash.

    Raises:
        MystfuseError: reading or writing failed, or the data ended early.
    """
    geometry = TreeGeometry.of(superblock, hash_offset)
    hasher = BlockHasher(superblock.algorithm, superblock.salt, superblock.hash_type)
    levels = [
        _LevelWriter(fd, level, superblock.hash_block_size, hasher, geometry.digests_per_block)
        for level in geometry.levels
    ]
    for level, parent in pairwise(levels):
        level.parent = parent
    write_all(fd, superblock.pack().ljust(superblock.hash_block_size, b"\0"), hash_offset)
    digests = b""
    for digests in run_in_order(_data_jobs(fd, superblock, hasher)):
        if levels:
            levels[0].add(digests)
        if advance is not None:
            advance(len(digests) // superblock.digest_size * superblock.data_block_size)
    for level in levels:
        level.finish()
    return levels[-1].root_hash if levels else digests


def _data_jobs(fd: int, superblock: VeritySuperblock, hasher: BlockHasher) -> Iterator[Callable[[], bytes]]:
    """Computes the digests of the data, one chunk for each job."""
    block_size = superblock.data_block_size
    zero_digest = hasher.digest(bytes(block_size))
    chunk = max(CHUNK, block_size)

    buffer = ReadBuffer()

    def read_and_hash(position: int, length: int) -> bytes:
        data = buffer.view(length)
        _read_all(fd, data, position)
        return hasher.digests(data, block_size)

    next_data = -1
    for position in range(0, superblock.data_size, chunk):
        length = min(chunk, superblock.data_size - position)
        if next_data < position:
            next_data = _next_data(fd, position)
        if next_data >= position + length:
            yield partial(bytes.__mul__, zero_digest, length // block_size)
        else:
            yield partial(read_and_hash, position, length)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until all is written; MystfuseError if that fails."""
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise MystfuseError(f"writing the image: {error.strerror}") from error


def _read_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.preadv(fd, [data], offset)
        if not count:
            raise MystfuseError(f"reading the image back: it ends at byte {offset}")
        data, offset = data[count:], offset + count


def _next_data(fd: int, position: int) -> int:
    """Where data that is not a hole begins, from ``position`` on; past everything if there is none."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError:
        # ENXIO: only holes are left. EINVAL would be a file system without SEEK_DATA, but Linux falls back by itself.
        return 1 << 63

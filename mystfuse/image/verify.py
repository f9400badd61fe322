"""Checking a whole image: every hash block and every data block, in one pass, in memory that does not grow with it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mystfuse.crypto.hashing import BlockHasher
from mystfuse.devices.source import Source
from mystfuse.errors import ImageReadError
from mystfuse.image.open import HashTree

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class BadRange:
    """Bytes of the image that are not vouched for."""

    what: str
    """``data``, ``hash tree level N``, or ``data under a bad hash block``."""
    offset: int
    """Byte offset in the image file."""
    length: int


def find_damage(
    source: Source, tree: HashTree, root_hash: bytes, advance: Callable[[int], None] | None = None
) -> Iterator[BadRange]:
    """Check every block of an image against ``root_hash`` and yield the ranges that fail, neighbours merged.

    A damaged hash block cannot vouch for anything, so everything below it is reported too.

    Args:
        advance: called with the number of data bytes dealt with since the last call.
    """
    pending: BadRange | None = None
    for bad in _Checker(source, tree, root_hash, advance or (lambda _: None)).run():
        if pending and pending.what == bad.what and pending.offset + pending.length == bad.offset:
            pending = BadRange(pending.what, pending.offset, pending.length + bad.length)
            continue
        if pending:
            yield pending
        pending = bad
    if pending:
        yield pending


class _Checker:
    def __init__(self, source: Source, tree: HashTree, root_hash: bytes, advance: Callable[[int], None]) -> None:
        superblock = tree.superblock
        self._source = source
        self._superblock = superblock
        self._geometry = tree.geometry
        self._root_hash = root_hash
        self._advance = advance
        self._hasher = BlockHasher(superblock.algorithm, superblock.salt, superblock.hash_type)

    def run(self) -> Iterator[BadRange]:
        levels = self._geometry.levels
        if not levels:
            yield from self._check_data(0, 1, self._root_hash)
        else:
            yield from self._check_hash_block(len(levels) - 1, 0, self._root_hash)

    def _check_hash_block(self, level: int, index: int, expected: bytes) -> Iterator[BadRange]:
        """Check one hash block, then everything below it. As deep as the tree has levels."""
        size, per_block = self._superblock.hash_block_size, self._geometry.digests_per_block
        offset = self._geometry.levels[level].offset + index * size
        try:
            unverified = self._source.read(offset, size)
        except ImageReadError:
            unverified = b""
        if not hmac.compare_digest(self._hasher.digest(unverified), expected):
            yield BadRange(f"hash tree level {level}", offset, size)
            yield from self._unreachable(level, index)
            return
        verified = unverified
        digest_size = self._geometry.digest_size
        first = index * per_block
        if level == 0:
            count = min(per_block, self._superblock.data_blocks - first)
            yield from self._check_data(first, count, verified[: count * digest_size])
            return
        count = min(per_block, self._geometry.levels[level - 1].blocks - first)
        for slot in range(count):
            digest = verified[slot * digest_size : (slot + 1) * digest_size]
            yield from self._check_hash_block(level - 1, first + slot, digest)

    def _check_data(self, first: int, count: int, expected: bytes) -> Iterator[BadRange]:
        size, digest_size = self._superblock.data_block_size, self._superblock.digest_size
        step = max(CHUNK // size, 1)
        for start in range(0, count, step):
            blocks = min(step, count - start)
            offset = (first + start) * size
            digests = expected[start * digest_size : (start + blocks) * digest_size]
            try:
                bad = self._hasher.mismatches(self._source.read(offset, blocks * size), size, digests)
            except ImageReadError:
                bad = self._unreadable(offset, blocks, digests)
            for index in bad:
                yield BadRange("data", offset + index * size, size)
            self._advance(blocks * size)

    def _unreadable(self, offset: int, blocks: int, digests: bytes) -> list[int]:
        """Which blocks of a range that could not be read in one go are bad, read one by one."""
        size, digest_size = self._superblock.data_block_size, self._superblock.digest_size
        bad: list[int] = []
        for index in range(blocks):
            try:
                block = self._source.read(offset + index * size, size)
            except ImageReadError:
                bad.append(index)
                continue
            if self._hasher.digest(block) != digests[index * digest_size : (index + 1) * digest_size]:
                bad.append(index)
        return bad

    def _unreachable(self, level: int, index: int) -> Iterator[BadRange]:
        """What a bad hash block leaves without anybody to vouch for it."""
        span = self._geometry.digests_per_block ** (level + 1)
        first = index * span
        count = min(span, self._superblock.data_blocks - first)
        size = self._superblock.data_block_size
        yield BadRange("data under a bad hash block", first * size, count * size)
        self._advance(count * size)

"""Checking a whole image: every hash block and every data block, in one pass, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mystfuse.crypto.hashing import BlockHasher
from mystfuse.devices.source import Source, attempts_of, read_again
from mystfuse.errors import ImageReadError, IntegrityError, StorageTimeout
from mystfuse.image.open import HashTree
from mystfuse.system.pool import ReadBuffer, run_in_order

CHUNK = 512 << 10
"""Bytes of data read and hashed at a time."""
JOB = 4 << 20
"""Bytes of data that one thread checks by itself, with the hash blocks above them."""
_DATA = -1
"""The level below the lowest one of hash blocks."""


@dataclass(frozen=True, slots=True)
class BadRange:
    """A range of the image that failed verification."""

    what: str
    """``data``, ``hash tree level N``, or ``data under a bad hash block``."""
    offset: int
    """Byte offset in the image file."""
    length: int


def find_damage(
    source: Source, tree: HashTree, root_hash: bytes, advance: Callable[[int], None] | None = None
) -> Iterator[BadRange]:
    """Check every block of an image against ``root_hash`` and yield the ranges that fail, neighbours merged.

    A damaged hash block verifies nothing, so everything below it is reported too.

    Args:
        advance: called with the number of data bytes checked since the last call.

    Raises:
        IntegrityError: the tree was made for more blocks than its superblock says.
        StorageTimeout: as the source does; other unreadable blocks count as bad.
    """
    pending: BadRange | None = None
    for checked in run_in_order(_Checker(source, tree, root_hash).jobs()):
        for bad in checked.bad:
            if pending and pending.what == bad.what and pending.offset + pending.length == bad.offset:
                pending = BadRange(pending.what, pending.offset, pending.length + bad.length)
                continue
            if pending:
                yield pending
            pending = bad
        if advance is not None:
            advance(checked.data_bytes)
    if pending:
        yield pending


@dataclass(frozen=True, slots=True)
class _Checked:
    """The result of a job."""

    bad: list[BadRange]
    data_bytes: int


class _Checker:
    """Checks runs: consecutive blocks of one level, or of data, and everything below them.

    A run is given by its level, its first block, how many blocks it has, and their digests, joined, from hash blocks
    that have been verified.
    """

    def __init__(self, source: Source, tree: HashTree, root_hash: bytes) -> None:
        superblock = tree.superblock
        self._source = source
        self._superblock = superblock
        self._geometry = tree.geometry
        self._root_hash = root_hash
        self._hasher = BlockHasher(superblock.algorithm, superblock.salt, superblock.hash_type)
        self._buffer = ReadBuffer()

    def jobs(self) -> Iterator[Callable[[], _Checked]]:
        """The whole tree, cut into jobs in the order of the data.

        Hash blocks with more below them than a job are checked in between, as the jobs are taken.
        """
        return self._jobs(len(self._geometry.levels) - 1, 0, 1, self._root_hash)

    def _jobs(self, level: int, first: int, count: int, expected: bytes) -> Iterator[Callable[[], _Checked]]:
        digest_size = self._superblock.digest_size
        span = self._span(level)
        cut_deeper = span > JOB and level > _DATA
        step = 1 if cut_deeper else max(JOB // span, 1)
        for start in range(0, count, step):
            size = min(step, count - start)
            digests = expected[start * digest_size : (start + size) * digest_size]
            if not cut_deeper:
                yield partial(self._check, level, first + start, size, digests)
                continue
            verified, bad = self._read_hash_blocks(level, first + start, 1, digests)
            if bad:
                found = self._unvouched(level, first + start)
                yield partial(_Checked, found, self._data_bytes(level, first + start, 1))
            else:
                yield from self._jobs(level - 1, *self._below(level, first + start, verified))

    def _check(self, level: int, first: int, count: int, expected: bytes) -> _Checked:
        return _Checked(self._find_bad(level, first, count, expected), self._data_bytes(level, first, count))

    def _find_bad(self, level: int, first: int, count: int, expected: bytes) -> list[BadRange]:
        """Check a run. As deep as the tree has levels."""
        if level == _DATA:
            return self._find_bad_data(first, count, expected)
        verified, bad = self._read_hash_blocks(level, first, count, expected)
        found: list[BadRange] = []
        size = self._superblock.hash_block_size
        start = 0
        # Blocks below good neighbours are one run too.
        for index in (*bad, count):
            if index > start:
                good = verified[start * size : index * size]
                found += self._find_bad(level - 1, *self._below(level, first + start, good))
            if index < count:
                found += self._unvouched(level, first + index)
            start = index + 1
        return found

    def _find_bad_data(self, first: int, count: int, expected: bytes) -> list[BadRange]:
        size, digest_size = self._superblock.data_block_size, self._superblock.digest_size
        step = max(CHUNK // size, 1)
        found: list[BadRange] = []
        for start in range(0, count, step):
            offset, blocks = (first + start) * size, min(step, count - start)
            digests = expected[start * digest_size : (start + blocks) * digest_size]
            _, bad = self._read(offset, size, blocks, digests)
            found += (BadRange("data", offset + index * size, size) for index in bad)
        return found

    def _read_hash_blocks(self, level: int, first: int, count: int, expected: bytes) -> tuple[bytes, list[int]]:
        size = self._superblock.hash_block_size
        blocks, bad = self._read(self._geometry.levels[level].offset + first * size, size, count, expected)
        return bytes(blocks), bad

    def _read(self, offset: int, size: int, count: int, expected: bytes) -> tuple[memoryview, list[int]]:
        """Blocks, until this thread reads again, and which of them are bad. Unreadable ones have any contents."""
        unverified = self._buffer.view(count * size)
        try:
            self._source.read_into(offset, unverified)
        except StorageTimeout:
            raise
        except ImageReadError:
            return unverified, [
                index
                for index in range(count)
                if not self._is_good(
                    offset + index * size, unverified[index * size : (index + 1) * size], expected, index
                )
            ]
        bad = self._hasher.mismatches(unverified, size, expected)
        return unverified, [
            index
            for index in bad
            if not self._is_mended(
                offset + index * size, unverified[index * size : (index + 1) * size], expected, index
            )
        ]

    def _is_mended(self, offset: int, unverified: memoryview, expected: bytes, index: int) -> bool:
        """Read a block again that is not the right one, from elsewhere if there is another place."""
        for _ in range(attempts_of(self._source)):
            again = read_again(self._source, offset, len(unverified))
            if again is None:
                return False
            unverified[:] = again
            if self._has_digest(unverified, expected, index):
                return True
        return False

    def _is_good(self, offset: int, unverified: memoryview, expected: bytes, index: int) -> bool:
        """Read a single block."""
        try:
            self._source.read_into(offset, unverified)
        except StorageTimeout:
            raise
        except ImageReadError:
            return False
        return self._has_digest(unverified, expected, index)

    def _has_digest(self, unverified: memoryview, expected: bytes, index: int) -> bool:
        digest_size = self._superblock.digest_size
        return self._hasher.digest(unverified) == expected[index * digest_size : (index + 1) * digest_size]

    def _below(self, level: int, first: int, verified: bytes) -> tuple[int, int, bytes]:
        """The run below the hash blocks ``verified``, which begin with the one numbered ``first``.

        Hash blocks are nothing but digests, since both have a power of two of bytes; behind the last digest are zeros.

        Raises:
            IntegrityError: there are more digests: the superblock hides hashed blocks.
        """
        digest_size = self._superblock.digest_size
        first *= self._geometry.digests_per_block
        total = self._geometry.levels[level - 1].blocks if level else self._superblock.data_blocks
        count = min(len(verified) // digest_size, total - first)
        if any(verified[count * digest_size :]):
            raise IntegrityError(
                f"{self._source.name}: the hash tree has digests of more than {self._superblock.data_blocks} blocks: "
                "the verity superblock is not the one that it was made with"
            )
        return first, count, verified[: count * digest_size]

    def _unvouched(self, level: int, index: int) -> list[BadRange]:
        """A bad hash block, and the range that it can no longer verify."""
        size = self._superblock.hash_block_size
        return [
            BadRange(f"hash tree level {level}", self._geometry.levels[level].offset + index * size, size),
            BadRange("data under a bad hash block", index * self._span(level), self._data_bytes(level, index, 1)),
        ]

    def _span(self, level: int) -> int:
        """Bytes of data below a block of a level, unless they end before."""
        blocks: int = self._geometry.digests_per_block ** (level + 1)
        return blocks * self._superblock.data_block_size

    def _data_bytes(self, level: int, first: int, count: int) -> int:
        """Bytes of data below a run."""
        span = self._span(level)
        return min(count * span, self._superblock.data_size - first * span)

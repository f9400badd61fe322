"""The hash tree in Python: the reference for the one in C."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from mystfuse.kernels.interface import (
    MAX_TOUCHED,
    MAX_UNITS,
    TOUCHED_UNIT,
    Bytes,
    HashBlockKey,
    TreeShape,
    check_runs,
    check_size,
    ranges_of,
)
from mystfuse.kernels.pure.hashing import BlockHasher


class TreeVerifier:
    """Decides whether bytes are those that the root hash stands for, and keeps hash blocks that are. Several threads
    may use one.

    Args:
        hasher: of the tree.
        shape: where its blocks lie.
        root_hash: trusted.
        cache_bytes: of verified hash blocks to keep; a few paths are, however small it is.

    Raises:
        ValueError: a root hash of another size.
    """

    def __init__(self, hasher: BlockHasher, shape: TreeShape, root_hash: bytes, cache_bytes: int) -> None:
        check_size(root_hash, hasher.digest_size)
        self.shape = shape
        self.hasher = hasher
        self.digest_size = hasher.digest_size
        """Bytes."""
        self.root_hash = root_hash
        self.blocks_verified = 0
        """Data blocks that had their digest."""
        self.hash_blocks_verified = 0
        """Hash blocks that had theirs."""
        self._kept: OrderedDict[HashBlockKey, bytes] = OrderedDict()
        self._max_kept = max(cache_bytes // shape.hash_block_size, 2 * len(shape.levels) + 4)
        self._lock = Lock()
        self._touched: dict[int, None] = {}
        """Units of the image, by the first touch."""
        end = max(
            [
                shape.data_blocks * shape.data_block_size,
                *(offset + blocks * shape.hash_block_size for offset, blocks in shape.levels),
            ]
        )
        self._unit = TOUCHED_UNIT
        while end // self._unit >= MAX_UNITS:
            self._unit *= 2

    @property
    def touched(self) -> list[tuple[int, int]]:
        """The parts of the image in which a block had its digest, by the first time: offsets and lengths in bytes. At
        most ``MAX_TOUCHED`` units are noted."""
        with self._lock:
            return ranges_of(self._touched, self._unit)

    def paths(self, runs: Sequence[tuple[int, int]]) -> TreePaths:
        """What a request for data needs.

        Args:
            runs: offsets and lengths of whole data blocks, in order, none overlapping.

        Raises:
            ValueError: they are not that.
        """
        return TreePaths(self, runs)

    def _find(self, key: HashBlockKey) -> bytes | None:
        """A hash block, if it is kept."""
        with self._lock:
            block = self._kept.get(key)
            if block is not None:
                self._kept.move_to_end(key)
            return block

    def _keep(self, key: HashBlockKey, block: bytes) -> None:
        """Keep a hash block that has been checked; the ones that were not used for longest go."""
        with self._lock:
            self.hash_blocks_verified += 1
            self._note(self.shape.levels[key[0]][0] + key[1] * len(block), len(block))
            self._kept[key] = block
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)

    def _count(self, first: int, count: int, bad: Sequence[int]) -> None:
        """Of ``count`` data blocks from ``first`` on, all but some had their digests."""
        size = self.shape.data_block_size
        with self._lock:
            self.blocks_verified += count - len(bad)
            start = 0
            for index in (*bad, count):
                if index > start:
                    self._note((first + start) * size, (index - start) * size)
                start = index + 1

    def _note(self, offset: int, length: int) -> None:
        """Under the lock: these bytes were touched."""
        for unit in range(offset // self._unit, (offset + length - 1) // self._unit + 1):
            if len(self._touched) >= MAX_TOUCHED:
                return
            self._touched.setdefault(unit)


class TreePaths:
    """The paths from the data blocks of one request up to the root hash, or to hash blocks that have been verified. One
    task at a time uses it."""

    __slots__ = ("_held", "_missing", "_runs", "_tree")

    def __init__(self, tree: TreeVerifier, runs: Sequence[tuple[int, int]]) -> None:
        check_runs(runs, tree.shape)
        self._tree = tree
        self._runs = runs
        self._held: dict[HashBlockKey, bytes] = {}
        """Verified, and safe from being dropped."""
        self._missing: set[HashBlockKey] = set()

    def missing(self) -> list[HashBlockKey]:
        """The hash blocks on the paths that have to be fetched now, the highest level first. What is there already is
        held until the request is over."""
        shape = self._tree.shape
        missing: list[HashBlockKey] = []
        wanted = self._parents()
        for level in range(len(shape.levels)):
            absent = [index for index in wanted if self._find((level, index)) is None]
            missing += [(level, index) for index in absent]
            wanted = {index // shape.digests_per_block for index in absent}
        self._missing = set(missing)
        return sorted(missing, key=lambda key: (-key[0], key[1]))

    def give(self, key: HashBlockKey, unverified_block: Bytes) -> bool:
        """Check a missing hash block, and keep it. If the one above is missing too, that has to be given first.

        Args:
            unverified_block: is read once.

        Returns:
            Whether it is what the root hash stands for.

        Raises:
            ValueError: it is not missing, or the one above it is; or it has another size.
        """
        level, index = key
        shape, size = self._tree.shape, self._tree.hasher.digest_size
        check_size(unverified_block, shape.hash_block_size)
        if key not in self._missing:
            raise ValueError(f"hash block {key} is not missing")
        if level == len(shape.levels) - 1:
            expected = self._tree.root_hash
        else:
            above, slot = divmod(index, shape.digests_per_block)
            parent = self._held.get((level + 1, above))
            if parent is None:
                raise ValueError(f"the hash block above {key} is missing")
            expected = parent[slot * size : (slot + 1) * size]
        # A copy: it may be a small piece of a long read, which it would keep in memory.
        block = bytes(unverified_block)
        if not hmac.compare_digest(self._tree.hasher.digest(block), expected):
            return False
        self._held[key] = block
        self._tree._keep(key, block)
        return True

    def mismatches(self, unverified: Sequence[Bytes]) -> list[int]:
        """Compare the data of all runs with their digests; in any thread.

        Returns:
            The numbers of the data blocks that are not what the root hash stands for.

        Raises:
            ValueError: a hash block is missing, or the data have another size.
        """
        size = self._tree.shape.data_block_size
        bad: list[int] = []
        for (offset, length), data in zip(self._runs, unverified, strict=True):
            check_size(data, length)
            expected = self._digests(offset // size, length // size)
            found = self._tree.hasher.mismatches(data, size, expected)
            self._tree._count(offset // size, length // size, found)
            bad += [offset // size + index for index in found]
        return bad

    def digests(self) -> list[bytes]:
        """The joined digests of the data blocks of each run.

        Raises:
            ValueError: a hash block is missing.
        """
        size = self._tree.shape.data_block_size
        return [self._digests(offset // size, length // size) for offset, length in self._runs]

    def _parents(self) -> set[int]:
        """The hash blocks of level 0 with the digests of the data."""
        span = self._tree.shape.data_block_size * self._tree.shape.digests_per_block
        return {
            index for offset, length in self._runs for index in range(offset // span, (offset + length - 1) // span + 1)
        }

    def _find(self, key: HashBlockKey) -> bytes | None:
        block = self._held.get(key)
        if block is None:
            block = self._tree._find(key)
            if block is not None:
                self._held[key] = block
        return block

    def _digests(self, first: int, count: int) -> bytes:
        """The joined digests of data blocks."""
        if not self._tree.shape.levels:
            return self._tree.root_hash
        size, per_block = self._tree.hasher.digest_size, self._tree.shape.digests_per_block
        parents = range(first // per_block, (first + count - 1) // per_block + 1)
        blocks = [self._held.get((0, index)) for index in parents]
        if None in blocks:
            raise ValueError("a hash block is missing")
        digests = b"".join([block[: per_block * size] for block in blocks if block is not None])
        start = first - parents[0] * per_block
        return digests[start * size : (start + count) * size]

"""The hash tree, one call of C for a request's paths, one for each hash block and each run of data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from mystfuse.kernels.interface import Bytes, HashBlockKey, TreeShape, check_runs, check_size, ranges_of
from mystfuse.kernels.native._kernel import ffi, lib
from mystfuse.kernels.native.hashing import BlockHasher


class TreeVerifier:
    """See ``pure.hash_tree.TreeVerifier``. C threads may use it at the same time, by ``native``."""

    def __init__(self, hasher: BlockHasher, shape: TreeShape, root_hash: bytes, cache_bytes: int) -> None:
        native = ffi.new("hash_tree_shape *")
        check_size(root_hash, hasher.digest_size)
        native.data_blocks, native.data_block_size = shape.data_blocks, shape.data_block_size
        native.hash_block_size, native.digests_per_block = shape.hash_block_size, shape.digests_per_block
        native.digest_size = hasher.digest_size
        native.level_count = len(shape.levels)
        native.level_offset = [offset for offset, _ in shape.levels]
        native.level_blocks = [blocks for _, blocks in shape.levels]
        ffi.buffer(native.root_hash)[: len(root_hash)] = root_hash
        tree = lib.hash_tree_new(hasher.native, native, cache_bytes)
        if not tree:
            raise MemoryError("no memory for the hash tree, or it is an impossible one")
        self.native: Any = ffi.gc(tree, lib.hash_tree_free)
        """``hash_tree *``, valid as long as this object."""
        self.shape = shape
        self.digest_size = hasher.digest_size
        """Bytes."""
        self._hasher = hasher

    @property
    def blocks_verified(self) -> int:
        """Data blocks that had their digest."""
        return int(lib.hash_tree_blocks_verified(self.native))

    @property
    def hash_blocks_verified(self) -> int:
        """Hash blocks that had theirs."""
        return int(lib.hash_tree_hash_blocks_verified(self.native))

    @property
    def touched(self) -> list[tuple[int, int]]:
        """See ``pure.hash_tree.TreeVerifier.touched``."""
        room = lib.hash_tree_touched_count(self.native)
        units = ffi.new("uint32_t[]", max(room, 1))
        count = lib.hash_tree_touched_units(self.native, units, room)
        return ranges_of(units[0:count], lib.hash_tree_touched_unit(self.native))

    def paths(self, runs: Sequence[tuple[int, int]]) -> TreePaths:
        """See ``pure.hash_tree.TreeVerifier.paths``."""
        return TreePaths(self, runs)


class TreePaths:
    """See ``pure.hash_tree.TreePaths``."""

    __slots__ = ("_paths", "_runs", "_tree")

    def __init__(self, tree: TreeVerifier, runs: Sequence[tuple[int, int]]) -> None:
        paths = lib.tree_paths_new(tree.native, [*chain.from_iterable(runs)], len(runs))
        if not paths:
            check_runs(runs, tree.shape)
            raise MemoryError("no memory for the paths")
        self._paths: Any = ffi.gc(paths, lib.tree_paths_free)
        self._runs = runs
        self._tree = tree

    def missing(self) -> list[HashBlockKey]:
        """See ``pure.hash_tree.TreePaths.missing``."""
        count = lib.tree_paths_look(self._paths)
        if not count:
            return []
        _check(count)
        keys = lib.tree_paths_missing(self._paths)
        return [(keys[index].level, keys[index].index) for index in range(count)]

    def give(self, key: HashBlockKey, unverified_block: Bytes) -> bool:
        """See ``pure.hash_tree.TreePaths.give``."""
        check_size(unverified_block, self._tree.shape.hash_block_size)
        verdict = lib.tree_paths_give(self._paths, *key, ffi.from_buffer("uint8_t[]", unverified_block))
        _check(verdict)
        return bool(verdict == lib.TREE_KEPT)

    def mismatches(self, unverified: Sequence[Bytes]) -> list[int]:
        """See ``pure.hash_tree.TreePaths.mismatches``."""
        bad: list[int] = []
        for number, (_, data) in enumerate(zip(self._runs, unverified, strict=True)):
            view = ffi.from_buffer("uint8_t[]", data)
            size, start = len(view), 0
            while (found := lib.tree_paths_mismatch(self._paths, number, view, size, start)) != lib.TREE_NO_MISMATCH:
                _check(found)
                bad.append(found)
                start = found + 1
        return bad

    def digests(self) -> list[bytes]:
        """See ``pure.hash_tree.TreePaths.digests``."""
        shape, size = self._tree.shape, self._tree.digest_size
        found: list[bytes] = []
        for number, (_, length) in enumerate(self._runs):
            joined = lib.tree_paths_digests(self._paths, number)
            if not joined:
                raise ValueError("a hash block is missing")
            found.append(bytes(ffi.buffer(joined, length // shape.data_block_size * size)))
        return found


def _check(result: int) -> None:
    if result == lib.TREE_NO_MEMORY:
        raise MemoryError("no memory to check blocks")
    if result == lib.TREE_NOT_ASKED:
        raise ValueError("a hash block that is not missing, one whose parent is, or data of another size")

"""Digests of many equal blocks at once, as dm-verity wants them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import partial
from typing import Protocol


class _Hash(Protocol):
    def copy(self) -> _Hash: ...
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class BlockHasher:
    """Salted digests of blocks: digest(salt || block) for hash_type 1, digest(block || salt) for hash_type 0."""

    def __init__(self, algorithm: str, salt: bytes, hash_type: int = 1) -> None:
        new: Callable[[bytes], _Hash] = partial(hashlib.new, algorithm, usedforsecurity=True)
        self.digest_size = len(new(b"").digest())
        self._salted = new(salt if hash_type == 1 else b"")
        self._suffix = salt if hash_type == 0 else b""

    def digest(self, block: bytes | memoryview) -> bytes:
        """The digest of one block."""
        state = self._salted.copy()
        state.update(block)
        if self._suffix:
            state.update(self._suffix)
        return state.digest()

    def digests(self, data: bytes | memoryview, block_size: int) -> bytes:
        """The digests of the consecutive blocks in ``data``, joined: ``len(data) / block_size * digest_size`` bytes."""
        view = memoryview(data)
        digest = self.digest
        return b"".join([digest(view[start : start + block_size]) for start in range(0, len(view), block_size)])

    def mismatches(self, data: bytes | memoryview, block_size: int, expected: bytes | memoryview) -> list[int]:
        """Indices of the blocks in ``data`` whose digest is not the one in ``expected`` (joined digests, in order)."""
        actual = self.digests(data, block_size)
        if hmac.compare_digest(actual, expected):
            return []
        size = self.digest_size
        return [
            index
            for index in range(-(-max(len(actual), len(expected)) // size))
            if actual[index * size : (index + 1) * size] != expected[index * size : (index + 1) * size]
        ]

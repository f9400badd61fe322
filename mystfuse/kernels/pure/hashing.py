"""Digests of many equal blocks, one call of hashlib a block."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import partial
from typing import Protocol

from mystfuse.kernels.interface import Bytes, check_expected, check_salt, count_blocks


class _Hash(Protocol):
    def copy(self) -> _Hash: ...
    def update(self, data: Bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class BlockHasher:
    """Salted digests of blocks: digest(salt || block) for hash_type 1, digest(block || salt) for hash_type 0.

    Several threads may use one.
    """

    def __init__(self, algorithm: str, salt: bytes, hash_type: int = 1) -> None:
        check_salt(salt)
        new: Callable[[bytes], _Hash] = partial(hashlib.new, algorithm, usedforsecurity=True)
        self.digest_size = len(new(b"").digest())
        self._salted = new(salt if hash_type == 1 else b"")
        self._suffix = salt if hash_type == 0 else b""

    def digest(self, block: Bytes) -> bytes:
        """The digest of one block."""
        state = self._salted.copy()
        state.update(block)
        if self._suffix:
            state.update(self._suffix)
        return state.digest()

    def digests(self, data: Bytes, block_size: int) -> bytes:
        """The digests of the consecutive blocks in ``data``, joined: ``len(data) / block_size * digest_size`` bytes.

        Raises:
            ValueError: a part of a block.
        """
        view = memoryview(data).cast("B")
        count_blocks(view, block_size)
        digest = self.digest
        return b"".join([digest(view[start : start + block_size]) for start in range(0, len(view), block_size)])

    def mismatches(self, data: Bytes, block_size: int, expected: Bytes) -> list[int]:
        """Indices of the blocks in ``data`` whose digest is not the one in ``expected`` (joined digests, in order).

        Raises:
            ValueError: a part of a block, or digests for more blocks or fewer.
        """
        size = self.digest_size
        view = memoryview(expected).cast("B")
        count = count_blocks(memoryview(data), block_size)
        check_expected(view, count, size)
        actual = self.digests(data, block_size)
        if hmac.compare_digest(actual, view):
            return []
        return [
            index
            for index in range(count)
            if actual[index * size : (index + 1) * size] != view[index * size : (index + 1) * size]
        ]

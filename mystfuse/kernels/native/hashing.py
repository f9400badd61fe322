"""Digests of many equal blocks, one call of C for all; other threads run meanwhile."""

from __future__ import annotations

from typing import Any

from mystfuse.kernels.interface import Bytes, check_expected, check_salt, count_blocks
from mystfuse.kernels.native._kernel import ffi, lib


class BlockHasher:
    """Salted digests of blocks: digest(salt || block) for hash_type 1, digest(block || salt) for hash_type 0.

    Several threads may use one.
    """

    def __init__(self, algorithm: str, salt: bytes, hash_type: int = 1) -> None:
        check_salt(salt)
        hasher = lib.hasher_new(algorithm.encode(), salt, len(salt), hash_type == 1)
        if not hasher:
            raise ValueError(f"libcrypto does not have {algorithm}")
        self._hasher = ffi.gc(hasher, lib.hasher_free)
        self.digest_size: int = lib.hasher_digest_size(hasher)

    @property
    def native(self) -> Any:
        """``hasher *``, valid as long as this object."""
        return self._hasher

    def digest(self, block: Bytes) -> bytes:
        """The digest of one block."""
        view = memoryview(block)
        return self._digests(view, view.nbytes, 1)

    def digests(self, data: Bytes, block_size: int) -> bytes:
        """The digests of the consecutive blocks in ``data``, joined: ``len(data) / block_size * digest_size`` bytes.

        Raises:
            ValueError: a part of a block.
        """
        view = memoryview(data)
        return self._digests(view, block_size, count_blocks(view, block_size))

    def mismatches(self, data: Bytes, block_size: int, expected: Bytes) -> list[int]:
        """Indices of the blocks in ``data`` whose digest is not the one in ``expected`` (joined digests, in order).

        Raises:
            ValueError: a part of a block, or digests for more blocks or fewer.
        """
        size = self.digest_size
        view, expected_view = memoryview(data), memoryview(expected)
        count = count_blocks(view, block_size)
        check_expected(expected_view, count, size)
        blocks, digests = ffi.from_buffer("uint8_t[]", view), ffi.from_buffer("uint8_t[]", expected_view)
        found = ffi.new("size_t *")
        bad: list[int] = []
        start = 0
        while start < count:
            left = count - start
            if not lib.hasher_first_mismatch(
                self._hasher, blocks + start * block_size, block_size, left, digests + start * size, found
            ):
                raise MemoryError("libcrypto cannot hash")
            if found[0] == left:
                break
            bad.append(start + found[0])
            start = bad[-1] + 1
        return bad

    def _digests(self, blocks: memoryview, block_size: int, count: int) -> bytes:
        out = ffi.new("uint8_t[]", count * self.digest_size)
        if not lib.hasher_digests(self._hasher, ffi.from_buffer("uint8_t[]", blocks), block_size, count, out):
            raise MemoryError("libcrypto cannot hash")
        return bytes(ffi.buffer(out))

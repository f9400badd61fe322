"""AES over many sectors, one call of C for all; other threads run meanwhile."""

from __future__ import annotations

from typing import Any

from mystfuse.kernels.interface import (
    AES_BLOCK,
    IV_BITS,
    SECTOR_SIZE,
    Bytes,
    check_sector_size,
    check_sectors,
    writable,
)
from mystfuse.kernels.native._kernel import ffi, lib

_WORD = (1 << 64) - 1
# Memory that is written at once need not be filled with zeros before.
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


class _Cipher:
    """The common part of the modes. The key is in OpenSSL's memory alone."""

    def __init__(
        self, chain_mode: int, key: Bytes, sector_size: int, iv_tweak: int = 0, iv_mode: str = "plain64"
    ) -> None:
        check_sector_size(sector_size)
        cipher = lib.sector_cipher_new(
            chain_mode,
            iv_mode == "essiv:sha256",
            ffi.from_buffer("uint8_t[]", key),
            memoryview(key).nbytes,
            sector_size,
            (1 << IV_BITS[iv_mode]) - 1,
        )
        if not cipher:
            raise ValueError(f"AES with a key of {memoryview(key).nbytes} bytes")
        self._cipher = ffi.gc(cipher, lib.sector_cipher_free)
        self._unit = AES_BLOCK if chain_mode == lib.CHAIN_ECB else sector_size
        self._iv_tweak = iv_tweak

    @property
    def native(self) -> tuple[Any, int]:
        """``sector_cipher *``, valid as long as this object, and what to add to the numbers of sectors."""
        return self._cipher, self._iv_tweak

    def decrypt(self, data: Bytes, sector: int) -> memoryview:
        """Decrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        return self._new(data, sector, False)

    def decrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into ``out``: ``data`` itself, or as many bytes that do not overlap it."""
        self._into(data, sector, out, False)

    def encrypt(self, data: Bytes, sector: int) -> memoryview:
        """Encrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        return self._new(data, sector, True)

    def encrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into ``out``: ``data`` itself, or as many bytes that do not overlap it."""
        self._into(data, sector, out, True)

    def _new(self, data: Bytes, sector: int, encrypts: bool) -> memoryview:
        view = memoryview(data)
        check_sectors(view, self._unit)
        out = _allocate("uint8_t[]", view.nbytes)
        self._run(ffi.from_buffer("uint8_t[]", view), out, view.nbytes, sector, encrypts)
        return memoryview(ffi.buffer(out)).toreadonly()

    def _into(self, data: Bytes, sector: int, out: bytearray | memoryview, encrypts: bool) -> None:
        view = memoryview(data)
        check_sectors(view, self._unit)
        size = view.nbytes
        source = ffi.from_buffer("uint8_t[]", view)
        target = ffi.from_buffer("uint8_t[]", writable(out, size), require_writable=True)
        if source != target and source < target + size and target < source + size:
            raise ValueError("the result would overwrite what is still to be read")
        self._run(source, target, size, sector, encrypts)

    def _run(self, source: object, target: object, size: int, sector: int, encrypts: bool) -> None:
        number = (sector + self._iv_tweak) & _WORD
        if not lib.sector_cipher_run(self._cipher, encrypts, source, target, size, number):
            raise MemoryError("libcrypto cannot run AES")


class XtsCipher(_Cipher):
    """AES-XTS; the key is two AES keys of the same size, the second for the tweaks."""

    def __init__(self, key: Bytes, sector_size: int = SECTOR_SIZE, iv_tweak: int = 0, iv_mode: str = "plain64") -> None:
        super().__init__(lib.CHAIN_XTS, key, sector_size, iv_tweak, iv_mode)


class CbcCipher(_Cipher):
    """AES-CBC with dm-crypt's initialization vectors."""

    def __init__(self, key: Bytes, sector_size: int, iv_tweak: int, iv_mode: str) -> None:
        super().__init__(lib.CHAIN_CBC, key, sector_size, iv_tweak, iv_mode)


class EcbCipher(_Cipher):
    """AES-ECB: equal blocks look equal, so it hides little. The original reads it."""

    def __init__(self, key: Bytes) -> None:
        super().__init__(lib.CHAIN_ECB, key, SECTOR_SIZE)

"""AES over many sectors in one call, as dm-crypt does it.

``cryptography`` wants a cipher object for every initialization vector, that is for every 512 bytes. So what differs
between sectors is made here, for all of them at once and with long integers; AES itself runs over everything in one
call of ECB.

Sources: IEEE 1619-2018 (XTS), NIST SP 800-38A (CBC, ECB), the kernel's dm-crypt (initialization vectors).
"""

from __future__ import annotations

import hashlib
import sys
import threading
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

SECTOR_SIZE = 512
"""Bytes that the number of a sector counts, whatever the size of a sector."""
_AES_BLOCK = 16
_ZEROS = bytes(SECTOR_SIZE)
_STEP = 64 << 10
"""Bytes dealt with at a time: about what stays in the processor's cache."""

Bytes = bytes | bytearray | memoryview


class SectorCipher(Protocol):
    """A cipher that encrypts sectors each by itself. It may be used from several threads."""

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        """Decrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        ...


def make_sector_cipher(
    chain_mode: str, iv_mode: str, key: memoryview, sector_size: int = SECTOR_SIZE, iv_tweak: int = 0
) -> SectorCipher:
    """The cipher ``aes-{chain_mode}-{iv_mode}`` of dm-crypt with a key of a size that it can have.

    Args:
        sector_size: bytes that are one unit of XTS or CBC; a multiple of 512.
        iv_tweak: added to the number of a sector, always counted in 512-byte units.
    """
    if chain_mode == "xts":
        return XtsCipher(key, sector_size, iv_tweak, iv_bits=_IV_BITS[iv_mode])
    if chain_mode == "cbc":
        return CbcCipher(key, sector_size, iv_tweak, iv_mode)
    return EcbCipher(key)


_IV_BITS = {"plain64": 64, "plain": 32}


class _Ecb:
    """AES without chaining, forwards or backwards, over any number of blocks. The key is in OpenSSL's memory alone."""

    def __init__(self, key: Bytes, encrypts: bool) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  # the chaining is ours
        self._context: CipherContext = cipher.encryptor() if encrypts else cipher.decryptor()
        self._lock = threading.Lock()

    def __call__(self, data: Bytes) -> bytes:
        with self._lock:
            return self._context.update(data)


class _InitializationVectors:
    """The numbers of sectors as 16-byte blocks: plain64, or cut to 32 bits for plain."""

    def __init__(self, sector_size: int, iv_tweak: int, iv_bits: int) -> None:
        self._units = sector_size // SECTOR_SIZE
        self._iv_tweak = iv_tweak
        self._mask = (1 << iv_bits) - 1

    def blocks(self, sector: int, count: int) -> bytes:
        first = sector + self._iv_tweak
        last = first + count * self._units
        vectors = array("Q", bytes(count * _AES_BLOCK))
        if last <= self._mask:
            vectors[::2] = array("Q", range(first, last, self._units))
        else:
            vectors[::2] = array("Q", (number & self._mask for number in range(first, last, self._units)))
        if sys.byteorder == "big":
            vectors.byteswap()
        return vectors.tobytes()


class XtsCipher:
    """AES-XTS; the key is two AES keys of the same size, the second for the tweaks."""

    def __init__(self, key: memoryview, sector_size: int = SECTOR_SIZE, iv_tweak: int = 0, iv_bits: int = 64) -> None:
        half = len(key) // 2
        self._sector_size = sector_size
        self._vectors = _InitializationVectors(sector_size, iv_tweak, iv_bits)
        self._decrypt, self._encrypt = _Ecb(key[:half], encrypts=False), _Ecb(key[:half], encrypts=True)
        self._encrypt_tweak = _Ecb(key[half:], encrypts=True)

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        return self._run(self._decrypt, data, sector)

    def encrypt(self, data: Bytes, sector: int) -> bytes:
        """Encrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        return self._run(self._encrypt, data, sector)

    def _run(self, aes: _Ecb, data: Bytes, sector: int) -> bytes:
        parts: list[bytes] = []
        for number, part in _steps(data, sector, self._sector_size):
            tweaks = self._tweaks(number, len(part) // self._sector_size)
            inner = int.from_bytes(part, "little") ^ tweaks
            outer = aes(inner.to_bytes(len(part), "little"))
            parts.append((int.from_bytes(outer, "little") ^ tweaks).to_bytes(len(part), "little"))
        return b"".join(parts)

    def _tweaks(self, sector: int, count: int) -> int:
        """What is added to every block before and after AES: E(number) * x^j in GF(2^128) for block j of each sector.

        The numbers of the field are the 128-bit lanes of one long integer, one a sector; multiplying by x shifts each
        lane, and what falls out on top comes back as x^7 + x^2 + x + 1 (0x87).
        """
        blocks = self._sector_size // _AES_BLOCK
        lowest_bits = _lowest_bits(count)
        size = count * _AES_BLOCK
        encrypted = self._encrypt_tweak(self._vectors.blocks(sector, count))
        lanes = int.from_bytes(encrypted, "little")
        # Gathered by block, wanted by sector: words of 8 bytes, two a lane.
        tweaks = bytearray(size * blocks)
        words = memoryview(tweaks).cast("Q")
        for block in range(blocks):
            if block:
                carried = (lanes >> 127) & lowest_bits
                lanes = ((lanes ^ (carried << 127)) << 1) ^ carried * 0x87
                encrypted = lanes.to_bytes(size, "little")
            halves = memoryview(encrypted).cast("Q")
            words[2 * block :: 2 * blocks] = halves[::2]
            words[2 * block + 1 :: 2 * blocks] = halves[1::2]
        return int.from_bytes(tweaks, "little")


class CbcCipher:
    """AES-CBC, decryption alone, with dm-crypt's initialization vectors."""

    def __init__(self, key: memoryview, sector_size: int, iv_tweak: int, iv_mode: str) -> None:
        self._sector_size = sector_size
        self._decrypt = _Ecb(key, encrypts=False)
        self._vectors = _InitializationVectors(sector_size, iv_tweak, _IV_BITS.get(iv_mode, 64))
        # essiv: the number of the sector, encrypted with the hash of the key.
        self._encrypt_vector = _Ecb(hashlib.sha256(key).digest(), True) if iv_mode == "essiv:sha256" else bytes

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        parts: list[bytes] = []
        for number, part in _steps(data, sector, self._sector_size):
            vectors = self._encrypt_vector(self._vectors.blocks(number, len(part) // self._sector_size))
            # What each block was added to: the one before it, in the first of a sector the vector.
            before = bytearray(_AES_BLOCK) + part[:-_AES_BLOCK]
            words, firsts = memoryview(before).cast("Q"), memoryview(vectors).cast("Q")
            step = self._sector_size // 8
            words[::step], words[1::step] = firsts[::2], firsts[1::2]
            plain = int.from_bytes(self._decrypt(part), "little") ^ int.from_bytes(before, "little")
            parts.append(plain.to_bytes(len(part), "little"))
        return b"".join(parts)


class EcbCipher:
    """AES-ECB, decryption alone: equal blocks look equal, so it hides little. The original reads it."""

    def __init__(self, key: memoryview) -> None:
        self._decrypt = _Ecb(key, encrypts=False)

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        return b"".join(self._decrypt(part) for _, part in _steps(data, sector, _AES_BLOCK))


def _steps(data: Bytes, sector: int, sector_size: int) -> Iterator[tuple[int, memoryview]]:
    """Consecutive pieces of ``data``, each with the number of its first sector in 512-byte units."""
    view = memoryview(data)
    if len(view) % sector_size:
        raise ValueError(f"{len(view)} bytes are not whole sectors of {sector_size}")
    for start in range(0, len(view), _STEP):
        yield sector + start // SECTOR_SIZE, view[start : start + _STEP]


def find_zero_sectors(data: bytes) -> list[tuple[int, int]]:
    """The ranges of whole sectors, from and to, that are all zeros, of data that begins with a sector."""
    ranges: list[tuple[int, int]] = []
    start = data.find(_ZEROS)
    while start >= 0:
        start = -(-start // SECTOR_SIZE) * SECTOR_SIZE
        end = start
        while data[end : end + SECTOR_SIZE] == _ZEROS:
            end += SECTOR_SIZE
        if end > start:
            ranges.append((start, end))
        start = data.find(_ZEROS, max(end, start + 1))
    return ranges


@lru_cache(maxsize=256)
def _lowest_bits(lanes: int) -> int:
    """Bit 0 of each of so many 128-bit lanes."""
    return int.from_bytes((b"\1" + bytes(_AES_BLOCK - 1)) * lanes, "little")

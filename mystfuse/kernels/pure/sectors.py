"""AES over many sectors in Python, as dm-crypt does it.

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

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mystfuse.kernels.interface import (
    AES_BLOCK,
    IV_BITS,
    SECTOR_SIZE,
    Bytes,
    check_sector_size,
    check_sectors,
    writable,
)

_STEP = 64 << 10
"""Bytes dealt with at a time: about what stays in the processor's cache."""
_LANES = 128
"""Sectors that CBC encrypts side by side: their next blocks are one call of AES."""


class _Ecb:
    """AES without chaining, forwards or backwards, over any number of blocks. The key is in OpenSSL's memory alone."""

    def __init__(self, key: Bytes, encrypts: bool) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # nosec B305  # noqa: S305  # the chaining is ours
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
        vectors = array("Q", bytes(count * AES_BLOCK))
        if last <= self._mask:
            vectors[::2] = array("Q", range(first, last, self._units))
        else:
            vectors[::2] = array("Q", (number & self._mask for number in range(first, last, self._units)))
        if sys.byteorder == "big":
            vectors.byteswap()
        return vectors.tobytes()


class _Cipher:
    """The common part of the modes."""

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        """Decrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        raise NotImplementedError

    def decrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into ``out``: ``data`` itself, or as many bytes that do not overlap it."""
        target = writable(out, memoryview(data).nbytes)
        target[:] = self.decrypt(data, sector)

    def encrypt(self, data: Bytes, sector: int) -> bytes:
        """Encrypt consecutive whole sectors; ``sector`` is the first one's place in 512-byte units."""
        raise NotImplementedError

    def encrypt_into(self, data: Bytes, sector: int, out: bytearray | memoryview) -> None:
        """The same into ``out``: ``data`` itself, or as many bytes that do not overlap it."""
        target = writable(out, memoryview(data).nbytes)
        target[:] = self.encrypt(data, sector)


class XtsCipher(_Cipher):
    """AES-XTS; the key is two AES keys of the same size, the second for the tweaks."""

    def __init__(self, key: Bytes, sector_size: int = SECTOR_SIZE, iv_tweak: int = 0, iv_mode: str = "plain64") -> None:
        check_sector_size(sector_size)
        half = len(key) // 2
        self._sector_size = sector_size
        self._vectors = _InitializationVectors(sector_size, iv_tweak, IV_BITS[iv_mode])
        self._decrypt, self._encrypt = _Ecb(key[:half], encrypts=False), _Ecb(key[:half], encrypts=True)
        self._encrypt_tweak = _Ecb(key[half:], encrypts=True)

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        return self._run(self._decrypt, data, sector)

    def encrypt(self, data: Bytes, sector: int) -> bytes:
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
        blocks = self._sector_size // AES_BLOCK
        lowest_bits = _lowest_bits(count)
        size = count * AES_BLOCK
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


class CbcCipher(_Cipher):
    """AES-CBC with dm-crypt's initialization vectors."""

    def __init__(self, key: Bytes, sector_size: int, iv_tweak: int, iv_mode: str) -> None:
        check_sector_size(sector_size)
        self._sector_size = sector_size
        self._decrypt, self._encrypt = _Ecb(key, encrypts=False), _Ecb(key, encrypts=True)
        self._vectors = _InitializationVectors(sector_size, iv_tweak, IV_BITS[iv_mode])
        # essiv: the number of the sector, encrypted with the hash of the key.
        self._encrypt_vector = _Ecb(hashlib.sha256(key).digest(), True) if iv_mode == "essiv:sha256" else bytes

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        parts: list[bytes] = []
        for number, part in _steps(data, sector, self._sector_size):
            vectors = self._encrypt_vector(self._vectors.blocks(number, len(part) // self._sector_size))
            # The value added to each block: the block before it, or for the first of a sector the initialization
            # vector.
            before = bytearray(AES_BLOCK) + part[:-AES_BLOCK]
            words, firsts = memoryview(before).cast("Q"), memoryview(vectors).cast("Q")
            step = self._sector_size // 8
            words[::step], words[1::step] = firsts[::2], firsts[1::2]
            plain = int.from_bytes(self._decrypt(part), "little") ^ int.from_bytes(before, "little")
            parts.append(plain.to_bytes(len(part), "little"))
        return b"".join(parts)

    def encrypt(self, data: Bytes, sector: int) -> bytes:
        steps = _steps(data, sector, self._sector_size, _LANES * self._sector_size)
        return b"".join(self._encrypt_side_by_side(part, number) for number, part in steps)

    def _encrypt_side_by_side(self, plain: memoryview, sector: int) -> bytearray:
        """A sector goes block by block, since each is added to the encrypted one before it; but all sectors at once."""
        size = len(plain) // self._sector_size * AES_BLOCK
        encrypted = self._encrypt_vector(self._vectors.blocks(sector, size // AES_BLOCK))
        result, gathered = bytearray(len(plain)), bytearray(size)
        # Words of 8 bytes, two a block.
        source, target, lanes = (memoryview(each).cast("Q") for each in (plain, result, gathered))
        step = self._sector_size // 8
        for low in range(0, step, 2):
            high = low + 1
            lanes[::2], lanes[1::2] = source[low::step], source[high::step]
            added = int.from_bytes(gathered, "little") ^ int.from_bytes(encrypted, "little")
            encrypted = self._encrypt(added.to_bytes(size, "little"))
            halves = memoryview(encrypted).cast("Q")
            target[low::step], target[high::step] = halves[::2], halves[1::2]
        return result


class EcbCipher(_Cipher):
    """AES-ECB: equal blocks look equal, so it hides little. The original reads it."""

    def __init__(self, key: Bytes) -> None:
        self._decrypt, self._encrypt = _Ecb(key, encrypts=False), _Ecb(key, encrypts=True)

    def decrypt(self, data: Bytes, sector: int) -> bytes:
        return b"".join(self._decrypt(part) for _, part in _steps(data, sector, AES_BLOCK))

    def encrypt(self, data: Bytes, sector: int) -> bytes:
        return b"".join(self._encrypt(part) for _, part in _steps(data, sector, AES_BLOCK))


def _steps(data: Bytes, sector: int, sector_size: int, step: int = _STEP) -> Iterator[tuple[int, memoryview]]:
    """Consecutive pieces of ``data``, each with the number of its first sector in 512-byte units."""
    view = memoryview(data).cast("B")
    check_sectors(view, sector_size)
    for start in range(0, len(view), step):
        yield sector + start // SECTOR_SIZE, view[start : start + step]


@lru_cache(maxsize=256)
def _lowest_bits(lanes: int) -> int:
    """Bit 0 of each of so many 128-bit lanes."""
    return int.from_bytes((b"\1" + bytes(AES_BLOCK - 1)) * lanes, "little")

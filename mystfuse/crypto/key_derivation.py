"""Keys from passphrases, and LUKS's anti-forensic splitter.

Source of the splitter: LUKS1 On-Disk Format Specification 1.2.3, section 2.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2i, Argon2id
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from mystfuse.crypto.secret import Secret

_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha224": hashes.SHA224,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


def derive_pbkdf2(hash_name: str, passphrase: memoryview, salt: bytes, iterations: int, length: int) -> Secret:
    """PBKDF2-HMAC (RFC 8018): ``length`` bytes. Other threads run meanwhile."""
    key = Secret(length)
    PBKDF2HMAC(_HASHES[hash_name](), length, salt, iterations).derive_into(passphrase, key.view)
    return key


def derive_argon2(
    variant: str, passphrase: memoryview, salt: bytes, time: int, memory: int, cpus: int, length: int
) -> Secret:
    """Argon2 (RFC 9106), ``argon2i`` or ``argon2id``, over ``memory`` KiB: ``length`` bytes. Other threads run
    meanwhile.

    Raises:
        MemoryError: there is too little memory.
    """
    key = Secret(length)
    kind = Argon2id if variant == "argon2id" else Argon2i
    # Its type says bytes, but it takes any buffer.
    kind(salt=salt, length=length, iterations=time, lanes=cpus, memory_cost=memory).derive_into(passphrase, key.view)  # type: ignore[arg-type]
    return key


def split_key(key: memoryview, stripes: int, hash_name: str, random: Callable[[int], bytes]) -> bytearray:
    """Expand a key to ``stripes`` times its size, so that losing any part of it loses it all.

    Args:
        random: gives so many random bytes.
    """
    size = len(key)
    material = bytearray(random(size * (stripes - 1)))
    state = _fold(material, size, hash_name)
    material += bytes(left ^ right for left, right in zip(state, key, strict=True))
    return material


def merge_key(material: memoryview | bytearray, size: int, hash_name: str) -> Secret:
    """The key of ``size`` bytes from the result of ``split_key``."""
    last = len(material) - size
    state = _fold(material[:last], size, hash_name)
    key = Secret(size)
    for index in range(size):
        key.view[index] = state[index] ^ material[last + index]
    return key


def _fold(stripes: memoryview | bytearray, size: int, hash_name: str) -> bytes:
    """All stripes but the last, added up and diffused one after the other."""
    state = bytes(size)
    for start in range(0, len(stripes), size):
        number = int.from_bytes(state, "big") ^ int.from_bytes(stripes[start : start + size], "big")
        state = _diffuse(number.to_bytes(size, "big"), hash_name)
    return state


def _diffuse(state: bytes, hash_name: str) -> bytes:
    """Hash each piece of the state of the hash's own size, numbered; the last one is cut to what is left."""
    step = hashlib.new(hash_name, usedforsecurity=True).digest_size
    pieces: list[bytes] = []
    for index, start in enumerate(range(0, len(state), step)):
        piece = state[start : start + step]
        pieces.append(hashlib.new(hash_name, index.to_bytes(4, "big") + piece).digest()[: len(piece)])
    return b"".join(pieces)

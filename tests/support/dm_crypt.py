"""dm-crypt's ciphertext, with a cipher object of OpenSSL for every sector: our ciphers are compared with it."""

from __future__ import annotations

import hashlib
import random

from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES


def randbytes(size: int, seed: object = 0) -> bytes:
    """Random bytes, the same for the same seed."""
    return random.Random(repr(seed)).randbytes(size)


def encrypt_sectors(
    cipher: str, key: bytes, data: bytes, sector: int = 0, sector_size: int = 512, iv_tweak: int = 0
) -> bytes:
    """Encrypt ``data`` as dm-crypt would from 512-byte unit ``sector`` on (drivers/md/dm-crypt.c).

    Args:
        cipher: As in a LUKS2 header: ``aes-xts-plain64``, ``aes-cbc-essiv:sha256``, ``aes-ecb``.
    """
    _, chain_mode, *iv_mode = cipher.split("-", 2)
    encrypted = []
    for start in range(0, len(data), sector_size):
        number = sector + start // 512 + iv_tweak
        vector = (number & 0xFFFFFFFF if iv_mode == ["plain"] else number).to_bytes(16, "little")
        if iv_mode == ["essiv:sha256"]:
            vector = Cipher(AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor().update(vector)
        mode = {"xts": modes.XTS, "cbc": modes.CBC, "ecb": lambda _: modes.ECB()}[chain_mode](vector)
        encrypted.append(Cipher(AES(key), mode).encryptor().update(data[start : start + sector_size]))
    return b"".join(encrypted)

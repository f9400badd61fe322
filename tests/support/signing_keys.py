"""Keys, and root hashes signed with them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mystfuse.trust.signature import PublicKey

ROOT = hashlib.sha256(b"root").digest()
OTHER_ROOT = hashlib.sha256(b"another root").digest()
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")


def public_pem(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True)
class Numbers:
    """An RSA key as bare numbers, to sign anything with by ``pow``."""

    p: int
    q: int
    e: int
    d: int

    @classmethod
    def of(cls, key: rsa.RSAPrivateKey, least_exponent: int) -> Numbers:
        """The primes of ``key`` with the smallest possible public exponent from ``least_exponent`` on."""
        private = key.private_numbers()
        order = math.lcm(private.p - 1, private.q - 1)
        e = least_exponent
        while math.gcd(e, order) != 1:
            e += 2
        return cls(private.p, private.q, e, pow(e, -1, order))

    @property
    def n(self) -> int:
        return self.p * self.q

    @property
    def size(self) -> int:
        return (self.n.bit_length() + 7) // 8

    @property
    def public(self) -> PublicKey:
        return PublicKey.from_pem(public_pem(rsa.RSAPublicNumbers(self.e, self.n).public_key()), "numbers.pem")

    def raw(self, encoded: bytes) -> bytes:
        """The signature that decrypts to ``encoded``."""
        number = int.from_bytes(encoded, "big")
        # By the Chinese remainder theorem: four times as fast as pow(number, d, n).
        by_p, by_q = pow(number, self.d % (self.p - 1), self.p), pow(number, self.d % (self.q - 1), self.q)
        signature = by_q + self.q * ((by_p - by_q) * pow(self.q, -1, self.p) % self.p)
        return signature.to_bytes(self.size, "big")

    def encoded(self, digest: bytes, prefix: bytes = SHA256_PREFIX) -> bytes:
        """EMSA-PKCS1-v1_5 of a digest."""
        tail = b"\0" + prefix + digest
        return b"\0\1".ljust(self.size - len(tail), b"\xff") + tail

    def sign(self, digest: bytes) -> bytes:
        return self.raw(self.encoded(digest))


def flipped(data: bytes, index: int) -> bytes:
    changed = bytearray(data)
    changed[index] ^= 1
    return bytes(changed)

"""RSA signatures: RSASSA-PKCS1-v1_5, SHA-256, over digests. Of an image the root hash itself is the digest that is
signed; of a package it is the SHA-256 of everything before the signature."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from mystfuse.errors import FormatError, MystfuseError, UsageError, WrongKey
from mystfuse.trust.pem import PemBlock, check_not_pss, public_key_blocks

MIN_KEY_BITS = 2048
MAX_KEY_BITS = 8192
"""An fssig holds 1024 bytes of signature: 8192 bits."""

MAX_EXPONENT_BITS = 256
"""FIPS 186-5, section 5.1: public exponents are below 2^256. With one as long as the modulus a check takes seconds."""
_SMALL_PRIMES = math.prod(n for n in range(3, 752) if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)))
"""The product of the odd primes up to 751, none of which divides the modulus of a key: SP 800-89, section 5.3.3."""

_OPENSSL_MAX_EXPONENT_BITS = 64
"""OpenSSL's OPENSSL_RSA_MAX_PUBEXP_BITS: it refuses larger public exponents for moduli over 3072 bits."""
_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER prefix of a SHA-256 DigestInfo: RFC 8017, section 9.2, note 1."""


class KeyIsEncrypted(WrongKey):
    """A private key whose passphrase has not been given."""


def modulus_hash(key: rsa.RSAPublicKey) -> bytes:
    """SHA-256 of the modulus, big-endian without leading zero bytes: what an fssig calls the signer."""
    modulus = key.public_numbers().n
    return hashlib.sha256(modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")).digest()


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An RSA public key of 2048 to 8192 bits, with a public exponent of up to 256."""

    key: rsa.RSAPublicKey
    signer: bytes
    """32 bytes: ``modulus_hash(key)``."""
    name: str
    """Where it came from, for messages."""

    @classmethod
    def from_pem(cls, pem: bytes, name: str) -> PublicKey:
        """Parse a PEM public key.

        Raises:
            UsageError: not one PEM public key, not RSA, not of 2048 to 8192 bits, or one that no key generator makes.
        """
        first, *others = cls.all_from_pem(pem, name)
        if others:
            raise UsageError(f"{name}: {1 + len(others)} public keys, where there must be one: leave one of them")
        return first

    @classmethod
    def all_from_pem(cls, pem: bytes, name: str) -> list[PublicKey]:
        """Parse all the public keys in a PEM file, one at least.

        Raises:
            UsageError: one of them is not what ``from_pem`` takes, or there is something else in it.
        """
        return [cls._from_block(block, name) for block in public_key_blocks(pem, name)]

    @classmethod
    def _from_block(cls, block: PemBlock, name: str) -> PublicKey:
        check_not_pss(block.text, name)
        try:
            key = serialization.load_pem_public_key(block.text)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{name}: not a PEM public key (openssl rsa -in PRIVATE -pubout makes one)") from error
        if not isinstance(key, rsa.RSAPublicKey):
            raise UsageError(f"{name}: not an RSA key")
        fault = fault_of(key)
        if fault is not None:
            raise UsageError(f"{name}: {fault}")
        return cls(key, modulus_hash(key), name)

    @classmethod
    def from_der(cls, der: bytes, name: str) -> PublicKey:
        """Parse a DER SubjectPublicKeyInfo in the one encoding that it has.

        Raises:
            FormatError: it is not that of an RSA key of 2048 to 8192 bits.
        """
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FormatError(f"{name}: not a public key") from error
        if not isinstance(key, rsa.RSAPublicKey) or _der(key) != der:
            raise FormatError(f"{name}: not an RSA key in canonical DER")
        fault = fault_of(key)
        if fault is not None:
            raise FormatError(f"{name}: {fault}")
        return cls(key, modulus_hash(key), name)

    def pem(self) -> str:
        """The key in the one PEM spelling that we write."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()

    def is_same_as(self, other: PublicKey) -> bool:
        """Whether both are the same key, from any source."""
        return self.key.public_numbers() == other.key.public_numbers()

    def verifies(self, root_hash: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's signature of the 32-byte digest ``root_hash``."""
        if self.key.public_numbers().e.bit_length() > _OPENSSL_MAX_EXPONENT_BITS:
            return self._verifies_with_large_exponent(root_hash, signature)
        try:
            self.key.verify(signature, root_hash, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def _verifies_with_large_exponent(self, root_hash: bytes, signature: bytes) -> bool:
        """RFC 8017, section 8.2.2, by the book: build the one encoded message that is right and compare."""
        numbers = self.key.public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        number = int.from_bytes(signature, "big")
        if len(signature) != size or number >= numbers.n:
            return False
        digest_info = _SHA256_DIGEST_INFO + root_hash
        expected = b"\0\1" + b"\xff" * (size - 3 - len(digest_info)) + b"\0" + digest_info
        return hmac.compare_digest(pow(number, numbers.e, numbers.n).to_bytes(size, "big"), expected)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, wherever it is, and its public key."""

    public: PublicKey
    _make: Callable[[bytes], bytes]
    """Makes the signature of a 32-byte digest."""

    @classmethod
    def from_pem_pair(
        cls,
        public_pem: bytes,
        private_pem: bytes | memoryview,
        public_name: str,
        private_name: str,
        passphrase: memoryview | None = None,
    ) -> SigningKey:
        """Parse the two halves of ``--sign PUBLIC:PRIVATE`` and check that they belong together.

        Raises:
            UsageError: one of them is not the PEM RSA key it should be, or they are of two pairs.
            KeyIsEncrypted, WrongKey: as ``from_pem``.
        """
        public = PublicKey.from_pem(public_pem, public_name)
        pair = cls.from_pem(private_pem, private_name, passphrase)
        if not pair.public.is_same_as(public):
            raise UsageError(f"{public_name} is not the public key of {private_name}")
        return pair

    @classmethod
    def from_pem(
        cls, private_pem: bytes | memoryview, private_name: str, passphrase: memoryview | None = None
    ) -> SigningKey:
        """Parse a PEM private key.

        Args:
            passphrase: of an encrypted one, PKCS #8 or traditional.

        Raises:
            KeyIsEncrypted: it is encrypted, and there is no passphrase.
            WrongKey: the passphrase does not decrypt it.
            UsageError: not one, not RSA, or one whose public key ``PublicKey`` refuses; or there is a passphrase, and
                it is not encrypted.
        """
        check_not_pss(private_pem, private_name)
        try:
            # Any buffer will do, whatever its stubs say.
            private = serialization.load_pem_private_key(private_pem, passphrase)  # type: ignore[arg-type]
        except TypeError as error:
            if passphrase is not None:
                raise UsageError(
                    f"{private_name}: a passphrase is given, but the private key is not encrypted"
                ) from error
            raise KeyIsEncrypted(
                f"{private_name}: the private key is encrypted: its passphrase is needed (--sign-passphrase-file)"
            ) from error
        except UnsupportedAlgorithm as error:
            raise UsageError(f"{private_name}: not a PEM private key that can be read: {error}") from error
        except ValueError as error:
            if passphrase is not None:
                raise WrongKey(f"{private_name}: the passphrase does not decrypt the private key") from error
            raise UsageError(f"{private_name}: not a PEM private key") from error
        if not isinstance(private, rsa.RSAPrivateKey):
            raise UsageError(f"{private_name}: not an RSA key")
        public = private.public_key()
        fault = fault_of(public)
        if fault is not None:
            raise UsageError(f"{private_name}: {fault}")
        return cls(PublicKey(public, modulus_hash(public), private_name), partial(_sign, private))

    @property
    def signer(self) -> bytes:
        """What goes into the fssig beside its signatures."""
        return self.public.signer

    def public_der(self) -> bytes:
        """DER SubjectPublicKeyInfo of the public key."""
        return _der(self.public.key)

    def sign(self, root_hash: bytes) -> bytes:
        """Sign a 32-byte digest: ``openssl pkeyutl -sign -pkeyopt digest:sha256 -in ROOT_HASH``.

        Raises:
            WrongKey, MystfuseError: as the key's token does; or what it made is no signature of this digest.
        """
        signature = self._make(root_hash)
        if not self.public.verifies(root_hash, signature):
            raise MystfuseError(
                f"{self.public.name}: what it signed is not verified by its public key: nothing is written"
            )
        return signature


def _sign(key: rsa.RSAPrivateKey, digest: bytes) -> bytes:
    return key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))


def _der(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fault_of(key: rsa.RSAPublicKey) -> str | None:
    """Why a key may sign no images; None if it may. The factors of a modulus that is not a product of two large primes
    are easy to find, and then anyone can sign."""
    numbers = key.public_numbers()
    bits = numbers.n.bit_length()
    if not MIN_KEY_BITS <= bits <= MAX_KEY_BITS:
        return f"an RSA key of {bits} bits; it must have {MIN_KEY_BITS} to {MAX_KEY_BITS}"
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.e.bit_length() > MAX_EXPONENT_BITS:
        return f"an RSA key with an impossible public exponent ({numbers.e.bit_length()} bits)"
    # 2^n - 1 may be a prime.
    if numbers.n % 2 == 0 or numbers.n & (numbers.n + 1) == 0 or math.gcd(numbers.n, _SMALL_PRIMES) != 1:
        return "not an RSA key: its modulus has small factors, so anybody could sign with it"
    if math.isqrt(numbers.n) ** 2 == numbers.n:
        return "not an RSA key: its modulus is a square, so anybody could sign with it"
    return None

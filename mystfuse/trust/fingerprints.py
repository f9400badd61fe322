"""What keys are: the signer that an fssig would name, and whether they may sign images."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from mystfuse.errors import UsageError
from mystfuse.trust.pem import PSS_FAULT, PemBlock, is_pss, key_blocks
from mystfuse.trust.signature import fault_of, modulus_hash

_OTHERS = (
    (ec.EllipticCurvePublicKey, "EC"),
    (ed25519.Ed25519PublicKey, "Ed25519"),
    (ed448.Ed448PublicKey, "Ed448"),
    (dsa.DSAPublicKey, "DSA"),
)


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """The public part of a key."""

    file: str
    is_private: bool
    """Whether the file has its private part, too."""
    type: str
    """``RSA``, ``RSA-PSS``, or another kind of key."""
    signer: str | None = None
    """SHA-256 of the modulus in hex digits, as an fssig has it; None for a key that is not of RSA."""
    bits: int | None = None
    """Of the modulus."""
    exponent: int | None = None
    fault: str | None = None
    """Why it may sign no images; None if it may."""


def describe_keys(pem: bytes, name: str) -> list[KeyFacts]:
    """Describe all the keys in a PEM file, public and private, one at least.

    Raises:
        UsageError: it holds none, or something else; a private key is encrypted, or a key is malformed.
    """
    return [_describe(block, name) for block in key_blocks(pem, name)]


def _describe(block: PemBlock, name: str) -> KeyFacts:
    try:
        if block.is_private:
            key = serialization.load_pem_private_key(block.text, password=None).public_key()
        else:
            key = serialization.load_pem_public_key(block.text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{name}: a malformed key, or one of a kind that nobody uses any more") from error
    if not isinstance(key, rsa.RSAPublicKey):
        kind = next((word for cls, word in _OTHERS if isinstance(key, cls)), "other")
        return KeyFacts(name, block.is_private, kind, fault="not an RSA key")
    is_of_pss = is_pss(block.text)
    return KeyFacts(
        file=name,
        is_private=block.is_private,
        type="RSA-PSS" if is_of_pss else "RSA",
        signer=modulus_hash(key).hex(),
        bits=key.key_size,
        exponent=key.public_numbers().e,
        fault=PSS_FAULT if is_of_pss else fault_of(key),
    )

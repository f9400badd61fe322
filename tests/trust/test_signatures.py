"""Both ways of verifying accept signatures of every exponent alike; signatures are those of the RFC."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mystfuse.errors import NotTrusted
from mystfuse.formats.fssig import Fssig
from mystfuse.trust.policy import TrustPolicy, TrustReason, decide
from mystfuse.trust.signature import SigningKey, modulus_hash
from tests.support.signing_keys import OTHER_ROOT, ROOT, SHA256_PREFIX, Numbers, flipped

SHA512_PREFIX = bytes.fromhex("3051300d060960864801650304020305000440")


def test_a_signature_is_verified_with_every_exponent(numbers: Numbers) -> None:
    assert numbers.public.verifies(ROOT, numbers.sign(ROOT))
    assert not numbers.public.verifies(OTHER_ROOT, numbers.sign(ROOT))


def test_every_wrong_signature_is_refused_with_every_exponent(numbers: Numbers) -> None:
    good = numbers.sign(ROOT)
    right = numbers.encoded(ROOT)
    shorter_padding = b"\0\1" + b"\xff" * 8 + b"\0" + SHA256_PREFIX + ROOT
    without_digest_info = b"\0\1".ljust(numbers.size - 33, b"\xff") + b"\0" + ROOT
    wrong = {
        "empty": b"",
        "zero": bytes(numbers.size),
        "one": bytes(numbers.size - 1) + b"\1",
        "n - 1": (numbers.n - 1).to_bytes(numbers.size, "big"),
        "n": numbers.n.to_bytes(numbers.size, "big"),
        "all ones": b"\xff" * numbers.size,
        "first byte": flipped(good, 0),
        "last byte": flipped(good, -1),
        "cut short": good[:-1],
        "zero behind": good + b"\0",
        "zero before": b"\0" + good,
        "plus n": (int.from_bytes(good, "big") + numbers.n).to_bytes(numbers.size, "big"),
        "plus n, a byte longer": (int.from_bytes(good, "big") + numbers.n).to_bytes(numbers.size + 1, "big"),
        "negated": (numbers.n - int.from_bytes(good, "big")).to_bytes(numbers.size, "big"),
        "backwards": good[::-1],
        "not signed at all": right,
        "block type 2": numbers.raw(b"\0\2" + right[2:]),
        "no leading zero": numbers.raw(b"\1" + right[1:]) if numbers.n >> (numbers.size * 8 - 7) else b"",
        "garbage behind the digest": numbers.raw(shorter_padding.ljust(numbers.size, b"\xaa")),
        "zeros in the padding": numbers.raw(right[:50] + b"\0" + right[51:]),
        "no DigestInfo": numbers.raw(without_digest_info),
        "another hash": numbers.raw(numbers.encoded(ROOT + ROOT, SHA512_PREFIX)),
        "no NULL parameters": numbers.raw(
            numbers.encoded(ROOT, bytes.fromhex("302f300b0609608648016503040201") + b"\4\x20")
        ),
        "hashed once more": numbers.sign(hashlib.sha256(ROOT).digest()),
    }
    public = numbers.public
    assert public.verifies(ROOT, good)
    assert [what for what, signature in wrong.items() if public.verifies(ROOT, signature)] == []


def test_both_ways_of_verifying_agree_with_each_other(large_private: rsa.RSAPrivateKey) -> None:
    numbers = Numbers.of(large_private, 65537)
    public = numbers.public
    for signature in (numbers.sign(ROOT), numbers.sign(OTHER_ROOT), flipped(numbers.sign(ROOT), 7), b"", b"\0"):
        assert public._verifies_with_large_exponent(ROOT, signature) == public.verifies(ROOT, signature)


def test_a_large_exponent_is_trusted_and_forgeries_of_it_are_not(large_private: rsa.RSAPrivateKey) -> None:
    numbers = Numbers.of(large_private, (1 << 80) + 1)
    policy = TrustPolicy(public_keys=(numbers.public,))
    fssig = Fssig(4096, ROOT, numbers.public.signer, numbers.sign(ROOT))
    assert decide(fssig, policy).reason == TrustReason.SIGNATURE
    with pytest.raises(NotTrusted):
        decide(replace(fssig, signature=flipped(fssig.signature, 300)), policy)
    with pytest.raises(NotTrusted):
        decide(replace(fssig, root_hash=OTHER_ROOT), policy)


def test_our_signature_is_the_one_of_the_rfc_over_the_root_hash_itself(
    ours: SigningKey, private: rsa.RSAPrivateKey
) -> None:
    assert ours.sign(ROOT) == Numbers.of(private, 3).sign(ROOT)
    assert len(ours.sign(ROOT)) == 256


def test_the_signer_is_the_hash_of_the_bare_modulus(ours: SigningKey, private: rsa.RSAPrivateKey) -> None:
    modulus = private.public_key().public_numbers().n.to_bytes(256, "big")
    assert modulus[0] >= 0x80
    assert ours.signer == hashlib.sha256(modulus).digest()


def test_the_modulus_of_an_odd_size_is_hashed_without_a_leading_zero() -> None:
    n = (1 << 2052) + 1
    assert modulus_hash(rsa.RSAPublicNumbers(3, n).public_key()) == hashlib.sha256(n.to_bytes(257, "big")).digest()

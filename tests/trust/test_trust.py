"""Who is believed: the five rules of ``decide``, and RSA keys and signatures of every size and exponent."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mystfuse.errors import ExitStatus, NotTrusted, UsageError
from mystfuse.formats.fssig import Fssig
from mystfuse.trust.directory import MAX_SMALL_FILE, read_trust_directory
from mystfuse.trust.policy import TrustPolicy, TrustReason, decide, trust_root_hash, trust_without_tree
from mystfuse.trust.signature import PublicKey, SigningKey, modulus_hash
from mystfuse.trust.sources import collect_trust, parse_root_hash
from tests.support.commands import run

ROOT = hashlib.sha256(b"root").digest()
OTHER_ROOT = hashlib.sha256(b"another root").digest()
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
SHA512_PREFIX = bytes.fromhex("3051300d060960864801650304020305000440")


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
        """The primes of ``key`` with the first public exponent from ``least_exponent`` on that goes with them."""
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
        """The signature that opens to ``encoded``."""
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


@pytest.fixture(scope="module")
def private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 2048)


@pytest.fixture(scope="module")
def other_private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def large_private() -> rsa.RSAPrivateKey:
    """Above 3072 bits, where OpenSSL limits the exponent; not whole bytes: a signature plus n fits its field."""
    return rsa.generate_private_key(3, 3196)


@pytest.fixture(scope="module")
def ours(private: rsa.RSAPrivateKey) -> SigningKey:
    return SigningKey.from_pem_pair(public_pem(private.public_key()), private_pem(private), "our.pub", "our.key")


@pytest.fixture(scope="module")
def theirs(other_private: rsa.RSAPrivateKey) -> SigningKey:
    public = public_pem(other_private.public_key())
    return SigningKey.from_pem_pair(public, private_pem(other_private), "their.pub", "their.key")


@pytest.fixture(scope="module")
def our_public(private: rsa.RSAPrivateKey) -> PublicKey:
    return PublicKey.from_pem(public_pem(private.public_key()), "our.pub")


@pytest.fixture(scope="module")
def their_public(other_private: rsa.RSAPrivateKey) -> PublicKey:
    return PublicKey.from_pem(public_pem(other_private.public_key()), "their.pub")


def unsigned(root: bytes = ROOT) -> Fssig:
    return Fssig(4096, root)


def signed(key: SigningKey, root: bytes = ROOT) -> Fssig:
    return Fssig(4096, root, key.signer, key.sign(root))


def flipped(data: bytes, index: int) -> bytes:
    changed = bytearray(data)
    changed[index] ^= 1
    return bytes(changed)


# -- decide


def test_an_image_signed_by_a_trusted_key_is_trusted(ours: SigningKey, our_public: PublicKey) -> None:
    trust = decide(signed(ours), TrustPolicy(public_keys=(our_public,)))
    assert (trust.reason, trust.root_hash, trust.signer) == (TrustReason.SIGNATURE, ROOT, ours.signer)
    assert "our.pub" in trust.explanation
    assert trust.is_vouched_for


def test_an_image_signed_by_another_key_is_refused(
    ours: SigningKey, theirs: SigningKey, their_public: PublicKey
) -> None:
    with pytest.raises(NotTrusted, match=f"signer {ours.signer.hex()} is not a trusted public key") as caught:
        decide(signed(ours), TrustPolicy(public_keys=(their_public,)))
    assert caught.value.exit_status == ExitStatus.NOT_TRUSTED


@pytest.mark.parametrize("index", [0, 100, 255])
def test_a_tampered_signature_is_refused(ours: SigningKey, our_public: PublicKey, index: int) -> None:
    fssig = signed(ours)
    with pytest.raises(NotTrusted, match=r"signature of .* is wrong"):
        decide(replace(fssig, signature=flipped(fssig.signature, index)), TrustPolicy(public_keys=(our_public,)))


def test_a_signature_of_another_root_hash_is_refused(ours: SigningKey, our_public: PublicKey) -> None:
    with pytest.raises(NotTrusted, match=OTHER_ROOT.hex()):
        decide(replace(signed(ours), root_hash=OTHER_ROOT), TrustPolicy(public_keys=(our_public,)))


def test_naming_our_signer_does_not_help_somebody_elses_signature(
    ours: SigningKey, theirs: SigningKey, our_public: PublicKey
) -> None:
    forged = Fssig(4096, ROOT, ours.signer, theirs.sign(ROOT))
    with pytest.raises(NotTrusted, match=r"names trusted signer .* is wrong"):
        decide(forged, TrustPolicy(public_keys=(our_public,)))


def test_our_signature_under_another_signers_name_is_refused(
    ours: SigningKey, theirs: SigningKey, our_public: PublicKey
) -> None:
    for signer in (theirs.signer, bytes(32), flipped(ours.signer, 31)):
        with pytest.raises(NotTrusted):
            decide(Fssig(4096, ROOT, signer, ours.sign(ROOT)), TrustPolicy(public_keys=(our_public,)))


def test_each_signature_is_checked_with_the_key_it_names(
    ours: SigningKey, theirs: SigningKey, our_public: PublicKey, their_public: PublicKey
) -> None:
    forged = Fssig(4096, ROOT, ours.signer, theirs.sign(ROOT))
    with pytest.raises(NotTrusted):
        decide(forged, TrustPolicy(public_keys=(our_public, their_public)))


def test_an_unsigned_image_that_names_our_signer_is_refused(ours: SigningKey, our_public: PublicKey) -> None:
    with pytest.raises(NotTrusted, match="unsigned"):
        decide(Fssig(4096, ROOT, ours.signer, b""), TrustPolicy(public_keys=(our_public,)))


def test_a_signature_cut_short_or_with_bytes_behind_it_is_refused(ours: SigningKey, our_public: PublicKey) -> None:
    good = signed(ours)
    for signature in (
        good.signature[:-1],
        good.signature[:1],
        good.signature + b"\0",
        good.signature.ljust(1024, b"\0"),
    ):
        with pytest.raises(NotTrusted):
            decide(replace(good, signature=signature), TrustPolicy(public_keys=(our_public,)))


def test_a_listed_root_hash_is_trusted_signed_or_not(ours: SigningKey) -> None:
    for fssig in (unsigned(), signed(ours), replace(signed(ours), signature=b"rubbish")):
        trust = decide(fssig, TrustPolicy(root_hashes=frozenset([ROOT])))
        assert (trust.reason, trust.root_hash, trust.signer) == (TrustReason.ROOT_HASH, ROOT, None)
        assert trust.is_vouched_for


def test_a_root_hash_that_is_not_listed_is_refused(ours: SigningKey) -> None:
    policy = TrustPolicy(root_hashes=frozenset([OTHER_ROOT, ROOT[:31], ROOT + b"\0", b""]))
    with pytest.raises(NotTrusted, match=f"unsigned and its root hash {ROOT.hex()}"):
        decide(unsigned(), policy)
    with pytest.raises(NotTrusted, match=f"{ROOT.hex()} is not a trusted root hash"):
        decide(signed(ours), policy)


def test_any_one_of_several_keys_and_root_hashes_is_enough(
    ours: SigningKey, theirs: SigningKey, our_public: PublicKey, their_public: PublicKey
) -> None:
    third = hashlib.sha256(b"third").digest()
    policy = TrustPolicy(frozenset([ROOT, OTHER_ROOT]), (our_public, their_public))
    assert decide(signed(ours, third), policy).signer == ours.signer
    assert decide(signed(theirs, third), policy).signer == theirs.signer
    assert decide(unsigned(OTHER_ROOT), policy).reason == TrustReason.ROOT_HASH
    assert decide(unsigned(ROOT), policy).reason == TrustReason.ROOT_HASH
    with pytest.raises(NotTrusted):
        decide(unsigned(third), policy)


def test_the_signature_counts_before_the_root_hash(ours: SigningKey, our_public: PublicKey) -> None:
    trust = decide(signed(ours), TrustPolicy(frozenset([ROOT]), (our_public,), trust_self=True, insecure=True))
    assert trust.reason == TrustReason.SIGNATURE


def test_a_listed_root_hash_makes_up_for_a_wrong_signature(ours: SigningKey, our_public: PublicKey) -> None:
    fssig = replace(signed(ours), signature=bytes(256))
    assert decide(fssig, TrustPolicy(frozenset([ROOT]), (our_public,))).reason == TrustReason.ROOT_HASH


def test_insecure_lets_anything_through_and_says_so(ours: SigningKey, their_public: PublicKey) -> None:
    for fssig in (unsigned(), signed(ours), replace(signed(ours), signature=b"rubbish")):
        for policy in (
            TrustPolicy(insecure=True),
            TrustPolicy(frozenset([OTHER_ROOT]), (their_public,), insecure=True),
            TrustPolicy(insecure=True, trust_self=True),
        ):
            trust = decide(fssig, policy)
            assert (trust.reason, trust.root_hash, trust.signer) == (TrustReason.INSECURE, ROOT, None)
            assert not trust.is_vouched_for


def test_insecure_does_not_hide_that_an_image_is_trusted(ours: SigningKey, our_public: PublicKey) -> None:
    assert decide(unsigned(), TrustPolicy(frozenset([ROOT]), insecure=True)).reason == TrustReason.ROOT_HASH
    assert decide(signed(ours), TrustPolicy(public_keys=(our_public,), insecure=True)).is_vouched_for


def test_an_image_vouches_for_itself_only_when_nobody_is_trusted(ours: SigningKey, their_public: PublicKey) -> None:
    for fssig in (unsigned(), signed(ours)):
        trust = decide(fssig, TrustPolicy(trust_self=True))
        assert (trust.reason, trust.root_hash, trust.signer) == (TrustReason.SELF, ROOT, None)
        assert not trust.is_vouched_for
        for policy in (
            TrustPolicy(root_hashes=frozenset([OTHER_ROOT]), trust_self=True),
            TrustPolicy(public_keys=(their_public,), trust_self=True),
        ):
            with pytest.raises(NotTrusted):
                decide(fssig, policy)


def test_with_nobody_trusted_everything_is_refused_and_told_what_would_help(ours: SigningKey) -> None:
    for fssig in (unsigned(), signed(ours)):
        with pytest.raises(NotTrusted, match=f"{ROOT.hex()}.*--roothash or --pubkey"):
            decide(fssig, TrustPolicy())


def test_a_root_hash_given_outright_is_trusted_and_no_tree_is_not() -> None:
    assert trust_root_hash(ROOT).is_vouched_for
    assert trust_root_hash(ROOT).root_hash == ROOT
    assert not trust_without_tree().is_vouched_for
    assert trust_without_tree().root_hash is None


# -- signatures


@pytest.fixture(
    scope="module",
    params=[3, 17, 65537, (1 << 33) + 1, (1 << 63) + 1, (1 << 64) + 1, (1 << 200) + 1],
    ids=["3", "17", "65537", "over 2^33", "over 2^63", "over 64 bits", "over 200 bits"],
)
def numbers(request: pytest.FixtureRequest, large_private: rsa.RSAPrivateKey) -> Iterator[Numbers]:
    """One modulus of 3196 bits with public exponents small and large."""
    yield Numbers.of(large_private, request.param)


def test_a_signature_is_verified_whatever_the_exponent(numbers: Numbers) -> None:
    assert numbers.public.verifies(ROOT, numbers.sign(ROOT))
    assert not numbers.public.verifies(OTHER_ROOT, numbers.sign(ROOT))


def test_every_wrong_signature_is_refused_whatever_the_exponent(numbers: Numbers) -> None:
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


# -- keys


@pytest.mark.parametrize("bits", [1024, 2047, 8193, 16384])
def test_a_key_of_the_wrong_size_is_refused(bits: int) -> None:
    key = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()
    with pytest.raises(UsageError, match=rf"key\.pem: an RSA key of {bits} bits"):
        PublicKey.from_pem(public_pem(key), "key.pem")


@pytest.mark.parametrize("bits", [2048, 2049, 3072, 8192])
def test_keys_from_2048_to_8192_bits_are_taken(bits: int) -> None:
    modulus = (1 << (bits - 1)) + 1
    while math.gcd(modulus, math.factorial(751)) != 1:
        modulus += 2
    key = rsa.RSAPublicNumbers(65537, modulus).public_key()
    assert PublicKey.from_pem(public_pem(key), "key.pem").key.key_size == bits


@pytest.mark.parametrize(
    "modulus",
    [
        1 << 2047,
        (1 << 2047) + 2,
        (1 << 2048) - 1,
        (1 << 2203) - 1,
        (1 << 2281) - 1,
        751 * ((1 << 2047) + 1),
        ((1 << 1279) - 1) ** 2,
    ],
    ids=["2^2047", "even", "2^2048-1", "a Mersenne prime", "another", "divisible by 751", "a square"],
)
def test_a_modulus_that_anybody_can_factor_is_no_key(modulus: int) -> None:
    numbers = [
        b"\x02",
        der_length(modulus.bit_length() // 8 + 1),
        modulus.to_bytes(modulus.bit_length() // 8 + 1, "big"),
    ]
    body = b"".join(numbers) + bytes.fromhex("0203010001")
    pkcs1 = b"\x30" + der_length(len(body)) + body
    pem = b"-----BEGIN RSA PUBLIC KEY-----\n%s-----END RSA PUBLIC KEY-----\n" % base64.encodebytes(pkcs1)
    with pytest.raises(UsageError, match=r"key\.pem: (not an RSA key: its modulus|not a PEM public key)"):
        PublicKey.from_pem(pem, "key.pem")


def der_length(length: int) -> bytes:
    return b"\x82" + length.to_bytes(2, "big")


def test_an_exponent_that_takes_seconds_to_check_with_is_refused(large_private: rsa.RSAPrivateKey) -> None:
    n = large_private.public_key().public_numbers().n
    assert PublicKey.from_pem(public_pem(rsa.RSAPublicNumbers((1 << 255) + 1, n).public_key()), "key.pem")
    with pytest.raises(UsageError, match=r"key\.pem: an RSA key with an impossible public exponent \(257 bits\)"):
        PublicKey.from_pem(public_pem(rsa.RSAPublicNumbers((1 << 256) + 1, n).public_key()), "key.pem")


def test_a_small_key_pair_cannot_sign() -> None:
    small = rsa.generate_private_key(65537, 1024)
    with pytest.raises(UsageError, match="1024 bits"):
        SigningKey.from_pem_pair(public_pem(small.public_key()), private_pem(small), "public", "private")


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_an_exponent_with_which_anybody_could_sign_is_refused(private: rsa.RSAPrivateKey, exponent: int) -> None:
    der = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert der.endswith(b"\x02\x01\x03")

    pem = b"-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n" % base64.encodebytes(der[:-1] + bytes([exponent]))
    with pytest.raises(UsageError):
        PublicKey.from_pem(pem, "key.pem")


def test_a_key_that_is_not_rsa_is_refused(ours: SigningKey, our_public: PublicKey) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    for public in (curve.public_key(), ed25519.Ed25519PrivateKey.generate().public_key()):
        with pytest.raises(UsageError, match=r"key\.pem: not an RSA key"):
            PublicKey.from_pem(public_pem(public), "key.pem")
    with pytest.raises(UsageError, match="private: not an RSA key"):
        SigningKey.from_pem_pair(public_pem(our_public.key), private_pem(curve), "public", "private")


def garbage(good: bytes) -> dict[str, bytes]:
    lines = good.splitlines(keepends=True)
    return {
        "nothing": b"",
        "text": b"not a key\n",
        "binary": bytes(range(256)),
        "header alone": lines[0],
        "no end": b"".join(lines[:-1]),
        "a line missing": b"".join(lines[:2] + lines[3:]),
        "not base64": good.replace(lines[2], b"!" * 64 + b"\n"),
        "empty body": lines[0] + lines[-1],
        "UTF-16": good.decode().encode("utf-16"),
    }


@pytest.mark.parametrize("what", garbage(b"a\nb\nc\nd\n"))
def test_garbage_is_not_a_public_key(private: rsa.RSAPrivateKey, what: str) -> None:
    with pytest.raises(UsageError, match=r"key\.pem: not a PEM public key"):
        PublicKey.from_pem(garbage(public_pem(private.public_key()))[what], "key.pem")


@pytest.mark.parametrize("what", garbage(b"a\nb\nc\nd\n"))
def test_garbage_is_not_a_private_key(private: rsa.RSAPrivateKey, what: str) -> None:
    public, bad = public_pem(private.public_key()), garbage(private_pem(private))[what]
    with pytest.raises(UsageError, match=r"private\.pem: not a PEM private key"):
        SigningKey.from_pem_pair(public, bad, "public.pem", "private.pem")


def test_the_two_halves_may_not_change_places(private: rsa.RSAPrivateKey) -> None:
    public, secret = public_pem(private.public_key()), private_pem(private)
    with pytest.raises(UsageError, match="not a PEM public key"):
        PublicKey.from_pem(secret, "key.pem")
    with pytest.raises(UsageError, match="b: not a PEM private key"):
        SigningKey.from_pem_pair(public, public, "a", "b")


def test_a_file_with_two_public_keys_is_both_of_them_or_refused(
    our_public: PublicKey, their_public: PublicKey, private: rsa.RSAPrivateKey
) -> None:
    both = f"# ours\n{our_public.pem()}# theirs\n{their_public.pem()}".encode()
    assert [key.signer for key in PublicKey.all_from_pem(both, "k")] == [our_public.signer, their_public.signer]
    with pytest.raises(UsageError, match="k: 2 public keys, where there must be one"):
        PublicKey.from_pem(both, "k")
    with pytest.raises(UsageError, match=r"public\.pem: 2 public keys"):
        SigningKey.from_pem_pair(both, private_pem(private), "public.pem", "private.pem")
    for broken in (both[:-20], both.replace(b"-----END", b"-----EDN", 1), both + b"-----BEGIN PUBLIC KEY-----\n"):
        with pytest.raises(UsageError, match="k: not a PEM public key"):
            PublicKey.all_from_pem(broken, "k")


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that people take for public keys, made by the tools that make them."""
    directory = tmp_path_factory.mktemp("mistaken")
    for command in (
        "openssl genrsa -out private 2048",
        "openssl rsa -in private -pubout -out public",
        "openssl rsa -in private -traditional -out traditional",
        "openssl rsa -in private -pubout -outform DER -out der",
        "openssl req -new -x509 -key private -subj /CN=x -out certificate",
        "openssl req -new -key private -subj /CN=x -out request",
        "openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out pss-private",
        "openssl pkey -in pss-private -pubout -out pss",
        "cp private ssh",
        "chmod 600 ssh",
    ):
        run(*command.split(), cwd=directory)
    with (directory / "certificate").open("ab") as file:
        file.write((directory / "public").read_bytes())
    return directory


@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [
        ("private", "a private key, not a public key", "openssl pkey -in private -pubout -out KEY.pem"),
        ("traditional", "a private key, not a public key", "openssl pkey -in traditional -pubout -out KEY.pem"),
        ("certificate", "a certificate, not a public key", "openssl x509 -in certificate -noout -pubkey > KEY.pem"),
        ("request", "a certificate request", "openssl req -in request -noout -pubkey > KEY.pem"),
        ("der", "DER, it seems", "openssl pkey -pubin -inform DER -in der -out KEY.pem"),
    ],
)
def test_what_is_taken_for_a_public_key_is_named_with_what_makes_it_one(
    mistaken: Path, name: str, message: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=f"{name}: not a PEM public key.*{message}") as caught:
        PublicKey.from_pem((mistaken / name).read_bytes(), name)
    assert remedy in str(caught.value)
    run("sh", "-c", remedy, cwd=mistaken)
    assert PublicKey.from_pem((mistaken / "KEY.pem").read_bytes(), "").is_same_as(
        PublicKey.from_pem((mistaken / "public").read_bytes(), "")
    )


def test_keys_of_ssh_are_named(private: rsa.RSAPrivateKey) -> None:
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    with pytest.raises(UsageError, match=r"k: not a PEM public key but one of ssh .ssh-keygen -e -m PKCS8 -f k"):
        PublicKey.from_pem(public, "k")
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    with pytest.raises(UsageError, match=r"a private key of ssh, not a public key .*ssh-keygen -y -f k"):
        PublicKey.from_pem(secret, "k")


def test_an_rsa_pss_key_is_refused_by_name(mistaken: Path, private: rsa.RSAPrivateKey) -> None:
    """openssl makes and accepts no PKCS #1 v1.5 signature with one."""
    with pytest.raises(UsageError, match="k: an RSA-PSS key"):
        PublicKey.from_pem((mistaken / "pss").read_bytes(), "k")
    with pytest.raises(UsageError, match="private: an RSA-PSS key"):
        SigningKey.from_pem((mistaken / "pss-private").read_bytes(), "private")


def test_an_encrypted_private_key_is_told_as_such(private: rsa.RSAPrivateKey) -> None:
    encrypted = [
        private_pem(private, b"password"),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"password"),
        ),
    ]
    for pem in encrypted:
        with pytest.raises(UsageError, match=r"private\.pem: the private key is encrypted"):
            SigningKey.from_pem_pair(public_pem(private.public_key()), pem, "public.pem", "private.pem")


def test_the_halves_of_two_pairs_do_not_go_together(
    private: rsa.RSAPrivateKey, other_private: rsa.RSAPrivateKey
) -> None:
    with pytest.raises(UsageError, match=r"public\.pem is not the public key of private\.pem"):
        SigningKey.from_pem_pair(
            public_pem(private.public_key()), private_pem(other_private), "public.pem", "private.pem"
        )


def test_the_same_modulus_with_another_exponent_is_another_pair(private: rsa.RSAPrivateKey) -> None:
    other = rsa.RSAPublicNumbers(5, private.public_key().public_numbers().n).public_key()
    with pytest.raises(UsageError, match="is not the public key of"):
        SigningKey.from_pem_pair(public_pem(other), private_pem(private), "public.pem", "private.pem")


def test_old_style_pem_is_read_as_well(private: rsa.RSAPrivateKey, ours: SigningKey) -> None:
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert SigningKey.from_pem_pair(public, secret, "public.pem", "private.pem").signer == ours.signer


# -- where trust comes from


def test_a_hash_offset_goes_with_one_root_hash_and_no_key(our_public: PublicKey) -> None:
    for hashes, keys in (([], []), ([bytes(32)] * 2, []), ([bytes(32)], [our_public])):
        with pytest.raises(UsageError, match="--hash-offset"):
            collect_trust(hashes, keys, False, 4096, trust_self=True)
    options = collect_trust([bytes(32)], [], False, 4096, trust_self=True)
    assert (options.hash_offset, options.root_hash, options.policy.trust_self) == (4096, bytes(32), False)


def test_a_root_hash_is_hex_digits_or_a_file_with_them(tmp_path: Path) -> None:
    digest = hashlib.sha512(b"root").digest()
    for found in digest, digest[:32]:
        (tmp_path / "hash").write_text(f" {found.hex().upper()}\n")
        assert parse_root_hash(str(tmp_path / "hash")) == parse_root_hash(found.hex()) == found
    for text in "", "ab", "g" * 64, digest[:33].hex():
        (tmp_path / "hash").write_text(text)
        with pytest.raises(UsageError, match="root hash"):
            parse_root_hash(str(tmp_path / "hash"))
    (tmp_path / "hash").write_bytes(bytes(MAX_SMALL_FILE + 1))
    with pytest.raises(UsageError, match="too large"):
        parse_root_hash(str(tmp_path / "hash"))
    with pytest.raises(UsageError, match="No such file"):
        parse_root_hash(str(tmp_path / "missing"))


@pytest.fixture
def directory(tmp_path: Path, our_public: PublicKey) -> Path:
    """A trust directory with a root hash and a key."""
    directory = tmp_path / "trust.d"
    directory.mkdir(mode=0o755)
    for name, text in ("b.roothash", bytes(range(32)).hex()), ("a.pem", our_public.pem()):
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
    return directory


def test_a_trust_directory_is_read_whole(directory: Path, our_public: PublicKey, their_public: PublicKey) -> None:
    hashes, (key,) = read_trust_directory(directory)
    assert hashes == [bytes(range(32))] and key.is_same_as(our_public)
    (directory / "a.pem").write_text(our_public.pem() + "between them\n" + their_public.pem())
    _, keys = read_trust_directory(directory)
    assert [key.signer for key in keys] == [our_public.signer, their_public.signer]
    # Links are followed, of files and on the way.
    (directory.parent / "elsewhere").mkdir()
    (directory / "a.pem").rename(directory.parent / "elsewhere" / "a.pem")
    (directory / "a.pem").symlink_to("../elsewhere/a.pem")
    directory.rename(directory.parent / "elsewhere" / "trust.d")
    directory.symlink_to(directory.parent / "elsewhere" / "trust.d")
    (directory.parent / "elsewhere" / "trust.d" / "a.pem").unlink()
    (directory / "c.pem").symlink_to("../a.pem")
    assert len(read_trust_directory(directory)[1]) == 2


def test_only_a_trust_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_trust_directory(tmp_path / "trust.d") == ([], [])
    assert read_trust_directory(tmp_path / "neither" / "trust.d") == ([], [])
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_trust_directory(tmp_path / "link" / "trust.d") == ([], [])
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path, complaint in (
        ("file", "a regular file, where a directory must be|neither|Not a directory"),
        ("file/trust.d", "Not a directory"),
        ("dangling", "leads to .*nowhere, which is not there"),
        ("dangling/trust.d", "leads to .*nowhere, which is not there"),
        ("loop", "too many symbolic links"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=complaint) as caught:
            read_trust_directory(tmp_path / path)
        assert str(caught.value).startswith(str(tmp_path / path))


@pytest.mark.parametrize(
    "name",
    [
        "k.PEM",
        "k.pub",
        "k.pem.disabled",
        "k.pem~",
        ".k.pem",
        "#k.pem#",
        "README",
        "k",
        "k.roothash.bak",
        "k.pem.dpkg-new",
    ],
)
def test_a_name_that_is_not_understood_refuses_the_trust_directory(directory: Path, name: str) -> None:
    (directory / name).write_bytes((directory / "a.pem").read_bytes())
    with pytest.raises(UsageError, match="not understood: only") as caught:
        read_trust_directory(directory)
    assert str(caught.value).startswith(f"{directory / name}: ")


def test_what_is_no_file_refuses_the_trust_directory(directory: Path) -> None:
    def socket_at(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))

    makers: dict[str, Callable[[Path], object]] = {
        "which is not there": lambda path: path.symlink_to("nowhere"),
        "a FIFO": os.mkfifo,
        "a directory": lambda path: path.mkdir(),
        "a socket": socket_at,
        "a device": lambda path: path.symlink_to("/dev/null"),
        "too large": lambda path: path.write_bytes(bytes(MAX_SMALL_FILE + 1)),
        "not a PEM public key": lambda path: path.write_text("nothing"),
    }
    for complaint, make in makers.items():
        path = directory / "k.pem"
        make(path)
        with pytest.raises(UsageError, match=complaint) as caught:
            read_trust_directory(directory)
        assert str(caught.value).startswith(f"{path}: "), complaint
        path.rmdir() if path.is_dir() else path.unlink()
    assert read_trust_directory(directory)
    (directory / "c.roothash").write_text("nothing")
    with pytest.raises(UsageError, match=r"c\.roothash: not a root hash"):
        read_trust_directory(directory)


def test_signers_have_no_root_hashes(directory: Path) -> None:
    with pytest.raises(UsageError, match=r"b\.roothash: not understood: only \*\.pem may be here"):
        read_trust_directory(directory, takes_root_hashes=False)
    (directory / "b.roothash").unlink()
    assert len(read_trust_directory(directory, takes_root_hashes=False)[1]) == 1


def test_what_others_may_write_to_is_not_trusted(directory: Path) -> None:
    parent = directory.parent
    for path in (directory / "a.pem", directory, parent):
        before = path.stat().st_mode & 0o7777
        for bits in 0o020, 0o002:
            path.chmod(before | bits)
            with pytest.raises(UsageError, match=f"others may write to {path} .*chmod go-w {path}"):
                read_trust_directory(directory)
        path.chmod(before)
    # The sticky bit protects what is there, not what is not.
    parent.chmod(0o1777)
    assert read_trust_directory(directory)
    with pytest.raises(UsageError, match="others may write to"):
        read_trust_directory(parent / "trust.e")
    parent.chmod(0o755)
    directory.chmod(0o1777)
    with pytest.raises(UsageError, match="others may write to"):
        read_trust_directory(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: for root")
def test_what_belongs_to_others_is_not_trusted(directory: Path) -> None:
    (directory.parent / "file").write_bytes((directory / "a.pem").read_bytes())
    (directory / "c.pem").symlink_to("../file")
    for path in (directory / "a.pem", directory / "c.pem", directory.parent / "file", directory):
        os.chown(path, 12345, 0, follow_symlinks=False)
        with pytest.raises(UsageError, match=f"{path} belongs to user 12345"):
            read_trust_directory(directory)
        os.chown(path, 0, 0, follow_symlinks=False)
    assert len(read_trust_directory(directory)[1]) == 2

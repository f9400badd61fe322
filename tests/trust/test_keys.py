"""Which files are RSA keys, which of those we trust or sign with, and how the refusal names the others."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mystfuse.errors import MystfuseError, UsageError, WrongKey
from mystfuse.trust.signature import KeyIsEncrypted, PublicKey, SigningKey
from tests.support.commands import run
from tests.support.signing_keys import ROOT, private_pem, public_pem


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
def test_a_modulus_that_is_easy_to_factor_is_no_key(modulus: int) -> None:
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
def test_an_exponent_that_makes_forging_easy_is_refused(private: rsa.RSAPrivateKey, exponent: int) -> None:
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
    """Files that people mistake for public keys, made by the usual tools."""
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
def test_files_mistaken_for_public_keys_are_named_with_the_command_that_converts_them(
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
    """openssl neither makes nor accepts a PKCS #1 v1.5 signature with one."""
    with pytest.raises(UsageError, match="k: an RSA-PSS key"):
        PublicKey.from_pem((mistaken / "pss").read_bytes(), "k")
    with pytest.raises(UsageError, match="private: an RSA-PSS key"):
        SigningKey.from_pem((mistaken / "pss-private").read_bytes(), "private")


def test_an_encrypted_private_key_needs_its_passphrase(private: rsa.RSAPrivateKey) -> None:
    encrypted = [
        private_pem(private, b"password"),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"password"),
        ),
    ]
    for pem in encrypted:
        with pytest.raises(KeyIsEncrypted, match=r"private\.pem: the private key is encrypted"):
            SigningKey.from_pem_pair(public_pem(private.public_key()), pem, "public.pem", "private.pem")
        for wrong in b"passwort", b"password\n", b"p", b"x" * 1000:
            with pytest.raises(WrongKey, match=r"private\.pem: the passphrase does not decrypt the private key"):
                SigningKey.from_pem(pem, "private.pem", memoryview(wrong))
        assert SigningKey.from_pem(pem, "private.pem", memoryview(b"password")).public.key == private.public_key()


def test_a_passphrase_for_a_key_that_is_not_encrypted_is_a_mistake(private: rsa.RSAPrivateKey) -> None:
    with pytest.raises(UsageError, match=r"private\.pem: a passphrase is given, but the private key is not encrypted"):
        SigningKey.from_pem(private_pem(private), "private.pem", memoryview(b"password"))


def test_what_is_no_signature_by_the_public_key_is_never_returned(our_public: PublicKey) -> None:
    """Whatever a token gives back."""
    for made in b"", bytes(256), ROOT, b"\xff" * 256:
        with pytest.raises(MystfuseError, match="is not verified by its public key: nothing is written"):
            SigningKey(our_public, lambda digest, made=made: made).sign(ROOT)  # type: ignore[misc]


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

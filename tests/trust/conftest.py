"""Keys of two signers, images signed by them, and a trust directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mystfuse.trust.signature import PublicKey, SigningKey
from tests.support.commands import mystfuse
from tests.support.signed_images import MakeKeys
from tests.support.signing_keys import Numbers, private_pem, public_pem


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
def our_public(private: rsa.RSAPrivateKey) -> PublicKey:
    return PublicKey.from_pem(public_pem(private.public_key()), "our.pub")


@pytest.fixture(scope="module")
def their_public(other_private: rsa.RSAPrivateKey) -> PublicKey:
    return PublicKey.from_pem(public_pem(other_private.public_key()), "their.pub")


@pytest.fixture(
    scope="module",
    params=[3, 17, 65537, (1 << 33) + 1, (1 << 63) + 1, (1 << 64) + 1, (1 << 200) + 1],
    ids=["3", "17", "65537", "over 2^33", "over 2^63", "over 64 bits", "over 200 bits"],
)
def numbers(request: pytest.FixtureRequest, large_private: rsa.RSAPrivateKey) -> Iterator[Numbers]:
    """One modulus of 3196 bits with public exponents small and large."""
    yield Numbers.of(large_private, request.param)


@pytest.fixture
def directory(tmp_path: Path, our_public: PublicKey) -> Path:
    """A trust directory with a root hash and a key."""
    directory = tmp_path / "trust.d"
    directory.mkdir(mode=0o755)
    for name, text in ("b.roothash", bytes(range(32)).hex()), ("a.pem", our_public.pem()):
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
    return directory


@pytest.fixture(scope="module")
def alice(make_keys: MakeKeys) -> tuple[Path, Path]:
    return make_keys("alice", 2048, 65537)


@pytest.fixture(scope="module")
def bob(make_keys: MakeKeys) -> tuple[Path, Path]:
    return make_keys("bob", 2048, 65537)


@pytest.fixture(scope="module")
def signed(alice: tuple[Path, Path], small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image signed by alice. Tests must not write to it."""
    image = tmp_path_factory.mktemp("signed") / "signed.img"
    assert mystfuse("mkext2", f"--sign={alice[0]}:{alice[1]}", small_tree, image).returncode == 0
    return image

"""What a signed package trusts: its lists, and for a mount that has a root hash or key of its own, these alone."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mystfuse.errors import FormatError
from mystfuse.formats.configuration import Configuration, MountEntry, MountType
from mystfuse.formats.package import PackageContents
from mystfuse.trust.package import Package
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.signature import PublicKey
from tests.support.signing_keys import public_pem

LISTED, OWN = "ab" * 32, "cd" * 32


@pytest.fixture
def listed_pem(private: rsa.RSAPrivateKey) -> str:
    return public_pem(private.public_key()).decode()


@pytest.fixture
def own_pem(other_private: rsa.RSAPrivateKey) -> str:
    return public_pem(other_private.public_key()).decode()


@pytest.fixture
def package(listed_pem: str, our_public: PublicKey) -> Package:
    return Package(PackageContents(Configuration("/a"), (LISTED,), (listed_pem,)), our_public, True)


def mount(root_hash: str | None = None, public_key: str | None = None) -> MountEntry:
    return MountEntry("/x", MountType.EXT2, False, public_key, root_hash)


def trusted(policy: TrustPolicy) -> tuple[set[str], list[bytes]]:
    assert not policy.trust_self
    return {digest.hex() for digest in policy.root_hashes}, [key.signer for key in policy.public_keys]


def test_the_lists_are_all_that_the_root_file_system_is_trusted_by(package: Package, our_public: PublicKey) -> None:
    for entry in None, mount():
        assert trusted(package.policy(entry)) == ({LISTED}, [our_public.signer])
    assert not package.policy().insecure


def test_a_mount_with_a_root_hash_or_key_of_its_own_is_trusted_by_these_alone(
    package: Package, own_pem: str, their_public: PublicKey
) -> None:
    assert trusted(package.policy(mount(root_hash=OWN))) == ({OWN}, [])
    assert trusted(package.policy(mount(public_key=own_pem))) == (set(), [their_public.signer])
    assert trusted(package.policy(mount(OWN, own_pem))) == ({OWN}, [their_public.signer])


def test_debug_loads_any_image(our_public: PublicKey) -> None:
    package = Package(PackageContents(Configuration("/a", is_debug=True)), our_public, True)
    assert package.policy().insecure and package.policy(mount(OWN)).insecure


@pytest.mark.parametrize("pem", ["no key", "schlüssel"])
def test_a_key_that_is_none_is_refused(package: Package, pem: str) -> None:
    with pytest.raises(FormatError, match=r"^a signed package with impossible contents: .*of the package"):
        package.policy(mount(public_key=pem))

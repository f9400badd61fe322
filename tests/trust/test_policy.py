"""The images that a policy trusts: signed by a trusted key, by root hash, by themselves when no key is trusted, or
all."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mystfuse.errors import ExitStatus, NotTrusted
from mystfuse.formats.fssig import Fssig
from mystfuse.trust.policy import TrustPolicy, TrustReason, decide, trust_root_hash, trust_without_tree
from mystfuse.trust.signature import PublicKey, SigningKey
from tests.support.signing_keys import OTHER_ROOT, ROOT, flipped, private_pem, public_pem


@pytest.fixture(scope="module")
def theirs(other_private: rsa.RSAPrivateKey) -> SigningKey:
    public = public_pem(other_private.public_key())
    return SigningKey.from_pem_pair(public, private_pem(other_private), "their.pub", "their.key")


def unsigned(root: bytes = ROOT) -> Fssig:
    return Fssig(4096, root)


def signed(key: SigningKey, root: bytes = ROOT) -> Fssig:
    return Fssig(4096, root, key.signer, key.sign(root))


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


def test_naming_our_signer_does_not_help_another_signers_signature(
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


def test_an_image_is_trusted_by_itself_only_when_no_key_is_trusted(ours: SigningKey, their_public: PublicKey) -> None:
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


def test_without_trusted_keys_every_image_is_refused_with_advice(ours: SigningKey) -> None:
    for fssig in (unsigned(), signed(ours)):
        with pytest.raises(NotTrusted, match=f"{ROOT.hex()}.*--roothash or --pubkey"):
            decide(fssig, TrustPolicy())


def test_a_root_hash_given_outright_is_trusted_and_no_tree_is_not() -> None:
    assert trust_root_hash(ROOT).is_vouched_for
    assert trust_root_hash(ROOT).root_hash == ROOT
    assert not trust_without_tree().is_vouched_for
    assert trust_without_tree().root_hash is None

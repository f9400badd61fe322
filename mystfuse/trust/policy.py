"""The one decision: is this root hash trusted, and why.

The rules, in order; the first that applies decides (source: the original's ``kernel/fs.c`` and its documentation):

1. The image is signed, a trusted public key's modulus hash equals ``signer``, and the signature verifies: trusted.
2. Its root hash is in the list of trusted root hashes: trusted.
3. ``insecure``: loaded unconditionally. (The tree, when there is one, is still checked.)
4. Nothing is trusted, and the caller allows it (``trust_self``): the image is trusted by itself. Damage is
   detected, a replaced image is not.
5. Refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from mystfuse.errors import NotTrusted
from mystfuse.formats.fssig import Fssig

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey


class TrustReason(Enum):
    """Why an image is trusted."""

    SIGNATURE = "signature"
    ROOT_HASH = "root hash"
    INSECURE = "insecure"
    SELF = "self"


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """The keys and root hashes that the user trusts: from the command line and ``/etc/mystfuse/trust.d``."""

    root_hashes: frozenset[bytes] = frozenset()
    public_keys: tuple[PublicKey, ...] = ()
    trust_self: bool = False
    """Fall back on the image's own root hash when the lists are empty. Only for development."""
    insecure: bool = False

    @property
    def trusts_somebody(self) -> bool:
        return bool(self.root_hashes or self.public_keys)


@dataclass(frozen=True, slots=True)
class Trust:
    """A decision in favour of an image."""

    reason: TrustReason
    root_hash: bytes | None
    """The root hash that verifies every block; None when there is no tree (``insecure`` alone)."""
    signer: bytes | None
    """The signer, when its signature was what counted."""
    explanation: str
    """One clause for people: why the image is trusted."""

    @property
    def is_vouched_for(self) -> bool:
        """Whether a root hash or key from elsewhere is the reason, not the image itself."""
        return self.reason in (TrustReason.SIGNATURE, TrustReason.ROOT_HASH)


def decide(fssig: Fssig, policy: TrustPolicy) -> Trust:
    """Apply the rules at the top of this module to an image's fssig.

    Raises:
        NotTrusted: no rule accepts this image; the message says what would help.
    """
    if fssig.is_signed:
        for key in policy.public_keys:
            if key.signer == fssig.signer and key.verifies(fssig.root_hash, fssig.signature):
                return Trust(TrustReason.SIGNATURE, fssig.root_hash, key.signer, f"signed by trusted key {key.name}")
    if fssig.root_hash in policy.root_hashes:
        return Trust(TrustReason.ROOT_HASH, fssig.root_hash, None, "its root hash is a trusted one")
    if policy.insecure:
        return Trust(TrustReason.INSECURE, fssig.root_hash, None, "not trusted, loaded because of --insecure")
    if not policy.trusts_somebody and policy.trust_self:
        return Trust(TrustReason.SELF, fssig.root_hash, None, "trusted by nobody but itself")
    raise NotTrusted(_refusal(fssig, policy))


def trust_root_hash(root_hash: bytes) -> Trust:
    """The decision for a tree without an fssig, whose root hash the user names outright."""
    return Trust(TrustReason.ROOT_HASH, root_hash, None, "its root hash was given")


def trust_without_tree() -> Trust:
    """The decision for a bare file system under ``insecure``: nothing is checked."""
    return Trust(TrustReason.INSECURE, None, None, "not verified at all, loaded because of --insecure")


def _refusal(fssig: Fssig, policy: TrustPolicy) -> str:
    root = f"root hash {fssig.root_hash.hex()}"
    if not policy.trusts_somebody:
        return (
            f"not trusted: {root}, and no trusted root hash or public key is given; "
            "give --roothash or --pubkey (-o roothash=, -o pubkey=)"
        )
    if not fssig.is_signed:
        return f"not trusted: the image is unsigned and its {root} is not in the list of trusted root hashes"
    signer = fssig.signer.hex()
    if any(key.signer == fssig.signer for key in policy.public_keys):
        return f"not trusted: the image names trusted signer {signer}, but its signature of {root} is wrong"
    return f"not trusted: signer {signer} is not a trusted public key, and {root} is not a trusted root hash"

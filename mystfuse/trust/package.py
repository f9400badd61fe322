"""A package's signer, whether it is trusted, and the keys and root hashes that the package trusts.

The rules, in order:

1. The signature must be that of the key in the package, over every byte before it. Until then nothing is trusted.
2. Where signers are pinned, that key must be one of them. Where none is, the package is trusted by itself: a damaged
   one is refused, one that another signer has made is not.
3. The package's lists are all that its images are trusted by (``policy``); a mount with a key or root hash of its own
   by these alone. ``Debug`` loads any image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mystfuse.errors import FormatError, NotTrusted, UsageError
from mystfuse.formats.configuration import MountEntry
from mystfuse.formats.package import MAX_PACKAGE_SIZE, MAX_TRUSTED, PackageContents, PackageFile
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.signature import PublicKey, SigningKey


@dataclass(frozen=True, slots=True)
class Package:
    """A package with a valid signature."""

    contents: PackageContents
    signer: PublicKey
    is_pinned: bool
    """Whether the signer is a pinned one."""

    def policy(self, mount: MountEntry | None = None) -> TrustPolicy:
        """The trust policy for the root file system, or for the image of ``mount``.

        Raises:
            FormatError: a public key in the package is none.
        """
        contents = self.contents
        root_hashes, public_keys = list(contents.root_hashes), list(contents.public_keys)
        if mount is not None and (mount.root_hash is not None or mount.public_key is not None):
            root_hashes = [mount.root_hash] if mount.root_hash is not None else []
            public_keys = [mount.public_key] if mount.public_key is not None else []
        try:
            keys = tuple(PublicKey.from_pem(pem.encode("ascii", "replace"), "of the package") for pem in public_keys)
        except UsageError as error:
            raise FormatError(f"a signed package with impossible contents: {error}") from error
        return TrustPolicy(
            frozenset(bytes.fromhex(root_hash) for root_hash in root_hashes),
            keys,
            insecure=contents.configuration.is_debug,
        )


def sign_package(contents: PackageContents, key: SigningKey) -> bytes:
    """The package file.

    Raises:
        UsageError: it is larger than ``open_package`` accepts.
    """
    if max(len(contents.root_hashes), len(contents.public_keys)) > MAX_TRUSTED:
        raise UsageError(f"a package can trust {MAX_TRUSTED} root hashes and {MAX_TRUSTED} public keys, and no more")
    unsigned = PackageFile(contents.pack(), key.public_der())
    signature = key.sign(hashlib.sha256(unsigned.signed_part()).digest())
    packed = PackageFile(unsigned.unverified_contents, unsigned.signer, signature).pack()
    if len(packed) > MAX_PACKAGE_SIZE:
        raise UsageError(f"a package of {len(packed)} bytes; {MAX_PACKAGE_SIZE} are the most")
    return packed


def open_package(data: bytes, signers: Sequence[PublicKey]) -> Package:
    """Decide whether to trust a package file.

    Args:
        signers: keys that may sign; any key, if empty.

    Raises:
        NotTrusted: the signature is wrong, or the signer is not among ``signers``.
        FormatError: not a package, or an impossible one.
    """
    file = PackageFile.parse(data)
    signer = PublicKey.from_der(file.signer, "signer of the package")
    if not signer.verifies(hashlib.sha256(file.signed_part()).digest(), file.signature):
        raise NotTrusted("not trusted: its signature is wrong: it was changed after it was signed")
    if signers and not any(signer.is_same_as(pinned) for pinned in signers):
        raise NotTrusted(f"not trusted: its signer {signer.signer.hex()} is not among those who may sign packages")
    return Package(PackageContents.parse(file.unverified_contents), signer, bool(signers))

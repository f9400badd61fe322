"""Sources of trust: the root hashes and keys that options name, and those in ``/etc/mystfuse/trust.d``."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mystfuse.errors import UsageError
from mystfuse.system.configured_file import read_configured_file
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.trust_directory import MAX_SMALL_FILE, hex_digest, read_trust_directory

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey

TRUST_DIRECTORY = Path("/etc/mystfuse/trust.d")


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """The trusted keys and root hashes, read and parsed."""

    policy: TrustPolicy
    hash_offset: int | None
    root_hash: bytes | None
    """The root hash for ``hash_offset``."""


def collect_trust(
    hashes: Sequence[bytes], keys: Sequence[PublicKey], insecure: bool, hash_offset: int | None, trust_self: bool
) -> TrustOptions:
    """Join the hashes and keys that options name with those in ``/etc/mystfuse/trust.d``.

    Args:
        hash_offset: where the verity superblock is, for an image without an fssig; goes with one root hash and no key.
        trust_self: whether an image is trusted by itself when nothing else is trusted.

    Raises:
        UsageError: options that contradict each other; or a file in the trust directory that is malformed,
            unreadable, or writable by other users; then nothing is trusted.
    """
    if hash_offset is not None:
        if len(hashes) != 1:
            raise UsageError("--hash-offset needs the root hash of that tree: give exactly one --roothash")
        if keys:
            raise UsageError("--hash-offset is for an image without an fssig, which has no signer: leave out --pubkey")
        return TrustOptions(TrustPolicy(insecure=insecure), hash_offset, hashes[0])
    listed_hashes, listed_keys = read_trust_directory(TRUST_DIRECTORY)
    policy = TrustPolicy(
        frozenset([*hashes, *listed_hashes]), (*keys, *listed_keys), trust_self=trust_self, insecure=insecure
    )
    return TrustOptions(policy, None, None)


def parse_root_hash(value: str, option: str = "--roothash") -> bytes:
    """A root hash from hex digits, or from a file that holds them; UsageError if it is neither.

    Args:
        option: the option that named it, for messages.
    """
    found = hex_digest(value)
    if found is None:
        if not value.strip():
            raise UsageError(f"{option} is empty (a variable that is not set?)")
        if _is_meant_as_digits(value) and not os.path.lexists(value):
            raise UsageError(f"{option} {value}: {_why_no_root_hash(value)}")
        text = read_small_file(value, option).decode("ascii", "replace")
        found = hex_digest(text)
        if found is None:
            raise UsageError(f"{option} {value}: what is in it: {_why_no_root_hash(text)}")
    return found


_ROOT_HASH = "the 64 hex digits of a root hash (128 for sha512)"
_PREFIX = re.compile(r"0x|[a-z0-9-]+:", re.IGNORECASE)
"""As other programs write digests: sha256:HEX."""


def _is_meant_as_digits(value: str) -> bool:
    """Whether it looks like a digest, including one with a typing mistake."""
    digits = _PREFIX.sub("", value.strip(), count=1)
    others = sum(char not in string.hexdigits for char in digits)
    return "/" not in value and len(digits) >= 16 and others * 10 < len(digits)


def _why_no_root_hash(text: str) -> str:
    text = text.strip()
    prefix = _PREFIX.match(text)
    if prefix is not None and hex_digest(text[prefix.end() :]) is not None:
        return f"leave out {prefix[0]} in front: it takes {_ROOT_HASH} alone"
    if re.fullmatch(r"[0-9a-fA-F]+", text):
        return f"{len(text)} hex digits, not {_ROOT_HASH}"
    return f"not {_ROOT_HASH}"


def read_public_keys(path: str, option: str = "--pubkey") -> list[PublicKey]:
    """All the public keys in a PEM file; UsageError if there is none, or something else."""
    # Only here: cryptography takes long to import.
    from mystfuse.trust.signature import PublicKey

    return PublicKey.all_from_pem(read_small_file(path, option), path)


def read_small_file(path: str, option: str) -> bytes:
    """The contents of a key or hash file; UsageError if reading it fails or it is too large to be one."""
    return read_configured_file(path, option, MAX_SMALL_FILE)

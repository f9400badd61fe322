"""Where trust comes from: the root hashes and keys that somebody names, and those in ``/etc/mystfuse/trust.d``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mystfuse.errors import MystfuseError, UsageError
from mystfuse.trust.policy import TrustPolicy

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey

TRUST_DIRECTORY = Path("/etc/mystfuse/trust.d")
MAX_SMALL_FILE = 64 * 1024
"""Bytes: no key and no root hash file is larger."""


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """Whom to trust, read and parsed."""

    policy: TrustPolicy
    hash_offset: int | None
    root_hash: bytes | None
    """The root hash for ``hash_offset``."""


def collect_trust(
    hashes: Sequence[bytes], keys: Sequence[PublicKey], insecure: bool, hash_offset: int | None, trust_self: bool
) -> TrustOptions:
    """Join who is named and who is in ``/etc/mystfuse/trust.d``.

    Args:
        hash_offset: where the verity superblock is, for an image without an fssig; goes with one root hash and no key.
        trust_self: whether an image may vouch for itself when nobody is trusted.

    Raises:
        UsageError: options that contradict each other, or something in the trust directory is not what it should be.
        MystfuseError: something in the trust directory cannot be read; nothing is trusted then.
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
        option: what named it, for messages.
    """
    found = _hex_digest(value)
    if found is None:
        text = read_small_file(value, option).decode("ascii", "replace")
        found = _hex_digest(text)
    if found is None:
        raise UsageError(f"{option} {value}: not a root hash (64 hex digits, or 128 for sha512), nor a file with one")
    return found


def read_public_key(path: str) -> PublicKey:
    """The public key in a PEM file; UsageError if it is none."""
    return _parse_public_key(read_small_file(path, "--pubkey"), path)


def _parse_public_key(pem: bytes, name: str) -> PublicKey:
    # Only here: cryptography takes long to import.
    from mystfuse.trust.signature import PublicKey

    return PublicKey.from_pem(pem, name)


def read_small_file(path: str, option: str) -> bytes:
    """The contents of a key or hash file; UsageError if it cannot be read or is too large to be one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SMALL_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if len(data) > MAX_SMALL_FILE:
        raise UsageError(f"{option} {path}: too large")
    return data


def _hex_digest(text: str) -> bytes | None:
    text = text.strip()
    return bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}([0-9a-fA-F]{64})?", text) else None


def read_trust_directory(directory: Path) -> tuple[list[bytes], list[PublicKey]]:
    """The root hashes (``*.roothash``) and keys (``*.pem``) in a directory, which need not exist.

    Raises:
        UsageError, MystfuseError: one of them is broken, or cannot be read.
    """
    hashes: list[bytes] = []
    keys: list[PublicKey] = []
    try:
        names = sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return hashes, keys
    except OSError as error:
        raise MystfuseError(f"{directory}: {error.strerror}") from error
    for name in names:
        path = str(directory / name)
        if name.endswith(".roothash"):
            found = _hex_digest(read_small_file(path, "trusted root hash").decode("ascii", "replace"))
            if found is None:
                raise UsageError(f"{path}: not a root hash")
            hashes.append(found)
        elif name.endswith(".pem"):
            keys.append(_parse_public_key(read_small_file(path, "trusted key"), path))
    return hashes, keys

"""How a new image of a mount is made: what the options say, and what the mount's image requires."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from mystfuse.build.commit import CommitOptions
from mystfuse.build.kept_identity import kept_identity
from mystfuse.errors import UsageError
from mystfuse.image.keys import Encryption
from mystfuse.trust.signature import SigningKey


def check_encryption(
    name: str,
    status: Mapping[str, Any],
    is_to_be_encrypted: bool,
    decrypt: bool,
    advice: str = "--encrypt KEYFILE makes another one, --decrypt a plain one",
) -> None:
    """Raise UsageError unless the options say what becomes of an encrypted image.

    Args:
        name: of the image or mount, for messages.
        status: the mount's ``status.json``.
        advice: what options do.
    """
    if is_to_be_encrypted and decrypt:
        raise UsageError("--encrypt and --decrypt exclude each other")
    if status.get("cipher") is not None and not is_to_be_encrypted and not decrypt:
        raise UsageError(f"{name} is an encrypted image: {advice}")


def commit_options(
    status: Mapping[str, Any],
    signing_key: SigningKey | None,
    encryption: Encryption | None,
    salt: bytes | None = None,
    uuid: UUID | None = None,
    io_timeout: float = math.inf,
) -> CommitOptions:
    """How to make the image.

    Args:
        status: the mount's ``status.json``.
        salt, uuid: None: as the mount's image has them.

    Raises:
        MystfuseError: the status contradicts itself.
    """
    is_encrypted = status.get("cipher") is not None
    kept = kept_identity(status, is_encrypted or encryption is not None or uuid is not None)
    if salt is not None:
        kept = replace(kept, salt=salt)
    return CommitOptions(signing_key, encryption, kept, uuid, io_timeout, is_secret=is_encrypted)

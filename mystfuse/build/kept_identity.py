"""What a committed image keeps of the hash tree below the mount: enough for unchanged data to have an unchanged
root hash.

Why a salt is kept only in some cases: docs/adr/0015.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mystfuse.build.seal import VERITY_BLOCK_SIZE
from mystfuse.errors import MystfuseError
from mystfuse.formats.verity import MAX_SALT_SIZE, VOUCHER

_OURS = {
    "algorithm": "sha256",
    "hash_type": 1,
    "data_block_size": VERITY_BLOCK_SIZE,
    "hash_block_size": VERITY_BLOCK_SIZE,
}
"""The trees that we make."""


@dataclass(frozen=True, slots=True)
class KeptIdentity:
    """Salt and UUID for a new hash tree, and how much it covers."""

    salt: bytes | None = None
    """None: one that vouches for the new superblock, which gives the same one for the same UUID and size."""
    uuid: UUID | None = None
    """None: a random one."""
    data_size: int = 0
    """Bytes that the tree is to cover; 0: what the file system has."""


def kept_identity(status: Mapping[str, Any], is_converted: bool) -> KeptIdentity:
    """What the mount's status says about its image, as far as a new image keeps it.

    Args:
        status: the mount's ``status.json``.
        is_converted: the new data are others in any case: encrypted, decrypted, or with another UUID.

    Raises:
        MystfuseError: the status contradicts itself.
    """
    tree = status.get("hash_tree")
    if tree is None:
        # There is no tree, or the daemon is of an earlier version.
        return KeptIdentity()
    try:
        salt, uuid, data_size = bytes.fromhex(tree["salt"]), UUID(tree["uuid"]), int(tree["data_size"])
        is_like_ours = all(tree[name] == value for name, value in _OURS.items())
        is_written = bool(status["overlay_used"] or status["overlay_store_used"])
    except (KeyError, TypeError, ValueError) as error:
        raise MystfuseError("the mount's status is not what a status is") from error
    if len(salt) > MAX_SALT_SIZE:
        raise MystfuseError(f"the mount's status has a salt of {len(salt)} bytes; there are at most {MAX_SALT_SIZE}")
    if is_converted or not is_like_ours:
        return KeptIdentity(uuid=uuid)
    if salt.startswith(VOUCHER) or is_written:
        return KeptIdentity(uuid=uuid, data_size=data_size)
    return KeptIdentity(salt, uuid, data_size)

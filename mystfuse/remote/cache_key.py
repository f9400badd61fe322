"""The name of an image's entry in a cache: the same for the same content, wherever it comes from."""

from __future__ import annotations

import hashlib
import re
import struct

from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.remote.origin import Opened


def cache_key(address: str, opened: Opened) -> str | None:
    """64 hex digits; None for an image that cannot be told from another version of itself, which is not to be shared.

    An image with an fssig is named after its size and that, which has the root hash: so mirrors share an entry. Any
    other is named after its address and validator.

    Args:
        address: as given. User and password do not count.
    """
    fssig = opened.tail[-FSSIG_SIZE:]
    size = struct.pack("<Q", opened.size)
    if len(fssig) == FSSIG_SIZE and has_fssig_magic(fssig):
        return hashlib.sha256(b"fssig\0" + size + fssig).hexdigest()
    if not opened.validator:
        return None
    without_user = re.sub(r"^([a-z0-9]+://)[^/?#]*@", r"\1", address, flags=re.IGNORECASE)
    named = b"\0".join((b"address", without_user.encode(errors="surrogateescape"), size, opened.validator.encode()))
    return hashlib.sha256(named).hexdigest()

"""Encrypted names as the kernel shows them to whoever has no key: with their hashes, in base64url.

Source: fs/crypto/fname.c (fscrypt_fname_disk_to_usr, struct fscrypt_nokey_name); fs/crypto/hooks.c
(fscrypt_get_symlink, fscrypt_symlink_getattr) for targets of links.
"""

from __future__ import annotations

import base64
import hashlib
import struct

from mystfuse.errors import CorruptFilesystem

_HASHES = struct.Struct("<II")
_SHORTEST = 16
"""Bytes of any encrypted name (FSCRYPT_FNAME_MIN_MSG_LEN)."""
_SHOWN_WHOLE = 149
"""Bytes of the longest encrypted name that is shown whole; of the rest of a longer one, a SHA-256 is."""
_LENGTH = struct.Struct("<H")


def shown_name(ino: int, hashes: tuple[int, int], name: bytes) -> bytes:
    """What stands for an encrypted name.

    Args:
        ino: of the directory, or of the symbolic link whose target it is.

    Raises:
        CorruptFilesystem: it is too short to be one.
    """
    if len(name) < _SHORTEST:
        raise CorruptFilesystem(f"inode {ino}: an encrypted name of {len(name)} bytes")
    shown = _HASHES.pack(*hashes) + name[:_SHOWN_WHOLE]
    if len(name) > _SHOWN_WHOLE:
        shown += hashlib.sha256(name[_SHOWN_WHOLE:]).digest()
    return base64.urlsafe_b64encode(shown).rstrip(b"=")


def shown_target(ino: int, content: bytes) -> bytes:
    """What stands for the target of an encrypted link.

    Args:
        content: what the link has in its place.

    Raises:
        CorruptFilesystem: its length is invalid.
    """
    length = _LENGTH.unpack_from(content)[0] if len(content) >= _LENGTH.size else 0
    if not 0 < length <= len(content) - _LENGTH.size:
        raise CorruptFilesystem(f"symlink inode {ino}: its encrypted target of {length} bytes is invalid")
    return shown_name(ino, (0, 0), content[_LENGTH.size : _LENGTH.size + length])


def shown_target_size(size: int) -> int:
    """How many bytes ``shown_target`` gives for a link of ``size`` bytes."""
    name = max(size - _LENGTH.size, 0)
    shown = _HASHES.size + (name if name <= _SHOWN_WHOLE else _SHOWN_WHOLE + hashlib.sha256().digest_size)
    return -(-shown * 8 // 6)

"""Extended attributes and ACLs of a tar archive's member, from its pax header.

Sources: star(5) for SCHILY.acl.* and SCHILY.xattr.*; GNU tar's xheader.c, which writes ``=`` and ``%`` in names as %3D
and %25; libarchive's archive_write_set_format_pax.c for LIBARCHIVE.xattr.*, in base64 without its end.
"""

from __future__ import annotations

import base64
import binascii
import grp
import pwd
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from mystfuse.archives.file_tree import Attributes
from mystfuse.errors import FormatError
from mystfuse.ext2.acl import Acl, acl_from_text

_SCHILY, _LIBARCHIVE = "SCHILY.xattr.", "LIBARCHIVE.xattr."
_ACLS = {"SCHILY.acl.access": b"system.posix_acl_access", "SCHILY.acl.default": b"system.posix_acl_default"}
_IN_LINUX = re.compile(rb"(?:user|trusted|security)\.[^\0]{1,247}|system\.posix_acl_(?:access|default)")
"""Others, of macOS above all, no Linux file system has."""
MAX_VALUE = 64 << 10
"""Bytes: XATTR_SIZE_MAX of <linux/limits.h>."""


def attributes_of(headers: Mapping[str, str]) -> Attributes:
    """The attributes as listxattr(2) and getxattr(2) give them, sorted by name.

    Args:
        headers: of the member, bytes that are no UTF-8 as surrogates.

    Raises:
        FormatError: a value is malformed or too large.
    """
    found: dict[bytes, bytes] = {}
    for key, value in headers.items():
        if key.startswith(_LIBARCHIVE):
            name = unquote_to_bytes(raw(key.removeprefix(_LIBARCHIVE)))
            found.setdefault(name, _from_base64(value, name))
        elif key in _ACLS and value.strip():
            # GNU tar writes an empty one for a directory without a default ACL.
            acl = acl_from_text(value, _user, _group)
            if not acl.is_minimal:
                found.setdefault(_ACLS[key], acl.pack())
    for key, value in headers.items():
        if key.startswith(_SCHILY):
            name = raw(key.removeprefix(_SCHILY)).replace(b"%3D", b"=").replace(b"%25", b"%")
            found[name] = raw(value)
    for name, data in found.items():
        if len(data) > MAX_VALUE:
            raise FormatError(f"attribute {name.decode(errors='replace')}: {len(data)} bytes, more than {MAX_VALUE}")
        if name in _ACLS.values():
            try:
                Acl.parse(data)
            except OSError as error:
                raise FormatError(f"attribute {name.decode()}: {error.strerror}") from None
    return tuple(sorted((name, value) for name, value in found.items() if _IN_LINUX.fullmatch(name)))


def raw(text: str) -> bytes:
    """The bytes that ``tarfile`` has decoded."""
    return text.encode("utf-8", "surrogateescape")


def _from_base64(value: str, name: bytes) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise FormatError(f"attribute {name.decode(errors='replace')}: not base64") from error


def _user(name: str) -> int:
    """As tar does: this machine's."""
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid

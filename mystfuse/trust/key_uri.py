"""URIs of private keys that never leave their token: ``pkcs11:`` (RFC 7512) and ``handle:`` (tpm2-openssl)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from mystfuse.errors import UsageError

_PKCS11_ATTRIBUTES = frozenset(
    {
        "token", "manufacturer", "serial", "model", "library-manufacturer", "library-version", "library-description",
        "object", "type", "id", "slot-manufacturer", "slot-description", "slot-id", "pin-source", "pin-value",
        "module-name", "module-path",
    }
)  # fmt: skip
"""RFC 7512, section 2.3."""
_MAX_URI = 4096
_HANDLE = re.compile(r"handle:0x81[0-9a-fA-F]{6}(\?pass)?")
"""A persistent handle: TPM 2.0 Library, part 2, section 7.2 (TPM_HT_PERSISTENT)."""


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A private key in a token, as openssl gets it."""

    text: str
    """The URI for openssl: without PIN, and without what says where the PIN is. Messages show it."""
    is_pkcs11: bool
    """Else a TPM's."""
    pin: bytes | None = None
    """``pin-value``."""
    pin_file: str | None = None
    """``pin-source``: the file with the PIN."""
    pin_command: str | None = None
    """``pin-source``: the command that prints it."""
    module_path: str | None = None
    """``module-path``: the PKCS #11 module."""
    wants_passphrase: bool = False
    """``?pass`` of a handle."""

    @classmethod
    def parse(cls, value: str) -> KeyUri | None:
        """Parse what names a private key; None if it is no such URI, but a path.

        Raises:
            UsageError: a wrong URI. The message has no PIN in it.
        """
        if value.startswith("handle:"):
            match = _HANDLE.fullmatch(value)
            if match is None:
                raise UsageError(f"{value}: not the persistent handle of a key in a TPM, as handle:0x81000001")
            return cls(value, False, wants_passphrase=match[1] is not None)
        # RFC 3986: whatever the case. A path that begins so could have a PIN in it, too.
        if value[:7].lower() != "pkcs11:":
            return None
        if len(value) > _MAX_URI or not value.isascii() or not value.isprintable() or " " in value:
            raise UsageError("pkcs11: not a URI of RFC 7512: printable ASCII without spaces, others as %XX")
        path, _, query = value[7:].partition("?")
        attributes = [part for part in (*path.split(";"), *query.split("&")) if part]
        found: dict[str, str] = {}
        kept: list[str] = []
        for part in attributes:
            name, equals, text = part.partition("=")
            if not equals or not (name in _PKCS11_ATTRIBUTES or name.startswith(("x-", "vnd."))):
                raise UsageError(f"pkcs11: {name}: no attribute of a PKCS #11 URI (RFC 7512), as token, object, id")
            if name in found:
                raise UsageError(f"pkcs11: {name} is there twice")
            if re.search("%(?![0-9a-fA-F]{2})", text):
                raise UsageError(f"pkcs11: {name}: % without two hex digits")
            found[name] = text
            if name not in ("pin-value", "pin-source", "module-path"):
                kept.append(part)
        if "pin-value" in found and "pin-source" in found:
            raise UsageError("pkcs11: pin-value and pin-source exclude each other (RFC 7512, section 2.4)")
        if not kept:
            raise UsageError("pkcs11: it names no key: give token=NAME;object=LABEL or ;id=%01")
        file, command = _pin_source(found.get("pin-source"))
        return cls(
            f"pkcs11:{';'.join(kept)}",
            True,
            unquote_to_bytes(found["pin-value"]) if "pin-value" in found else None,
            file,
            command,
            _text(found["module-path"], "module-path") if "module-path" in found else None,
        )


def _pin_source(value: str | None) -> tuple[str | None, str | None]:
    """The file, or the command, of a ``pin-source``: RFC 7512, section 2.4."""
    if value is None:
        return None, None
    source = _text(value, "pin-source")
    if source.startswith("|"):
        return None, source[1:]
    scheme, colon, path = source.partition(":")
    if colon and scheme.isalpha():
        if scheme != "file":
            raise UsageError(f"pkcs11: pin-source: {scheme}: is not supported; file:PATH is")
        source = re.sub("^//(?=/)", "", path)
    if not source:
        raise UsageError("pkcs11: pin-source is empty")
    return source, None


def _text(value: str, name: str) -> str:
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text or not text.isprintable():
        raise UsageError(f"pkcs11: {name}: not a path")
    return text

"""The package file: a shell script of fixed lines, then one line each of JSON, signer's key, and signature.

``docs/package-format.md`` has the format. Every byte is signed, or determined (the signature): there is one spelling of
everything, and no other is read.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass

from mystfuse.errors import FormatError, UsageError
from mystfuse.formats.configuration import Configuration, parse_json_object

PACKAGE_VERSION = 1
MAX_PACKAGE_SIZE = 1 << 20
"""Bytes."""
MAX_TRUSTED = 1024
"""Root hashes, and public keys, in a package."""
ROOT_HASH_SIZE = 32
"""Bytes: of a tree that an fssig can name."""
_MAX_SIGNER = 4096
"""Bytes of DER: an RSA key of 8192 bits has about 1060, and twice that with the largest exponent."""
_MAX_SIGNATURE = 1024
"""Bytes."""

PACKAGE_HEADER = b"""\
#!/bin/sh
# A mystfuse package, version 1: a configuration and whom it trusts, signed.
# "mystfuse run" checks the signature before it believes anything below, these lines included.
if command -v mystfuse >/dev/null; then
    exec mystfuse run "$0" "$@"
fi
printf '%s: mystfuse is not in PATH: install it, or put where it is into PATH\\n' "$0" >&2
exit 127
"""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """The parts of a package file, unverified."""

    unverified_contents: bytes
    """The line of JSON, without its end."""
    signer: bytes
    """DER SubjectPublicKeyInfo of the claimed signer."""
    signature: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> PackageFile:
        """Take a file apart, without looking into the contents.

        Raises:
            FormatError: not a package, or one with a wrong byte.
        """
        if len(data) > MAX_PACKAGE_SIZE:
            raise FormatError(f"not a package: larger than {MAX_PACKAGE_SIZE} bytes (exec runs a program of an image)")
        if not data.startswith(PACKAGE_HEADER):
            raise FormatError("not a package of version 1, or its first lines were changed")
        lines = data[len(PACKAGE_HEADER) :].split(b"\n")
        if len(lines) != 4 or lines[3]:
            raise FormatError("a package with lines missing or too many: truncated, or something was appended")
        contents, signer, signature, _ = lines
        return cls(
            contents, _decode(signer, "the signer's key", _MAX_SIGNER), _decode(signature, "signature", _MAX_SIGNATURE)
        )

    def signed_part(self) -> bytes:
        """Every byte before the signature."""
        return PACKAGE_HEADER + self.unverified_contents + b"\n" + base64.b64encode(self.signer) + b"\n"

    def pack(self) -> bytes:
        """The file."""
        return self.signed_part() + base64.b64encode(self.signature) + b"\n"


@dataclass(frozen=True, slots=True)
class PackageContents:
    """The contents of a package: the program, and the trusted keys and root hashes."""

    configuration: Configuration
    root_hashes: tuple[str, ...] = ()
    """64 lower-case hex digits each, sorted, each once."""
    public_keys: tuple[str, ...] = ()
    """PEM, sorted, each once."""

    @classmethod
    def parse(cls, line: bytes) -> PackageContents:
        """Parse the line of JSON of a package, whose signature has been checked.

        Raises:
            FormatError: it is not in canonical form, or says something impossible.
        """
        try:
            parsed = parse_json_object(line)
            if parsed.get("version") != PACKAGE_VERSION:
                raise ValueError(f"version {parsed.get('version')!r}; only {PACKAGE_VERSION} is known")
            if not isinstance(parsed.get("configuration"), dict):
                raise ValueError("it has no configuration")
            contents = cls(
                Configuration.of(parsed["configuration"]),
                _texts(parsed.get("root_hashes"), "root_hashes"),
                _texts(parsed.get("public_keys"), "public_keys"),
            )
        except (ValueError, UsageError) as error:
            raise FormatError(f"a signed package with impossible contents: {error}") from error
        mounts = contents.configuration.mounts
        for root_hash in (*contents.root_hashes, *(mount.root_hash for mount in mounts if mount.root_hash is not None)):
            if not re.fullmatch(f"[0-9a-f]{{{2 * ROOT_HASH_SIZE}}}", root_hash):
                raise FormatError("a signed package with impossible contents: a root hash is not 64 hex digits")
        if contents.pack() != line:
            raise FormatError("a signed package whose contents are not in canonical form")
        return contents

    def pack(self) -> bytes:
        """The one line of JSON, in ASCII, with these contents."""
        return json.dumps(
            {
                "configuration": self.configuration.settings(),
                "public_keys": sorted(set(self.public_keys)),
                "root_hashes": sorted(set(self.root_hashes)),
                "version": PACKAGE_VERSION,
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode("ascii")


def _decode(line: bytes, what: str, limit: int) -> bytes:
    """The bytes that a line of base64 stands for; only the one spelling that encoding gives is read."""
    try:
        decoded = base64.b64decode(line, validate=True)
    except binascii.Error:
        decoded = b""
    if not decoded or len(decoded) > limit or base64.b64encode(decoded) != line:
        raise FormatError(f"not a package: {what} is not in the base64 that it must be in")
    return decoded


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_TRUSTED or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is not a list of up to {MAX_TRUSTED} strings")
    return tuple(value)

"""Addresses of images elsewhere: ``https://HOST/PATH``, ``http:``, ``s3://BUCKET/KEY[?versionId=ID]``,
``oci://REGISTRY/NAME[:TAG|@DIGEST]``; and ``file:``, which is a path.

Sources: RFC 3986; RFC 8089 (file); the OCI distribution specification 1.1, "Pulling manifests" (names, tags, digests);
"Bucket naming rules" of the S3 user guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mystfuse.errors import UsageError

Scheme = Literal["http", "https", "s3", "oci"]

_REMOTE = re.compile(r"(https?|s3|oci)://", re.IGNORECASE)
"""With both slashes: ``oci:DIR`` is a directory (an OCI layout)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an image is, outside this machine's file system."""

    scheme: Scheme
    text: str
    """As given, with passwords: for the fetcher alone."""

    @property
    def name(self) -> str:
        """For messages, logs and the mount table: without user, password and the values of a query, which may be
        signatures."""
        without_user = re.sub(r"^([a-z0-9]+://)[^/?#]*@", r"\1", self.text, flags=re.IGNORECASE)
        if self.scheme in ("http", "https"):
            return re.sub(r"\?.*", "?...", without_user, flags=re.DOTALL)
        return without_user


def is_remote(text: str) -> bool:
    """Whether a word is the address of an image elsewhere, and not a path."""
    return _REMOTE.match(text) is not None


def parse_address(text: str) -> Address:
    """The address that a word is.

    Raises:
        UsageError: it names no host, bucket, key or repository, or has a fragment, spaces or control characters.
    """
    match = _REMOTE.match(text)
    if match is None:
        raise UsageError(f"{text}: not an address of an image: http://, https://, s3:// or oci:// is")
    scheme = match[1].lower()
    address = Address(scheme, text)  # type: ignore[arg-type]
    if re.search(r"[\x00-\x20\x7f#]", text):
        raise UsageError(
            f"{address.name!r}: an address has no spaces, control characters or '#' (%20 is a space, and %23 is '#')"
        )
    host, _, rest = text[match.end() :].partition("/")
    port = re.search(r":([0-9]+)$", host)
    if port is not None and scheme in ("http", "https") and not 0 < int(port[1][:6]) < 1 << 16:
        raise UsageError(f"{address.name}: {port[1][:6]} is no port")
    if not host.rpartition("@")[2].partition(":")[0]:
        raise UsageError(
            f"{address.name}: no host is named" if scheme != "s3" else f"{address.name}: no bucket is named"
        )
    if scheme in ("s3", "oci") and not rest.partition("?")[0]:
        what = "key is named (s3://BUCKET/KEY)" if scheme == "s3" else "repository is named (oci://REGISTRY/NAME:TAG)"
        raise UsageError(f"{address.name}: no {what}")
    return address

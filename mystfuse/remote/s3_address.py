"""Which object of S3 an address means: ``s3://BUCKET/KEY[?versionId=ID]``.

The key is percent-encoded, as in any URL: ``%20`` is a space, ``%25`` a percent sign. Source: "Bucket naming rules" and
"Object key naming guidelines" of the S3 user guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote

from mystfuse.errors import UsageError
from mystfuse.remote.address import Address

_MAX_KEY = 1024
"""Bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object, or one version of it."""

    bucket: str
    key: str
    version: str = ""
    """Empty: the newest."""

    @property
    def address(self) -> str:
        base = f"s3://{self.bucket}/{quote(self.key)}"
        return f"{base}?versionId={quote(self.version, safe='')}" if self.version else base


def parse_s3_address(address: Address) -> S3Object:
    """The object that an address means.

    Raises:
        UsageError: the bucket or the key cannot be one, or the query is another than ``versionId``.
    """
    rest, mark, query = address.text.partition("://")[2].partition("?")
    bucket, _, encoded = rest.partition("/")
    if "@" in bucket:
        raise UsageError(f"{address.name}: an address of S3 has no user: credentials come from the environment")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket):
        raise UsageError(f"{address.name}: {bucket!r} cannot be a bucket")
    try:
        key = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        raise UsageError(f"{address.name}: the key is not UTF-8") from None
    if len(key.encode()) > _MAX_KEY:
        raise UsageError(f"{address.name}: a key has at most {_MAX_KEY} bytes")
    if {".", ".."} & set(key.split("/")):
        # Clients of HTTP, and proxies, take such parts out of the path.
        raise UsageError(f"{address.name}: keys with parts '.' or '..' cannot be asked for")
    version = ""
    if mark:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=1)
        except ValueError:
            pairs = []
        if [name for name, _ in pairs] != ["versionId"] or not pairs[0][1]:
            raise UsageError(f"{address.name}: what follows the key is ?versionId=ID (a '?' of the key is written %3F)")
        version = pairs[0][1]
    return S3Object(bucket, key, version)

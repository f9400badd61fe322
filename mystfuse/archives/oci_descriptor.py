"""A descriptor: what one part of an OCI image says of another (``descriptor.md`` of the specification)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Type, digest and size of a blob."""

    media_type: str
    digest: str
    """``sha256:`` and 64 hex digits."""
    size: int
    """Bytes."""

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        return cls(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    @property
    def file_name(self) -> str:
        """The name of the blob in ``blobs/sha256``."""
        return self.digest.partition(":")[2]

    def document(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def to_json(document: Any) -> bytes:
    """The one form in which we write a document: the same bytes for the same contents."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")

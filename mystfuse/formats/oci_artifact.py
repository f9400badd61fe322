"""The OCI artifact that is an image of ours: a manifest whose one layer is the image, byte for byte.

Source: the OCI image specification 1.1, ``manifest.md`` ("Guidelines for Artifact Usage") and ``annotations.md``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mystfuse.errors import FormatError
from mystfuse.formats.fssig import Fssig

ARTIFACT_TYPE = "application/vnd.mystfuse.image.v1"
CONTENT_TYPE = "application/vnd.mystfuse.image.content.v1"
"""Of the layer: the bytes of an image, from its first to the last of its fssig."""

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_DATA = b"{}"
"""The configuration of an artifact that has none."""
_DOCKER_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ACCEPT = ", ".join((MANIFEST, INDEX, *_DOCKER_MANIFESTS))
"""What to ask a registry for; those of Docker in order to say what they are."""

ROOT_HASH = "org.mystfuse.root-hash"
SIGNER = "org.mystfuse.signer"
SIZE = "org.mystfuse.size"
TITLE = "org.opencontainers.image.title"

MAX_MANIFEST = 4 << 20
"""Bytes; registries need not take larger ones (the distribution specification, "Pushing Manifests")."""
_MAX_SIZE = 1 << 62
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of a registry: its digest, and its size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ArtifactIndex:
    """An index: which of its manifests are ours."""

    manifests: tuple[str, ...]
    """Their digests."""


class NotAnArtifact(FormatError):
    """A manifest of something else: the message says of what."""

    is_container_image: bool = False


def is_digest(text: str) -> bool:
    """Whether this is a digest by an algorithm that we know."""
    return _DIGEST.fullmatch(text) is not None


def digest_matches(digest: str, data: bytes) -> bool:
    """Whether ``data`` has this digest, one that ``is_digest`` accepts."""
    algorithm, _, value = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == value


def digest_of(data: bytes) -> str:
    """The digest in the form of a descriptor."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_artifact(data: bytes) -> Blob | ArtifactIndex:
    """Where an image of ours is, by a manifest or an index, which are unverified.

    Raises:
        FormatError: impossible.
        NotAnArtifact: of something else.
    """
    if len(data) > MAX_MANIFEST:
        raise FormatError(f"a manifest of more than {MAX_MANIFEST} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError("a manifest that is not JSON, or nested too deeply") from None
    if not isinstance(document, dict):
        raise FormatError("a manifest that is no object")
    if isinstance(document.get("manifests"), list):
        return _index(document["manifests"])
    layers = document.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise FormatError("a manifest without layers")
    config = document.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    kind = document.get("artifactType") or config_type
    ours = [layer for layer in layers if layer.get("mediaType") == CONTENT_TYPE]
    if kind != ARTIFACT_TYPE and not ours:
        raise _other_kind(kind, config_type)
    if len(layers) != 1 or len(ours) != 1:
        raise FormatError(f"an artifact of {len(layers)} layers, where there must be one, of type {CONTENT_TYPE}")
    return _blob(ours[0])


def _index(entries: list[Any]) -> ArtifactIndex:
    ours = [entry for entry in entries if isinstance(entry, dict) and entry.get("artifactType") == ARTIFACT_TYPE]
    if not ours:
        error = NotAnArtifact(f"an index of {len(entries)} manifests, none of which is an image of mystfuse")
        error.is_container_image = any(isinstance(entry, dict) and "platform" in entry for entry in entries)
        raise error
    return ArtifactIndex(tuple(_blob(entry).digest for entry in ours))


def _blob(descriptor: dict[str, Any]) -> Blob:
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise FormatError("a descriptor without a digest of sha256 or sha512")
    if type(size) is not int or not 0 <= size < _MAX_SIZE:
        raise FormatError("a descriptor with an impossible size")
    return Blob(digest, size)


def _other_kind(kind: object, config_type: object) -> NotAnArtifact:
    if isinstance(config_type, str) and (
        config_type.startswith("application/vnd.docker.") or config_type == "application/vnd.oci.image.config.v1+json"
    ):
        error = NotAnArtifact("a container image, not an image of mystfuse")
        error.is_container_image = True
        return error
    return NotAnArtifact(f"an artifact of type {str(kind)[:100]!r}, not an image of mystfuse")


def make_artifact(image: Blob, title: str, fssig: Fssig | None, annotations: Mapping[str, str] | None = None) -> bytes:
    """The manifest of an image: the same bytes for the same arguments.

    Args:
        title: the file name that other tools give it.
        fssig: of the image, for the annotations; None if it has none.
        annotations: further ones.
    """
    known = {SIZE: str(image.size)}
    if fssig is not None:
        known[ROOT_HASH] = fssig.root_hash.hex()
        if fssig.is_signed:
            known[SIGNER] = fssig.signer.hex()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY, "digest": digest_of(EMPTY_DATA), "size": len(EMPTY_DATA)},
        "layers": [
            {"mediaType": CONTENT_TYPE, "digest": image.digest, "size": image.size, "annotations": {TITLE: title}}
        ],
        "annotations": {**known, **(annotations or {})},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")

"""OCI image layouts made by hand, right or wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def put_blob(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Store a blob; returns its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def put_image(
    layout: Path, layers: list[bytes], config: dict[str, Any] | None = None, compress: bool = True, **changes: Any
) -> dict[str, Any]:
    """Store an image; returns the descriptor of its manifest.

    Args:
        layers: tar archives, from below up.
        config: the part of the configuration about the program.
        changes: other fields of the configuration.
    """
    document = {
        "architecture": "amd64", "os": "linux", "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        **changes,
    }  # fmt: skip
    put = [
        put_blob(layout, gzip.compress(layer), f"{LAYER}+gzip") if compress else put_blob(layout, layer, LAYER)
        for layer in layers
    ]
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": put,
        "config": put_blob(layout, json.dumps(document).encode(), CONFIG),
    }  # fmt: skip
    return put_blob(layout, json.dumps(manifest).encode(), MANIFEST)


def put_index(layout: Path, *manifests: dict[str, Any]) -> None:
    """The two files in which a layout begins."""
    layout.mkdir(exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))


def tagged(descriptor: dict[str, Any], tag: str) -> dict[str, Any]:
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}


def make_layout(layout: Path, layers: list[bytes], config: dict[str, Any] | None = None, tag: str = "latest") -> Path:
    """A layout with one image."""
    put_index(layout, tagged(put_image(layout, layers, config), tag))
    return layout

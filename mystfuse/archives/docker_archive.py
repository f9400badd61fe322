"""Reading what ``docker save`` writes: ``manifest.json``, which names a configuration and layers by their paths.

Source: moby's image specification 1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mystfuse.archives.container_files import ContainerFiles, check_digest, read_document
from mystfuse.archives.oci_layout import ContainerImage, Layer, diff_ids
from mystfuse.errors import FormatError

_MANIFEST = "manifest.json"
_PREFIXES = ("", "docker.io/", "docker.io/library/")
"""What names of Docker's own registry mean, and skopeo writes."""
_DIGITS = re.compile(r"([0-9a-f]{64})(?:\.json)?")


def read_docker_archive(files: ContainerFiles, tag: str | None) -> ContainerImage:
    """The image of an archive.

    Args:
        tag: which one, as in ``NAME:TAG``; None: the only one.

    Raises:
        FormatError: it is no such archive, or damaged; or it has not the one that is meant.
    """
    name = files.name
    try:
        images = json.loads(read_document(files.open(_MANIFEST), f"{name}: {_MANIFEST}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: {_MANIFEST}: not JSON: {error}") from None
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise FormatError(f"{name}: {_MANIFEST}: must be a list of images")
    image = _by_tag(images, tag, name)
    config, layers = image.get("Config"), image.get("Layers")
    if not isinstance(config, str) or not isinstance(layers, list) or not all(isinstance(path, str) for path in layers):
        raise FormatError(f"{name}: {_MANIFEST}: an image without Config or Layers")
    part = files.open(config)
    data = read_document(part, f"{name}: {config}")
    digits = _DIGITS.fullmatch(config.rpartition("/")[2])
    if digits is not None:
        check_digest(part, f"sha256:{digits[1]}", f"{name}: {config}")
    ids = diff_ids(data, f"{name}: {config}")
    if len(ids) != len(layers):
        raise FormatError(f"{name}: {_MANIFEST} has {len(layers)} layers, the configuration {len(ids)}")

    def parts() -> Iterator[Layer]:
        for path, diff_id in zip(layers, ids, strict=True):
            yield Layer(files.open(path), diff_id, f"{name}: layer {path}")

    return ContainerImage(data, parts())


def _by_tag(images: list[dict[str, Any]], tag: str | None, name: str) -> dict[str, Any]:
    if tag is None and len(images) == 1:
        return images[0]
    tags: list[str] = []
    for image in images:
        own = image.get("RepoTags")
        own = [each for each in own if isinstance(each, str)] if isinstance(own, list) else []
        if tag is not None and any(prefix + tag + suffix in own for prefix in _PREFIXES for suffix in ("", ":latest")):
            return image
        tags += own
    listed = ", ".join(each[:100] for each in tags[:10]) or "no names"
    raise FormatError(f"{name}: {'several images' if tag is None else f'no image {tag}'}: it has {listed}")

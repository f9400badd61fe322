"""Reading an OCI image layout (``image-layout.md`` of the specification): which manifest is meant, its configuration,
and its layers. Each blob is checked against the digest by which it is named before anything in it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mystfuse.archives import oci_media
from mystfuse.archives.container_files import ContainerFiles, blob_path, check_digest, read_document
from mystfuse.archives.json_object import parse_object
from mystfuse.archives.oci_descriptor import Descriptor
from mystfuse.archives.oci_image_config import own_architecture
from mystfuse.archives.spool import Advance, FilePart
from mystfuse.errors import FormatError, UnsupportedFeature

MAX_LAYERS = 1024
_MAX_MANIFESTS = 4096
_MAX_DEPTH = 4
"""Indexes of indexes."""
_DOCKER = "application/vnd.docker."
_INDEXES = {oci_media.INDEX, f"{_DOCKER}distribution.manifest.list.v2+json"}
_MANIFESTS = {oci_media.MANIFEST, f"{_DOCKER}distribution.manifest.v2+json"}
_CONFIGS = {oci_media.CONFIG, f"{_DOCKER}container.image.v1+json"}
_LAYERS = {
    oci_media.LAYER, oci_media.LAYER_GZIP, oci_media.LAYER_ZSTD, f"{_DOCKER}image.rootfs.diff.tar",
    f"{_DOCKER}image.rootfs.diff.tar.gzip", f"{_DOCKER}image.rootfs.diff.tar.zstd",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, compressed or not, its blob verified."""

    part: FilePart
    diff_id: str
    """The digest of what is in it, decompressed; to be checked."""
    name: str
    """For messages."""


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """An image of a container."""

    config: bytes
    """Its configuration, as it is stored."""
    layers: Iterator[Layer]
    """From below up; each is verified when its turn comes."""


def read_layout(files: ContainerFiles, tag: str | None, advance: Advance) -> ContainerImage:
    """The image of a layout.

    Args:
        tag: which one; None: the only one.

    Raises:
        FormatError: it is no layout, or damaged; or there is none of that tag, or for this machine.
    """
    name = files.name
    layout = parse_object(
        read_document(files.open(oci_media.LAYOUT_FILE), f"{name}/{oci_media.LAYOUT_FILE}"),
        f"{name}/{oci_media.LAYOUT_FILE}",
    )
    version = layout.get("imageLayoutVersion")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise UnsupportedFeature(f"{name}: an OCI layout of version {str(version)[:40]!r}, not 1")
    where = f"{name}/{oci_media.INDEX_FILE}"
    descriptors = _manifests(parse_object(read_document(files.open(oci_media.INDEX_FILE), where), where), where)
    found = _by_tag(descriptors, tag, name)
    for _ in range(_MAX_DEPTH):
        if found.get("mediaType") not in _INDEXES:
            break
        descriptor = _descriptor(found, name)
        index = parse_object(_document(files, descriptor), descriptor.digest)
        found = _for_this_machine(_manifests(index, descriptor.digest), name)
    manifest = _descriptor(found, name)
    if manifest.media_type not in _MANIFESTS:
        raise UnsupportedFeature(f"{name}: {manifest.media_type[:100]} is no manifest of an image")
    return _read_manifest(files, parse_object(_document(files, manifest), manifest.digest), advance)


def diff_ids(config: bytes, name: str) -> list[str]:
    """The digests of decompressed layers that a configuration names.

    Raises:
        FormatError: it names none, or not by digests.
    """
    document = parse_object(config, name)
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise FormatError(f"{name}: rootfs.diff_ids must be a list of digests")
    if len(found) > MAX_LAYERS:
        raise FormatError(f"{name}: {len(found)} layers, more than {MAX_LAYERS}")
    for digest in found:
        blob_path(digest, name)
    return found


def _read_manifest(files: ContainerFiles, manifest: Mapping[str, Any], advance: Advance) -> ContainerImage:
    name = files.name
    config = _descriptor(manifest.get("config"), name)
    if config.media_type not in _CONFIGS:
        raise UnsupportedFeature(f"{name}: {config.media_type[:100]}: not an image of a container (an artifact?)")
    data = _document(files, config)
    ids = diff_ids(data, f"{name}: {config.digest}")
    given = manifest.get("layers")
    if not isinstance(given, list) or len(given) != len(ids):
        raise FormatError(f"{name}: the manifest has not as many layers as the configuration: {len(ids)}")
    descriptors = [_descriptor(each, name) for each in given]
    for descriptor in descriptors:
        if descriptor.media_type not in _LAYERS:
            raise UnsupportedFeature(f"{name}: a layer of type {descriptor.media_type[:100]}, not a tar archive")

    def layers() -> Iterator[Layer]:
        for descriptor, diff_id in zip(descriptors, ids, strict=True):
            yield Layer(_blob(files, descriptor, advance), diff_id, f"{name}: layer {descriptor.digest}")

    return ContainerImage(data, layers())


def _manifests(index: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = index.get("manifests")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise FormatError(f"{name}: manifests must be a list of objects")
    if len(found) > _MAX_MANIFESTS:
        raise FormatError(f"{name}: {len(found)} manifests, more than {_MAX_MANIFESTS}")
    return found


def _by_tag(found: list[dict[str, Any]], tag: str | None, name: str) -> dict[str, Any]:
    tags = [_tag_of(each) for each in found]
    if tag is not None:
        chosen = [each for each, own in zip(found, tags, strict=True) if own == tag]
        if not chosen:
            raise FormatError(f"{name}: no image of tag {tag}; it has {_listed(tags)}")
        return chosen[0] if len(chosen) == 1 else _for_this_machine(chosen, name)
    if len(found) == 1:
        return found[0]
    if len(set(tags)) > 1:
        raise FormatError(f"{name}: several images: give a tag behind a colon: {_listed(tags)}")
    return _for_this_machine(found, name)


def _for_this_machine(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    wanted = own_architecture()
    platforms = [_platform_of(each) for each in found]
    for each, (system, machine) in zip(found, platforms, strict=True):
        if (system, machine) == ("linux", wanted):
            return each
    if len({str(each.get("digest")) for each in found}) == 1 and set(platforms) == {("", "")}:
        return found[0]
    listed = _listed([f"{system}/{machine}" if system else "one for no platform" for system, machine in platforms])
    raise FormatError(f"{name}: no image for linux/{wanted}; it has {listed}")


def _platform_of(descriptor: Mapping[str, Any]) -> tuple[str, str]:
    given = descriptor.get("platform")
    given = given if isinstance(given, dict) else {}
    return str(given.get("os", "")), str(given.get("architecture", ""))


def _tag_of(descriptor: Mapping[str, Any]) -> str | None:
    annotations = descriptor.get("annotations")
    found = annotations.get(oci_media.REF_NAME) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else None


def _listed(words: list[Any]) -> str:
    shown = sorted({str(word)[:100] for word in words if word is not None})
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "") if shown else "none"


def _descriptor(given: Any, name: str) -> Descriptor:
    given = given if isinstance(given, dict) else {}
    media_type, digest, size = given.get("mediaType"), given.get("digest"), given.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise FormatError(f"{name}: a descriptor without mediaType, digest or size")
    blob_path(digest, name)
    return Descriptor(media_type, digest, size)


def _document(files: ContainerFiles, descriptor: Descriptor) -> bytes:
    return read_document(_blob(files, descriptor, lambda count: None), descriptor.digest)


def _blob(files: ContainerFiles, descriptor: Descriptor, advance: Advance) -> FilePart:
    """A blob, verified."""
    part = files.open(blob_path(descriptor.digest, files.name))
    if part.size != descriptor.size:
        raise FormatError(f"{files.name}: {descriptor.digest}: {part.size} bytes, not {descriptor.size}")
    check_digest(part, descriptor.digest, files.name, advance)
    return part

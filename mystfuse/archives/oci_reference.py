"""Where an OCI image is: ``oci:DIR[:TAG]`` and ``oci-archive:FILE[:TAG]``, as skopeo and podman write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mystfuse.errors import UsageError

LAYOUT, ARCHIVE = "oci", "oci-archive"
MAX_TAG = 255
"""Characters."""
# The grammar of the annotation org.opencontainers.image.ref.name.
_WORD = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_TAG = re.compile(rf"{_WORD}(?:/{_WORD})*")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a layout."""

    transport: str
    """LAYOUT, a directory; or ARCHIVE, a tar file of one."""
    path: str
    tag: str | None

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}{'' if self.tag is None else f':{self.tag}'}"


def parse_reference(text: str) -> Reference:
    """Parse ``oci:DIR[:TAG]`` or ``oci-archive:FILE[:TAG]``. The path ends at the first colon, as for skopeo.

    Raises:
        UsageError: it is neither, or no name that an index may have.
    """
    transport, colon, rest = text.partition(":")
    path, has_tag, tag = rest.partition(":")
    if transport not in (LAYOUT, ARCHIVE) or not colon or not path:
        raise UsageError(f"{text}: must be oci:DIR:TAG or oci-archive:FILE:TAG")
    if path.startswith("//"):
        raise UsageError(
            f"{text}: a registry, where a directory is needed, {LAYOUT}:DIR:TAG: mystfuse push sends an image there, "
            "skopeo copy a container image"
        )
    if has_tag and (len(tag) > MAX_TAG or not _TAG.fullmatch(tag)):
        raise UsageError(
            f"{text}: {tag!r} is no tag: letters and digits, with one of - . _ : @ + / between them "
            "(the path ends at the first colon)"
        )
    return Reference(transport, path, tag if has_tag else None)

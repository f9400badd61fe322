"""Which image of a container is meant: those of ``oci_reference``, and ``docker-archive:FILE[:NAME:TAG]``."""

from __future__ import annotations

from mystfuse.archives.oci_reference import ARCHIVE, LAYOUT, Reference, parse_reference
from mystfuse.errors import UsageError

DOCKER = "docker-archive"


def is_container_image(text: str) -> bool:
    """Whether this names an image of a container; a file of such a name is given as ``./oci:...``."""
    return text.partition(":")[0] in (LAYOUT, ARCHIVE, DOCKER) and ":" in text


def parse_container_image(text: str) -> Reference:
    """The parts of such a name.

    Raises:
        UsageError: the file's name is missing, or the tag cannot be one.
    """
    transport, _, rest = text.partition(":")
    if transport != DOCKER:
        return parse_reference(text)
    path, _, tag = rest.partition(":")
    if not path:
        raise UsageError(f"{text}: must be docker-archive:FILE or docker-archive:FILE:NAME:TAG")
    return Reference(DOCKER, path, tag or None)

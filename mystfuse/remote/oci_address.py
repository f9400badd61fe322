"""Which artifact of a registry an address means: ``oci://REGISTRY/NAME[:TAG][@DIGEST]``.

Source: the OCI distribution specification 1.1, "Pulling manifests" (names and tags). ``docker.io`` is the one name that
is not a host's: its registry is registry-1.docker.io.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mystfuse.errors import UsageError
from mystfuse.formats.oci_artifact import is_digest
from mystfuse.remote.address import Address

PLAIN_HTTP = "MYSTFUSE_PLAIN_HTTP"
"""The variable with registries, separated by commas, that are asked without TLS."""
DEFAULT_TAG = "latest"

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class OciReference:
    """A manifest of a registry."""

    registry: str
    """Host and port, as given."""
    repository: str
    reference: str
    """A tag or a digest."""

    @property
    def is_by_digest(self) -> bool:
        return ":" in self.reference

    @property
    def name(self) -> str:
        """As an address."""
        return f"{self.base_name}{'@' if self.is_by_digest else ':'}{self.reference}"

    @property
    def base_name(self) -> str:
        """Registry and repository as an address."""
        return f"oci://{self.registry}/{self.repository}"

    @property
    def host(self) -> str:
        """The host, and port, to connect to."""
        return "registry-1.docker.io" if self.registry == "docker.io" else self.registry

    def base_url(self, environment: Mapping[str, str] = os.environ) -> str:
        """The beginning of all URLs: http for a registry on this machine or in ``MYSTFUSE_PLAIN_HTTP``, else https."""
        plain = self.registry in environment.get(PLAIN_HTTP, "").split(",") or _is_loopback(self.registry)
        return f"{'http' if plain else 'https'}://{self.host}"


def is_repository(text: str) -> bool:
    """Whether this can be the name of a repository."""
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def parse_oci_address(address: Address) -> OciReference:
    """The artifact that an address means; a digest wins over a tag, and without both it is the tag ``latest``.

    Raises:
        UsageError: registry, repository, tag or digest cannot be one.
    """
    registry, _, rest = address.text.partition("://")[2].partition("/")
    if "@" in registry:
        raise UsageError(f"{address.name}: no user stands in an address of a registry: log in with skopeo login")
    if not _HOST.fullmatch(registry):
        raise UsageError(f"{address.name}: {registry!r} cannot be a registry")
    rest, at, digest = rest.partition("@")
    repository, colon, tag = rest.partition(":")
    if not is_repository(repository):
        raise UsageError(
            f"{address.name}: {repository!r} cannot be a repository: lower-case letters, digits, and single '.', '_', "
            "'-' and '/' between them"
        )
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(f"{address.name}: {tag!r} cannot be a tag")
    if at and not is_digest(digest):
        raise UsageError(f"{address.name}: a digest is sha256: and 64 hex digits, or sha512: and 128")
    return OciReference(registry, repository, digest or tag or DEFAULT_TAG)


def _is_loopback(registry: str) -> bool:
    host = re.sub(r":[0-9]+$", "", registry).strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

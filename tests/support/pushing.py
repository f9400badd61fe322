"""Pushing bytes to a registry, as the command does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mystfuse.formats.oci_artifact import make_artifact
from mystfuse.remote.address import parse_address
from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.oci_address import parse_oci_address
from mystfuse.remote.push_oci import OciPush, blob_of, scopes_of
from mystfuse.remote.pushed import Pushed
from mystfuse.remote.registry import Registry


@dataclass
class Bytes:
    """A file in memory."""

    data: bytes
    name: str = "app.img"

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass
class Told:
    """A push, and what it said meanwhile."""

    pushed: Pushed
    advanced: int
    notes: list[str]


async def push(
    address: str,
    data: bytes,
    mount_from: str | None = None,
    annotations: Mapping[str, str] | None = None,
    file: Bytes | None = None,
) -> Told:
    """Push bytes, which need be no image.

    Args:
        file: the bytes as they are read while they are sent.
    """
    reference = parse_oci_address(parse_address(address))
    file, advanced, notes = file or Bytes(data), [0], list[str]()
    blob = blob_of(Bytes(data), lambda _: None)
    client = HttpClient()
    registry = Registry(reference, client, scopes_of(reference, mount_from))
    made = make_artifact(blob, file.name, None, annotations)
    pushed = await OciPush(registry, mount_from, advanced.append, notes.append).push(file, blob, made)
    await client.aclose()
    return Told(pushed, sum(advanced), notes)

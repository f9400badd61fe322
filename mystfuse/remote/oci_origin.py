"""Images in OCI registries: the manifest names a blob, whose ranges are fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mystfuse.formats.oci_artifact import Blob
from mystfuse.remote.address import Address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.http_origin import HttpOrigin
from mystfuse.remote.oci_address import parse_oci_address
from mystfuse.remote.origin import Failure, FetchError, Opened, Receive
from mystfuse.remote.prepared_place import Prepared, PreparedPlace
from mystfuse.remote.registry import Registry


class OciOrigin:
    """The blob that a tag or digest meant when it was opened.

    Raises:
        UsageError: the address is not one of a registry.
    """

    def __init__(self, address: Address, config: FetcherConfig) -> None:
        self._reference = parse_oci_address(address)
        self.name = self._reference.name
        client = HttpClient(config.ca_certificates, config.client_certificate)
        self._registry = Registry(self._reference, client, [f"repository:{self._reference.repository}:pull"])
        place = PreparedPlace(client, self.name, self._prepare, self._explain)
        self._ranges = HttpOrigin(address, client, place)
        self._blob: Blob | None = None
        self._is_gone = False

    async def open(self, tail: int) -> Opened:
        """As ``Origin.open``; the validator is the digest of the image."""
        blob = self._blob
        if blob is None or self._is_gone:
            found = await self._registry.find_image()
            # When it is opened twice at once, a tag may move in between: the first answer counts.
            if self._blob is None or self._is_gone:
                self._blob, self._is_gone = found, False
            blob = self._blob
        try:
            opened = await self._ranges.open(tail)
        except FetchError as error:
            if error.failure is Failure.ABSENT:
                self._is_gone = True
            raise
        if opened.size != blob.size:
            raise FetchError(
                Failure.UNUSABLE, f"{self.name}: the blob has {opened.size} bytes, its manifest says {blob.size}"
            )
        return replace(opened, validator=blob.digest)

    @property
    def pinned(self) -> str:
        """The address of the manifest that was found, by its digest; empty: none was."""
        digest = self._registry.manifest_digest
        return replace(self._reference, reference=digest).name if digest and self._blob is not None else ""

    async def fetch(self, offset: int, length: int, receive: Receive, *, directly: bool = False) -> None:
        """As ``Origin.fetch``."""
        await self._ranges.fetch(offset, length, receive, directly=directly)

    async def renew(self) -> None:
        """Read the credentials again, and get a new token.

        Raises:
            FetchError: there are none, or they are refused.
        """
        await self._registry.auth.renew()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._ranges.aclose()

    async def _prepare(self) -> Prepared:
        assert self._blob is not None
        url = self._registry.url(f"blobs/{self._blob.digest}")
        return Prepared(url, await self._registry.auth.authorization())

    def _explain(self, status: int, headers: Mapping[str, str], body: bytes) -> FetchError | None:
        # Also what a storage behind the registry answers.
        return self._registry.failure(status, headers, body, "the registry has no such blob any more")

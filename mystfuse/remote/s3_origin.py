"""Images in S3, and in what speaks its protocol: ranged GETs of URLs that botocore signs.

A signed URL is a secret for as long as it is valid: it is in no message. It serves many ranges, since the range is not
signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import trio
from botocore.exceptions import BotoCoreError

from mystfuse.remote.address import Address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.http_origin import HttpOrigin
from mystfuse.remote.origin import Failure, FetchError, Opened, Receive
from mystfuse.remote.prepared_place import Prepared, PreparedPlace
from mystfuse.remote.s3_address import parse_s3_address
from mystfuse.remote.s3_client import S3Client
from mystfuse.remote.s3_errors import S3Error
from mystfuse.system.threads import call_in_thread

T = TypeVar("T")

_VALID = 900
"""Seconds for which a URL is signed."""
_USED = 300.0
"""Seconds for which it is used: botocore renews temporary credentials at least ten minutes before they expire."""
_CREDENTIALS_TIMEOUT = 60.0
"""Seconds in which credentials must be found, ours if there is no shorter limit: programs and services give them."""


class S3Origin:
    """One object, of the version that it has when it is opened.

    Raises:
        UsageError: the address is not one of S3.
    """

    def __init__(self, address: Address, config: FetcherConfig) -> None:
        self.name = address.name
        self._object = parse_s3_address(address)
        self._config = config
        http = HttpClient(config.ca_certificates, config.client_certificate)
        self._place = PreparedPlace(http, self.name, self._prepare, self._explain)
        self._ranges = HttpOrigin(address, http, self._place)
        self._client: S3Client | None = None
        self._region: str | None = None
        self._bucket_region = ""
        self._url = ""
        self._signed_at = 0.0
        self._lock = trio.Lock()

    async def open(self, tail: int) -> Opened:
        """As ``Origin.open``; later requests name the version that it finds, if the bucket has versions."""
        try:
            opened = await self._ranges.open(tail)
        except FetchError:
            if self._bucket_region in ("", self._region):
                raise
            self._region, self._client, self._url = self._bucket_region, None, ""
            opened = await self._ranges.open(tail)
        version = self._place.headers_of(opened.validator).get("x-amz-version-id", "")
        if version in ("", "null"):
            # The ETag watches over it then.
            return opened
        if not self._object.version:
            self._object, self._url = replace(self._object, version=version), ""
        return replace(opened, validator=version)

    @property
    def pinned(self) -> str:
        """The address of the version that is open; empty: there is none."""
        return self._object.address if self._object.version else ""

    async def fetch(self, offset: int, length: int, receive: Receive, *, directly: bool = False) -> None:
        """As ``Origin.fetch``."""
        await self._ranges.fetch(offset, length, receive, directly=directly)

    async def renew(self) -> None:
        """Search for credentials from the start.

        Raises:
            FetchError: there are none, or they cannot be got.
        """
        self._client, self._url = None, ""
        await self._prepare()
        if self._client is None or not self._client.has_credentials:
            raise FetchError(Failure.DENIED, f"{self.name}: access denied, and no credentials have been found")

    async def aclose(self) -> None:
        """Close its connections."""
        await self._ranges.aclose()

    async def _prepare(self) -> Prepared:
        async with self._lock:
            if not self._url or trio.current_time() - self._signed_at > _USED:
                if self._client is None:
                    self._client = await self._in_thread(lambda: S3Client(self._config, self._region))
                client, wanted = self._client.client, self._object
                parameters = {"Bucket": wanted.bucket, "Key": wanted.key}
                if wanted.version:
                    parameters["VersionId"] = wanted.version
                # In a thread: credentials that are about to expire are renewed now.
                url: Any = await self._in_thread(
                    lambda: client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=_VALID)
                )
                self._url, self._signed_at = str(url), trio.current_time()
            return Prepared(self._url)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with trio.fail_after(min(_CREDENTIALS_TIMEOUT, self._config.io_timeout or _CREDENTIALS_TIMEOUT)):
                return await call_in_thread(work)
        except trio.TooSlowError:
            raise FetchError(
                Failure.UNREACHABLE, f"{self.name}: credentials: what gives them does not answer in time"
            ) from None
        except (BotoCoreError, OSError, ValueError, EOFError) as error:
            raise FetchError(Failure.DENIED, f"{self.name}: {error}") from error

    def _explain(self, status: int, headers: Mapping[str, str], body: bytes) -> FetchError | None:
        error = S3Error.parse(headers, body)
        self._bucket_region = error.region or self._bucket_region
        if status == 301 or error.code == "PermanentRedirect":
            where = error.region or "another region"
            return FetchError(Failure.UNUSABLE, f"{self.name}: the bucket is in {where}: set AWS_REGION")
        return error.failure(
            self.name, status, has_credentials=self._client is not None and self._client.has_credentials
        )

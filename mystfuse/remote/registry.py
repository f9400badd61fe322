"""Requests to a registry about one repository, with what it wants to know of the user; and manifests.

Source: the OCI distribution specification 1.1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx2

from mystfuse.errors import FormatError, one_line
from mystfuse.formats.oci_artifact import (
    ACCEPT,
    MAX_MANIFEST,
    ArtifactIndex,
    Blob,
    NotAnArtifact,
    digest_matches,
    digest_of,
    parse_artifact,
)
from mystfuse.remote.http_client import SAFETY_NET, HttpClient
from mystfuse.remote.http_failures import detail_of, failure_of_status
from mystfuse.remote.oci_address import OciReference
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.registry_auth import RegistryAuth

_MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)

Content = bytes | None | Callable[[], AsyncIterator[bytes]]
"""The body of a request; a function makes one that is long, as often as it is to be sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry has answered: its status, headers, and body, which is bounded."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: httpx2.URL
    """Where it came from: what ``Location`` may be relative to."""


class Registry:
    """One repository of a registry.

    Args:
        client: for all requests.
        scopes: what a token is to allow.
    """

    def __init__(self, reference: OciReference, client: HttpClient, scopes: Sequence[str]) -> None:
        self.reference = reference
        self.name = reference.name
        self.base_url = reference.base_url()
        self._client = client
        self.manifest_digest = ""
        """Of the manifest that ``find_image`` has found."""
        self.auth = RegistryAuth(self.name, reference.registry, reference.repository, self.base_url, client, scopes)

    def url(self, rest: str) -> str:
        """The URL of ``rest`` in the repository, such as ``blobs/DIGEST``."""
        return f"{self.base_url}/v2/{self.reference.repository}/{rest}"

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        *,
        limit: int = 64 << 10,
        patience: float = SAFETY_NET,
    ) -> Answer:
        """Send a request, and once more if the registry wants to know who asks. GETs follow redirects; the user's
        credentials do not.

        Args:
            limit: bytes of the body that are read.
            patience: seconds for each step.

        Raises:
            FetchError: no answer, or nothing satisfies the registry.
        """
        for is_last in (False, True):
            answer = await self._send(method, url, dict(headers or {}), content, limit, patience)
            if answer.status != 401 or is_last:
                break
            await self.auth.answer(answer.headers.get("www-authenticate", ""))
        return answer

    async def _send(
        self, method: str, url: str, headers: dict[str, str], content: Content, limit: int, patience: float
    ) -> Answer:
        target, home = httpx2.URL(url), httpx2.URL(self.base_url)
        for _ in range(_MAX_REDIRECTS):
            # An upload may go on at another host, which gets nothing of ours.
            own = await self.auth.authorization() if target.origin == home.origin else ""
            sent = {**headers, "Authorization": own} if own else headers
            body = content() if callable(content) else content
            async with self._client.send(self.name, method, target, sent, content=body, patience=patience) as answer:
                location = answer.headers.get("location")
                if method == "GET" and answer.status in REDIRECTS and location:
                    target = self.follow(target, location)
                    continue
                # A manifest is as large as it may be; no error is.
                text = await answer.read(limit) if answer.status < 300 else await answer.beginning()
                return Answer(answer.status, answer.headers, text, target)
        raise FetchError(Failure.UNUSABLE, f"{self.name}: too many redirects")

    def follow(self, url: httpx2.URL, location: str) -> httpx2.URL:
        """Where the header Location of an answer from ``url`` leads; raises FetchError if nobody should go there."""
        try:
            target = url.join(location).copy_with(fragment=None)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise FetchError(Failure.UNUSABLE, f"{self.name}: the registry leads to what is no URL") from error
        if target.scheme not in ("https", url.scheme) or not target.host:
            where = one_line(target.scheme)[:20]
            raise FetchError(Failure.UNUSABLE, f"{self.name}: the registry leads from {url.scheme} to {where}")
        return target

    async def find_image(self) -> Blob:
        """The blob that the reference's manifest names as the image.

        Raises:
            FetchError: there is none: no such manifest, or one of something else.
        """
        found = await self._find(self.reference.reference)
        if isinstance(found, ArtifactIndex):
            if len(found.manifests) > 1:
                raise FetchError(
                    Failure.UNUSABLE,
                    f"{self.name}: an index of {len(found.manifests)} images: name one by its digest, such as "
                    f"{self.reference.base_name}@{found.manifests[0]}",
                )
            found = await self._find(found.manifests[0])
        if isinstance(found, ArtifactIndex):
            raise FetchError(Failure.UNUSABLE, f"{self.name}: an index of an index")
        return found

    async def _find(self, reference: str) -> Blob | ArtifactIndex:
        answer = await self.send("GET", self.url(f"manifests/{reference}"), {"Accept": ACCEPT}, limit=MAX_MANIFEST)
        if answer.status != 200:
            raise self.failure(answer.status, answer.headers, answer.body, "no such tag, digest or repository")
        if ":" in reference and not digest_matches(reference, answer.body):
            raise FetchError(Failure.UNUSABLE, f"{self.name}: the registry sends another manifest than {reference}")
        try:
            found = parse_artifact(answer.body)
            if isinstance(found, Blob):
                self.manifest_digest = digest_of(answer.body)
            return found
        except NotAnArtifact as error:
            advice = ""
            if error.is_container_image:
                source = f"docker://{self.reference.registry}/{self.reference.repository}"
                by = "@" if self.reference.is_by_digest else ":"
                advice = (
                    f" (make one of it: skopeo copy {source}{by}{self.reference.reference} oci:DIR:TAG, "
                    "mystfuse mkext2 oci:DIR:TAG IMAGE)"
                )
            raise FetchError(Failure.UNUSABLE, f"{self.name}: {error}{advice}") from error
        except FormatError as error:
            raise FetchError(Failure.UNUSABLE, f"{self.name}: {error}") from error

    def failure(self, status: int, headers: Mapping[str, str], body: bytes, absent: str) -> FetchError:
        """What an answer means that is no success.

        Args:
            body: its beginning.
            absent: what HTTP 404 means here.
        """
        error = failure_of_status(self.name, status, headers, body)
        if status in (401, 403):
            detail = f" ({detail_of(body)})" if detail_of(body) else ""
            return FetchError(Failure.DENIED, f"{self.name}: access denied{detail}")
        return FetchError(Failure.ABSENT, f"{self.name}: {absent}") if error.failure is Failure.ABSENT else error

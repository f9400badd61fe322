"""Where an object is whose requests must be signed, or carry a token: URL and credentials change with time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mystfuse.remote.http_client import Answer, HttpClient
from mystfuse.remote.http_redirects import Place
from mystfuse.remote.origin import FetchError

_MAX_SEEN = 4
"""ETags: when the object is opened, there is one, or two if it is replaced then."""
_MEANT_FOR_ORIGIN = (200, 206, 412, 416)
"""Answers about the range or the version that was asked for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where to send a request. Both may be secrets."""

    url: str
    authorization: str = ""
    """The header, for the URL's host alone; empty: none."""


Explain = Callable[[int, Mapping[str, str], bytes], FetchError | None]
"""What a service means by an answer: its status, headers and the beginning of its body; None: nothing special."""


class PreparedPlace:
    """An ``ObjectPlace`` whose requests are prepared one by one; redirects are remembered while nothing changes.

    Args:
        prepare: called for each request; it may answer from memory, or raise FetchError.
        explain: called for each answer that has no part of the object.
    """

    def __init__(
        self, client: HttpClient, name: str, prepare: Callable[[], Awaitable[Prepared]], explain: Explain
    ) -> None:
        self._client = client
        self._name = name
        self._prepare = prepare
        self._explain = explain
        self._prepared: Prepared | None = None
        self._place: Place | None = None
        self._seen: dict[str, Mapping[str, str]] = {}

    @asynccontextmanager
    async def get(self, headers: Mapping[str, str], *, directly: bool = False) -> AsyncIterator[Answer]:
        """See ``ObjectPlace``."""
        prepared = await self._prepare()
        if self._place is None or prepared != self._prepared:
            self._prepared = prepared
            self._place = Place(self._client, prepared.url, self._name, prepared.authorization)
        async with self._place.get(headers, directly=directly) as answer:
            if answer.status not in _MEANT_FOR_ORIGIN:
                error = self._explain(answer.status, answer.headers, await answer.beginning())
                raise error or await answer.failure()
            self._seen[answer.headers.get("etag", "")] = answer.headers
            if len(self._seen) > _MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            yield answer

    def headers_of(self, etag: str) -> Mapping[str, str]:
        """The headers of the last answer with this ETag; none if that is long ago."""
        return self._seen.get(etag, {})

    def renew(self) -> bool:
        """See ``ObjectPlace``; what prepares requests is renewed by its owner."""
        self._place = None
        return True

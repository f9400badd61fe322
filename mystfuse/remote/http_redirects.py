"""Where an address is at present: there, or where its redirects lead; and who gets its credentials."""

from __future__ import annotations

import base64
import netrc
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from mystfuse.errors import one_line
from mystfuse.remote.http_client import Answer, HttpClient
from mystfuse.remote.http_ranges import unusable
from mystfuse.remote.origin import Failure, FetchError

MOST_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
_EXPIRED = (400, 401, 403, 404, 410)
"""What servers answer to a signed URL that has expired, or one whose object they have moved."""


class Place:
    """The URL of an object, and where its redirects led last time, which is asked first.

    Args:
        client: that sends the requests.
        url: as the user gave it; user and password are taken from it.
        name: for messages.
        credentials: the value of ``Authorization``, for the URL's own host alone; None: user and password of the URL,
            or those in the netrc file; empty: none.
    """

    def __init__(self, client: HttpClient, url: str, name: str, credentials: str | None = None) -> None:
        self._client = client
        self._name = name
        try:
            given = httpx2.URL(url)
            self._user = (given.username, given.password) if given.username or given.password else None
            self._start = given.copy_with(username=None, password=None)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise unusable(name, f"not a URL: {one_line(str(error))}") from error
        self._led_to: httpx2.URL | None = None
        self._given = credentials
        self._authorization = self._find_credentials() if credentials is None else credentials or None

    @asynccontextmanager
    async def get(self, headers: Mapping[str, str], *, directly: bool = False) -> AsyncIterator[Answer]:
        """Ask for the object, where it was last time; if it is not there any more, from the start.

        Raises:
            FetchError: of ``HttpClient.send``; UNUSABLE: the redirects lead nowhere, or to where nobody should go.
        """
        if self._led_to is not None:
            url = self._led_to
            try:
                async with self._client.send(self._name, "GET", url, headers, directly=directly) as answer:
                    if answer.status not in (*_EXPIRED, *_REDIRECTS):
                        yield answer
                        return
            except FetchError:
                self._forget(url)
                raise
            self._forget(url)
        url = self._start
        visited: set[httpx2.URL] = set()
        while len(visited) <= MOST_REDIRECTS:
            if url in visited:
                raise unusable(self._name, "the server redirects in circles")
            visited.add(url)
            sent = self._with_credentials(url, headers)
            async with self._client.send(self._name, "GET", url, sent, directly=directly) as answer:
                if answer.status not in _REDIRECTS or not answer.headers.get("location"):
                    self._led_to = url if url != self._start and answer.status < 300 else None
                    yield answer
                    return
                url = self._follow(url, answer)
                # So that the connection can be used again.
                await answer.beginning()
        raise unusable(self._name, f"more than {MOST_REDIRECTS} redirects")

    def renew(self) -> bool:
        """Forget where redirects led, and look for credentials again. Returns whether anything is new."""
        was = self._authorization, self._led_to
        self._led_to = None
        self._authorization = self._find_credentials() if self._given is None else self._given or None
        return was != (self._authorization, None)

    def _forget(self, url: httpx2.URL) -> None:
        if self._led_to == url:
            self._led_to = None

    def _with_credentials(self, url: httpx2.URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        start = self._start
        is_same = (url.scheme, url.port) == (start.scheme, start.port)
        is_upgraded = (start.scheme, url.scheme) == ("http", "https") and start.port == url.port is None
        if self._authorization is None or url.host != start.host or not (is_same or is_upgraded):
            return headers
        return {**headers, "Authorization": self._authorization}

    def _follow(self, url: httpx2.URL, answer: Answer) -> httpx2.URL:
        try:
            led_to = url.join(answer.headers["location"]).copy_with(fragment=None)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise unusable(self._name, f"a redirect to what is not a URL: {one_line(str(error))[:100]}") from error
        if led_to.scheme not in ("http", "https") or not led_to.host:
            raise unusable(self._name, f"a redirect to {one_line(led_to.scheme)[:20]}:, which is not HTTP")
        if url.scheme == "https" and led_to.scheme == "http":
            where = f"http://{one_line(led_to.host)[:100]}"
            raise unusable(self._name, f"a redirect from https to {where}, which is not followed")
        return led_to.copy_with(username=None, password=None)

    def _find_credentials(self) -> str | None:
        user, password = self._user or _from_netrc(self._start.host, self._name)
        if not user and not password:
            return None
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _from_netrc(host: str, name: str) -> tuple[str, str]:
    """User and password of a host in ``$NETRC``, else ``~/.netrc``; empty if there are none."""
    path = Path(os.environ.get("NETRC") or "~/.netrc")
    try:
        found = netrc.netrc(path.expanduser()).authenticators(host)
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        return "", ""
    except (OSError, netrc.NetrcParseError, UnicodeError) as error:
        why = f"{path} cannot be read for a user and password: {one_line(str(error))}"
        raise FetchError(Failure.DENIED, f"{name}: {why}") from error
    return (found[0], found[2] or "") if found else ("", "")

"""Redirects, and who gets credentials: the host that the user named, and nobody else."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.origin import Failure, FetchError
from tests.support.certificates import Authority, make_authority
from tests.support.faulty_proxy import FaultyServer
from tests.support.http_objects import Request, Response, StoredObject
from tests.support.origin_servers import fetched, origin_at, serving

CONTENT = random.Random(11).randbytes(300_000)
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


class Redirecting:
    """Sends whoever asks for ``/image`` to where ``where`` says; serves the object at other paths."""

    def __init__(self, where: Callable[[], str], status: int = 302) -> None:
        self.object = StoredObject(CONTENT)
        self.where, self.status = where, status
        self.refused: set[str] = set()
        """Paths that answer 403."""

    async def __call__(self, request: Request) -> Response:
        if request.target == "/image":
            return Response(self.status, {"Location": self.where()}, b"elsewhere")
        return Response(403, {}, b"expired") if request.target in self.refused else await self.object(request)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_and_remembered(status: int) -> None:
    server = FaultyServer(Redirecting(lambda: "/other?signature=1", status))
    async with serving(server) as address, origin_at(address) as origin:
        assert (await origin.open(100)).tail == CONTENT[-100:]
        before = len(server.requests)
        assert await fetched(origin, 5, 1000) == CONTENT[5:1005]
        assert [request.target for request in server.requests[before:]] == ["/other?signature=1"]


async def test_where_a_redirect_led_may_expire() -> None:
    """As signed URLs do: it is asked for again from the start, in the same fetch."""
    handler = Redirecting(lambda: f"/signed?number={len(handler.refused)}")
    server = FaultyServer(handler)
    async with serving(server) as address, origin_at(address) as origin:
        await origin.open(100)
        for expired in ("/signed?number=0", "/signed?number=1"):
            handler.refused.add(expired)
            before = len(server.requests)
            assert await fetched(origin, 5, 1000) == CONTENT[5:1005]
            targets = [request.target for request in server.requests[before:]]
            assert targets == [expired, "/image", f"/signed?number={len(handler.refused)}"]


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("/image", "the server redirects in circles"),
        ("ftp://127.0.0.1/image", "a redirect to ftp:, which is not HTTP"),
        ("file:///etc/passwd", "a redirect to file:, which is not HTTP"),
        ("http://[::1/", "a redirect to what is not a URL"),
        ("//", "redirects in circles|not a URL|which is not HTTP"),
    ],
)
async def test_redirects_to_nowhere_are_refused(location: str, text: str) -> None:
    async with serving(FaultyServer(Redirecting(lambda: location))) as address, origin_at(address) as origin:
        with pytest.raises(FetchError, match=text) as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNUSABLE


async def test_a_long_way_of_redirects_is_refused() -> None:
    async def answer(request: Request) -> Response:
        return Response(302, {"Location": f"{request.target}x"}, b"")

    server = FaultyServer(answer)
    async with serving(server) as address, origin_at(address) as origin:
        with pytest.raises(FetchError, match="more than 8 redirects"):
            await origin.open(100)
    # Head and tail.
    assert len(server.requests) == 18


async def test_a_redirect_from_https_to_http_is_refused(authority: Authority) -> None:
    plain = FaultyServer(StoredObject(CONTENT))
    tls = FaultyServer(Redirecting(lambda: f"http://localhost:{plain.port}/other"), tls=authority.server_context())
    async with serving(plain), serving(tls) as address, origin_at(address, ca_certificates=str(authority.ca)) as origin:
        with pytest.raises(FetchError, match="a redirect from https to http://localhost, which is not followed"):
            await origin.open(100)
    assert not plain.requests


@pytest.mark.parametrize("source", ["address", "netrc"])
async def test_credentials_stay_with_the_host_they_are_for(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FaultyServer(StoredObject(CONTENT))
    server = FaultyServer(Redirecting(lambda: f"http://127.0.0.1:{other.port}/other"))
    (tmp_path / "netrc").write_text("machine localhost login me password secret\ndefault login any password thing\n")
    if source == "address":
        monkeypatch.delenv("NETRC")
        monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    async with serving(other), serving(server) as address:
        if source == "address":
            address = address.replace("://", "://me:secret@")
        async with origin_at(address) as origin:
            assert "secret" not in origin.name
            assert (await origin.open(100)).tail == CONTENT[-100:]
            await fetched(origin, 0, 10)
    assert {request.headers.get("authorization") for request in server.requests} == {BASIC}
    assert {request.headers.get("authorization") for request in other.requests} == {None}


async def test_new_credentials_are_read_from_the_netrc_file(tmp_path: Path) -> None:
    async def answer(request: Request) -> Response:
        return await stored(request) if request.headers.get("authorization") == BASIC else Response(401)

    stored = StoredObject(CONTENT)
    netrc = tmp_path / "netrc"
    async with serving(FaultyServer(answer)) as address:
        netrc.write_text("machine localhost login me password old")
        async with origin_at(address) as origin:
            with pytest.raises(FetchError, match=r"401 Unauthorized; the user and password in ~/\.netrc") as caught:
                await origin.open(100)
            assert caught.value.failure is Failure.DENIED
            with pytest.raises(FetchError, match="no other credentials"):
                await origin.renew()
            netrc.write_text("machine localhost login me password secret")
            await origin.renew()
            assert (await origin.open(100)).tail == CONTENT[-100:]


async def test_a_netrc_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine localhost wrong")
    with pytest.raises(FetchError, match="netrc cannot be read for a user and password"):
        async with origin_at("http://localhost:1/image"):
            pass


async def test_hosts_that_a_server_makes_up_are_not_remembered_for_ever() -> None:
    client = HttpClient()
    for number in range(1000):
        client._proxy(httpx2.URL(f"https://host{number}.example/"))
    assert len(client._proxies) < 300
    await client.aclose()

"""Images behind a forward proxy, squid: when it is used, when it is passed by, and what it refuses."""

from __future__ import annotations

import base64
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.proxies import proxy_for
from tests.support.certificates import Authority, make_authority
from tests.support.faulty_proxy import FaultyServer
from tests.support.http_objects import StoredObject
from tests.support.origin_servers import fetched, origin_at, serving
from tests.support.web_servers import squid

CONTENT = random.Random(23).randbytes(500_000)


@dataclass(frozen=True)
class Proxy:
    directory: Path
    port: int
    authority: Authority

    @property
    def log(self) -> list[str]:
        return (self.directory / "squid/access.log").read_text().splitlines()


@pytest.fixture(scope="module")
def proxy(open_tmp_path_of_module: Path) -> Iterator[Proxy]:
    if shutil.which("squid", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("no squid")
    # squid goes there as a user of its own.
    directory = open_tmp_path_of_module
    (directory / "authority").mkdir()
    authority = make_authority(directory / "authority")
    # A name that the proxy alone knows.
    (directory / "hosts").write_text("127.0.0.1 localhost images.test\n")
    rules = f"acl forbidden url_regex /forbidden\nhttp_access deny forbidden\nhosts_file {directory}/hosts"
    with squid(directory / "squid", rules) as port:
        yield Proxy(directory, port, authority)


@pytest.fixture(autouse=True)
def in_environment(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")


async def test_an_image_is_fetched_through_the_proxy_unless_told_otherwise(proxy: Proxy) -> None:
    async with serving(FaultyServer(StoredObject(CONTENT))) as address, origin_at(address) as origin:
        before = len(proxy.log)
        assert (await origin.open(100)).tail == CONTENT[-100:]
        assert await fetched(origin, 5, 100_000) == CONTENT[5:100_005]
        through = len(proxy.log)
        assert through >= before + 2
        assert await fetched(origin, 5, 100_000, directly=True) == CONTENT[5:100_005]
        assert len(proxy.log) == through


async def test_what_cannot_be_reached_directly_comes_through_the_proxy_past_caches(proxy: Proxy) -> None:
    server = FaultyServer(StoredObject(CONTENT))
    async with serving(server), origin_at(f"http://images.test:{server.port}/image") as origin:
        await origin.open(100)
        assert await fetched(origin, 5, 10, directly=True) == CONTENT[5:15]
        assert server.requests[-1].is_direct
        assert await fetched(origin, 5, 10) == CONTENT[5:15]
        assert not server.requests[-1].is_direct


async def test_https_goes_through_a_tunnel(proxy: Proxy) -> None:
    server = FaultyServer(StoredObject(CONTENT), tls=proxy.authority.server_context())
    async with serving(server) as address, origin_at(address, ca_certificates=str(proxy.authority.ca)) as origin:
        assert (await origin.open(100)).tail == CONTENT[-100:]
        assert await fetched(origin, 5, 100_000) == CONTENT[5:100_005]
    assert any("CONNECT localhost:" in line for line in proxy.log)


async def test_what_the_proxy_refuses_is_told(proxy: Proxy) -> None:
    server = FaultyServer(StoredObject(CONTENT))
    async with serving(server) as address, origin_at(f"{address}/forbidden") as origin:
        with pytest.raises(
            FetchError, match=r"403 Forbidden \(ERROR: The requested URL could not be retrieved\)"
        ) as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.DENIED
    assert not server.requests


async def test_a_server_that_the_proxy_cannot_reach_is_told(proxy: Proxy, unused_port: int) -> None:
    async with origin_at(f"http://localhost:{unused_port}/image") as origin:
        with pytest.raises(FetchError, match="503 Service Unavailable") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.BUSY
    async with origin_at(f"https://localhost:{unused_port}/image") as origin:
        with pytest.raises(FetchError, match=r"the proxy 127.0.0.1:\d+ refuses: 503") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.BUSY


async def test_a_proxy_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port}")
    async with origin_at("http://localhost:1/image") as origin:
        with pytest.raises(FetchError, match=rf"connection refused \(the proxy 127.0.0.1:{unused_port}\)"):
            await origin.open(100)


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1", "gopher://127.0.0.1", "http://[::1"])
async def test_proxies_that_cannot_be_used_are_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    async with origin_at("http://localhost:1/image") as origin:
        with pytest.raises(FetchError, match="proxy ") as caught:
            await origin.open(100)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("no_proxy", "host", "used"),
    [
        ("", "images.test", True),
        ("*", "images.test", False),
        ("images.test", "images.test", False),
        ("test", "images.test", False),
        (".test", "images.test", False),
        ("mages.test", "images.test", True),
        ("other.test, images.test", "images.test", False),
        ("10.0.0.0/8", "10.1.2.3", False),
        ("10.0.0.0/8", "11.1.2.3", True),
        ("fd00::/8", "fd00::1", False),
        ("10.0.0.0/8", "images.test", True),
    ],
)
def test_the_environment_says_who_is_asked_directly(
    no_proxy: str, host: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "proxy.test:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxy_for("http", host, None) == ("http://proxy.test:3128" if used else None)


async def test_a_proxy_s_password_is_for_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FaultyServer(StoredObject(CONTENT))
    async with serving(server):
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.port}")
        async with origin_at("http://images.test/image") as origin:
            assert (await origin.open(100)).tail == CONTENT[-100:]
    password = "Basic " + base64.b64encode(b"me:secret").decode()
    for request in server.requests:
        assert request.target == "http://images.test/image"
        assert request.headers["proxy-authorization"] == password
        assert "authorization" not in request.headers

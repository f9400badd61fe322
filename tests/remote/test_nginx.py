"""Images on nginx: plain, with a password, over TLS with an authority and client certificates of one's own, by HTTP/2,
and with a limit of the rate."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.tls import tls_context
from mystfuse.remote.transfers import Transfers
from tests.support.certificates import Authority, make_authority
from tests.support.commands import run
from tests.support.origin_servers import fetched, origin_at
from tests.support.web_servers import free_ports, http2_alone, nginx

CONTENT = random.Random(5).randbytes(4_000_000)
SERVERS = """
server {{
    listen 127.0.0.1:{plain}; root {root};
    location /private/ {{ alias {root}/; auth_basic images; auth_basic_user_file {root}/users; }}
    location /slow/ {{ alias {root}/; limit_rate 500k; limit_rate_after 1; }}
    location /busy/ {{ alias {root}/; limit_req zone=few burst=1 nodelay; limit_req_status 429; }}
    location /moved/ {{ return 302 https://127.0.0.1:{tls}/image; }}
}}
limit_req_zone $binary_remote_addr zone=few:1m rate=5r/s;
server {{
    listen 127.0.0.1:{tls} ssl; listen 127.0.0.1:{http2} ssl http2; root {root};
    ssl_certificate {certificate}; ssl_certificate_key {key};
}}
server {{
    listen 127.0.0.1:{mutual} ssl; root {root};
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on;
}}
"""


@dataclass(frozen=True)
class Site:
    directory: Path
    ports: dict[str, int]
    authority: Authority

    def url(self, kind: str, path: str = "image") -> str:
        return f"{'http' if kind == 'plain' else 'https'}://localhost:{self.ports[kind]}/{path}"

    @property
    def log(self) -> list[str]:
        return (self.directory / "nginx/access.log").read_text().splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    for name in ("authority", "root"):
        (directory / name).mkdir()
    authority = make_authority(directory / "authority")
    (directory / "root/image").write_bytes(CONTENT)
    hashed = run("openssl", "passwd", "-apr1", "secret").stdout
    (directory / "root/users").write_text(f"me:{hashed}")
    names = ("plain", "tls", "http2", "mutual")
    ports = dict(zip(names, free_ports(4), strict=True))
    servers = SERVERS.format(root=directory / "root", ca=authority.ca, certificate=authority.certificate,
                             key=authority.key, **ports)  # fmt: skip
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        pytest.skip("no nginx")
    with nginx(directory / "nginx", servers, list(ports.values())):
        yield Site(directory, ports, authority)


@pytest.fixture
def trusted(site: Site) -> dict[str, str]:
    return {"ca_certificates": str(site.authority.ca)}


async def check(address: str, **config: str) -> None:
    async with origin_at(address, **config) as origin:
        opened = await origin.open(10_000)
        assert (opened.size, opened.tail) == (len(CONTENT), CONTENT[-10_000:])
        assert opened.head == CONTENT[: len(opened.head)]
        assert opened.validator.startswith('"')
        assert await fetched(origin, 123_456, 2_000_000) == CONTENT[123_456:2_123_456]


@pytest.mark.parametrize("kind", ["plain", "tls", "http2"])
async def test_an_image_is_fetched(kind: str, site: Site, trusted: dict[str, str]) -> None:
    await check(site.url(kind), **trusted)
    assert "HTTP/1.1" in site.log[-1]


async def test_many_ranges_go_through_one_connection_of_http2(site: Site, trusted: dict[str, str]) -> None:
    async with (
        http2_alone(site.ports["http2"]) as port,
        origin_at(f"https://localhost:{port}/image", **trusted) as origin,
    ):
        assert (await origin.open(100)).tail == CONTENT[-100:]
        assert "HTTP/2.0" in site.log[-1]

        async def check_range(offset: int) -> None:
            assert await fetched(origin, offset, 300_000) == CONTENT[offset : offset + 300_000]

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(check_range, number * 90_000)
        # Requests that are given up must not use up the connection's window, which would stop all others.
        for number in range(30):
            with trio.move_on_after(0.02):
                await fetched(origin, number * 1000, 3_000_000)
        await check_range(5)


async def test_an_authority_that_is_not_known_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with origin_at(site.url("tls")) as origin:
        with pytest.raises(FetchError, match=r"not trusted: .*; .* with --ca-certificates or SSL_CERT_FILE") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNTRUSTED


async def test_a_certificate_for_another_host_is_told(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "DNS:images.test")
    root = tmp_path / "root"
    (port,) = free_ports(1)
    server = f"""server {{ listen 127.0.0.1:{port} ssl; root {root}; ssl_certificate {authority.certificate};
                 ssl_certificate_key {authority.key}; }}"""
    with nginx(tmp_path / "nginx", server, [port]):
        async with origin_at(f"https://127.0.0.1:{port}/image", ca_certificates=str(authority.ca)) as origin:
            with pytest.raises(FetchError, match=r"(mismatch|not valid for).*[^.]; the address must have") as caught:
                await origin.open(100)
            assert caught.value.failure is Failure.UNTRUSTED


async def test_the_environment_names_an_authority(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tls_context.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority.ca))
    try:
        await check(site.url("tls"))
    finally:
        tls_context.cache_clear()


async def test_a_file_of_the_environment_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tls_context.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    async with origin_at("https://localhost:1/image") as origin:
        with pytest.raises(FetchError, match=r"^/nowhere/ca\.pem: not a PEM file .*: No such file") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNTRUSTED


async def test_a_client_shows_its_certificate(site: Site, trusted: dict[str, str], tmp_path: Path) -> None:
    pem = tmp_path / "client.pem"
    pem.write_bytes(site.authority.certificate.read_bytes() + site.authority.key.read_bytes())
    await check(site.url("mutual"), client_certificate=str(pem), **trusted)
    async with origin_at(site.url("mutual"), **trusted) as origin:
        with pytest.raises(FetchError, match=r"No required SSL certificate was sent.*--client-certificate") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.DENIED


async def test_a_certificate_that_was_renewed_is_shown(site: Site, trusted: dict[str, str], tmp_path: Path) -> None:
    """As short-lived ones are, while an image is mounted."""
    (tmp_path / "other").mkdir()
    other, pem = make_authority(tmp_path / "other"), tmp_path / "client.pem"
    pem.write_bytes(other.certificate.read_bytes() + other.key.read_bytes())
    address = site.url("mutual")
    async with origin_at(address, client_certificate=str(pem), **trusted) as origin:
        with pytest.raises(FetchError, match="The SSL certificate error") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.DENIED
        with pytest.raises(FetchError, match="no other credentials"):
            await origin.renew()
        pem.write_bytes(site.authority.certificate.read_bytes() + site.authority.key.read_bytes())
        os.utime(pem, (2_000_000_000, 2_000_000_000))
        await origin.renew()
        assert (await origin.open(100)).tail == CONTENT[-100:]


@pytest.mark.parametrize("option", ["ca_certificates", "client_certificate"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
async def test_files_that_are_no_certificates_are_told(option: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    async with origin_at("https://localhost:1/image", **{option: str(path)}) as origin:
        with pytest.raises(FetchError, match=f"^{path}: not a PEM file with") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNTRUSTED


async def test_a_key_with_a_passphrase_is_not_asked_for(site: Site, tmp_path: Path, trusted: dict[str, str]) -> None:
    pem = tmp_path / "client.pem"
    run("openssl", "pkcs8", "-topk8", "-in", site.authority.key, "-out", pem, "-passout", "pass:secret")
    pem.write_bytes(site.authority.certificate.read_bytes() + pem.read_bytes())
    async with origin_at(site.url("mutual"), client_certificate=str(pem), **trusted) as origin:
        with pytest.raises(FetchError, match="with a certificate and its key, unencrypted"):
            await origin.open(100)


async def test_a_password_comes_from_netrc_or_the_address(site: Site, tmp_path: Path) -> None:
    private = site.url("plain", "private/image")
    async with origin_at(private) as origin:
        with pytest.raises(FetchError, match=r"401 Unauthorized \(Authorization Required\); give a user"):
            await origin.open(100)
    await check(private.replace("://", "://me:secret@"))
    (tmp_path / "netrc").write_text("machine localhost login me password secret")
    await check(private)


async def test_a_redirect_leads_to_https(site: Site, trusted: dict[str, str]) -> None:
    await check(site.url("plain", "moved/image"), **trusted)


async def test_a_limited_rate_is_only_slow(site: Site) -> None:
    async with origin_at(site.url("plain", "slow/image")) as origin, Transfers([origin], print) as transfers:
        await transfers.open(1000, trio.current_time() + 60)
        data = bytearray()

        async def receive(offset: int, piece: memoryview) -> None:
            data.extend(piece)

        await transfers.fetch(0, 1_500_000, receive, deadline=trio.current_time() + 60)
        assert data == CONTENT[:1_500_000]
        assert transfers.counters["retries"] == 0
        assert 200_000 < transfers.throughput < 1_000_000


async def test_a_server_that_answers_few_requests_is_asked_less(site: Site) -> None:
    results: list[bytes] = []
    async with origin_at(site.url("plain", "busy/image")) as origin, Transfers([origin], print) as transfers:
        await transfers.open(1000, trio.current_time() + 60)

        async def fetch(number: int) -> None:
            data = bytearray()

            async def receive(offset: int, piece: memoryview) -> None:
                data.extend(piece)

            await transfers.fetch(number * 1000, 1000, receive, deadline=trio.current_time() + 60)
            results.append(bytes(data))

        async with trio.open_nursery() as nursery:
            for number in range(15):
                nursery.start_soon(fetch, number)
        assert sorted(results) == sorted(CONTENT[number * 1000 : number * 1000 + 1000] for number in range(15))
        assert 0 < transfers.counters["retries"] < 150

"""A registry whose blobs are elsewhere, and who gets the user's credentials there: nobody."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.oci_origin import OciOrigin
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.registry_auth import RegistryAuth
from tests.support.fetching import failure_of_opening, fetch
from tests.support.pushing import push
from tests.support.small_registry import SmallRegistry, small_registry

DATA = bytes(range(256)) * 1000
AUTH = base64.b64encode(b"tester:very-secret").decode()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallRegistry]:
    with small_registry() as registry:
        registry.password = f"Basic {AUTH}"
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": AUTH}}}))
        (tmp_path / "netrc").write_text("default login somebody password from-netrc\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        yield registry


@dataclass
class Storage:
    """What a registry sends its readers to."""

    registry: SmallRegistry
    asked: list[dict[str, str]] = field(default_factory=list)
    refuses: bool = False
    port: int = 0


@pytest.fixture
def storage(registry: SmallRegistry) -> Iterator[Storage]:
    found = Storage(registry)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            found.asked.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.end_headers()

        def do_GET(self) -> None:
            found.asked.append(dict(self.headers))
            data = registry.blobs[self.path.split("/")[1].partition("?")[0]]
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last) + 1, len(data)) if first else len(data)
            self.send_response(403 if found.refuses else 206)
            found.refuses = False
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(data[start:end])

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def origin_of(registry: SmallRegistry) -> OciOrigin:
    address = f"oci://{registry.host}/app"
    return OciOrigin(parse_address(address), FetcherConfig((address,)))


async def test_where_blobs_are_gets_no_credentials(registry: SmallRegistry, storage: Storage) -> None:
    await push(f"oci://{registry.host}/app", DATA)
    registry.lead_to = f"http://127.0.0.1:{storage.port}"
    origin = origin_of(registry)
    assert (await origin.open(100)).tail == DATA[-100:]
    asked = len(registry.requests)
    for offset in range(0, 1000, 100):
        assert await fetch(origin, offset, 50) == DATA[offset : offset + 50]
    assert len(registry.requests) == asked, "the way is remembered"
    assert len(storage.asked) >= 11
    for headers in storage.asked:
        assert "Authorization" not in headers and AUTH not in str(headers) and "Cookie" not in headers
    storage.refuses = True
    assert await fetch(origin, 0, 50) == DATA[:50], "a signed URL that has expired"
    assert len(registry.requests) > asked
    await origin.aclose()


async def test_where_uploads_are_gets_no_credentials(registry: SmallRegistry, storage: Storage) -> None:
    registry.location = f"http://127.0.0.1:{storage.port}/upload"
    with pytest.raises(FetchError):
        await push(f"oci://{registry.host}/app", DATA)
    assert storage.asked
    assert not any("Authorization" in headers or AUTH in str(headers) for headers in storage.asked)


async def test_a_token_server_without_tls_does_not_get_the_password(registry: SmallRegistry, storage: Storage) -> None:
    """That of a registry with TLS."""
    client = HttpClient()
    auth = RegistryAuth("oci://r.example/app", registry.host, "app", "https://r.example", client, [])
    challenge = f'Bearer realm="http://127.0.0.1:{storage.port}/token",service="x"'
    with pytest.raises(FetchError, match="its token server is at no https:// address") as caught:
        await auth.answer(challenge)
    assert caught.value.failure is Failure.DENIED
    assert storage.asked == []
    await client.aclose()


async def test_no_error_says_a_secret(registry: SmallRegistry, storage: Storage, tmp_path: Path) -> None:
    await push(f"oci://{registry.host}/app", DATA)
    registry.lead_to = "http://127.0.0.1:9"
    error = await failure_of_opening(origin_of(registry))
    assert error.failure is Failure.UNREACHABLE
    assert "signature" not in str(error) and "very-secret" not in str(error) and AUTH not in str(error)
    registry.password = "Basic other"
    error = await failure_of_opening(origin_of(registry))
    assert error.failure is Failure.DENIED
    assert "very-secret" not in str(error) and AUTH not in str(error)


async def test_a_manifest_that_is_not_the_one_of_its_digest(registry: SmallRegistry) -> None:
    told = await push(f"oci://{registry.host}/app", DATA)
    assert told.pushed.manifest is not None
    registry.manifests[told.pushed.manifest] += b" "
    address = told.pushed.address
    error = await failure_of_opening(OciOrigin(parse_address(address), FetcherConfig((address,))))
    assert error.failure is Failure.UNUSABLE
    assert "sends another manifest than" in str(error)


async def test_a_blob_of_another_size_than_its_manifest_says(registry: SmallRegistry) -> None:
    await push(f"oci://{registry.host}/app", DATA)
    (digest,) = (digest for digest, data in registry.blobs.items() if data == DATA)
    registry.blobs[digest] = DATA[:-1]
    error = await failure_of_opening(origin_of(registry))
    assert error.failure is Failure.UNUSABLE
    assert f"{len(DATA) - 1} bytes, its manifest says {len(DATA)}" in str(error)


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{", b"[" * 100_000, b'{"layers": 1}', b"x" * (5 << 20)])
async def test_what_is_no_manifest(registry: SmallRegistry, manifest: bytes) -> None:
    registry.manifests["latest"] = manifest
    error = await failure_of_opening(origin_of(registry))
    assert error.failure in (Failure.UNUSABLE, Failure.ABSENT)
    assert "\n" not in str(error) and len(str(error)) < 500


async def test_a_blob_that_is_gone(registry: SmallRegistry) -> None:
    await push(f"oci://{registry.host}/app", DATA)
    origin = origin_of(registry)
    await origin.open(10)
    registry.blobs.clear()
    with pytest.raises(FetchError) as caught:
        await fetch(origin, 0, 10)
    assert caught.value.failure is Failure.ABSENT
    await origin.aclose()

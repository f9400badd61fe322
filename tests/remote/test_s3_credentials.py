"""Where credentials for S3 come from: containers, instances, roles; and what their absence costs."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.s3_origin import S3Origin
from tests.support.fetching import fetch
from tests.support.s3_server import S3Server, s3_server

DATA = bytes(range(256)) * 100
ADDRESS = "s3://bucket/image"


@dataclass
class Metadata:
    """The services with credentials of containers, and of instances (IMDSv2)."""

    key: str = "first"
    life: float = 3600.0
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def document(self) -> dict[str, str]:
        end = datetime.now(UTC) + timedelta(seconds=self.life)
        return {
            "Code": "Success",
            "AccessKeyId": self.key,
            "SecretAccessKey": "x",
            "Token": "t",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    found = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(b"session")

        def do_GET(self) -> None:
            found.asked.append(self.path)
            is_list = self.path.endswith("/security-credentials/")
            self._answer(b"role" if is_list else json.dumps(found.document()).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        server.client().create_bucket(Bucket="bucket")
        server.client().put_object(Bucket="bucket", Key="image", Body=DATA)
        yield server


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.rule()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


async def keys_used(server: S3Server) -> str:
    origin = S3Origin(parse_address(ADDRESS), FetcherConfig((ADDRESS,)))
    server.requests()
    assert (await origin.open(10)).tail == DATA[-10:]
    await origin.aclose()
    return " ".join(server.requests())


async def test_a_containers(server: S3Server, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{metadata.port}/get")
    assert "Credential=first" in await keys_used(server)
    assert set(metadata.asked) == {"/get"}


async def test_an_instances(server: S3Server, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{metadata.port}/")
    assert "Credential=first" in await keys_used(server)
    assert any("/security-credentials/role" in path for path in metadata.asked)


async def test_an_instance_is_not_asked_where_there_are_others(
    server: S3Server, metadata: Metadata, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{metadata.port}/")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = kept\naws_secret_access_key = x\n")
    assert "Credential=kept" in await keys_used(server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "given")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert "Credential=given" in await keys_used(server)
    assert metadata.asked == []


async def test_credentials_that_end_soon_are_renewed(
    server: S3Server, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being refused before: a URL is signed anew after a while, and botocore looks at their time."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{metadata.port}/get")
    monkeypatch.setattr("mystfuse.remote.s3_origin._USED", 0.0)
    metadata.life = 700.0
    origin = S3Origin(parse_address(ADDRESS), FetcherConfig((ADDRESS,)))
    await origin.open(10)
    metadata.key, metadata.life = "second", 3600.0
    server.requests()
    await fetch(origin, 0, 10)
    assert "Credential=second" in " ".join(server.requests())
    await origin.aclose()


async def test_nobody_answers(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public object, where no instance's metadata are: it takes a moment."""
    server.client().put_object(Bucket="bucket", Key="image", Body=DATA, ACL="public-read")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9/")
    started = time.monotonic()
    assert "Credential" not in await keys_used(server)
    assert time.monotonic() - started < 20

"""Images in S3: moto's server, with versions, expired credentials, other regions and public buckets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.s3_origin import S3Origin
from tests.support.fetching import failure_of_opening, fetch
from tests.support.s3_server import S3Server, server_with_buckets

DATA = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with server_with_buckets() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.rule()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def origin_of(address: str, **config: Any) -> S3Origin:
    return S3Origin(parse_address(address), FetcherConfig((address,), **config))


async def failure_of(address: str) -> FetchError:
    return await failure_of_opening(origin_of(address))


async def test_ranges_of_an_object(server: S3Server) -> None:
    server.client().put_object(Bucket="plain", Key="a b/é+%.img", Body=DATA)
    origin = origin_of("s3://plain/a%20b/%C3%A9+%25.img")
    opened = await origin.open(4096)
    assert (opened.size, opened.tail) == (len(DATA), DATA[-4096:])
    assert opened.validator
    assert await fetch(origin, 1000, 5000) == DATA[1000:6000]
    assert await fetch(origin, len(DATA) - 1, 1) == DATA[-1:]
    await origin.aclose()


async def test_an_object_shorter_than_the_tail_is_all_tail(server: S3Server) -> None:
    server.client().put_object(Bucket="plain", Key="small", Body=b"0123")
    origin = origin_of("s3://plain/small")
    assert (await origin.open(4096)).tail == b"0123"
    await origin.aclose()


async def test_the_version_that_was_opened_stays(server: S3Server) -> None:
    client = server.client()
    first = client.put_object(Bucket="versions", Key="image", Body=DATA)["VersionId"]
    origin = origin_of("s3://versions/image")
    assert (await origin.open(10)).validator == first
    client.put_object(Bucket="versions", Key="image", Body=bytes(len(DATA)))
    assert await fetch(origin, 300, 300) == DATA[300:600]
    client.delete_object(Bucket="versions", Key="image")
    assert await fetch(origin, 300, 300) == DATA[300:600]
    await origin.aclose()
    named = origin_of(f"s3://versions/image?versionId={first}")
    assert (await named.open(10)).tail == DATA[-10:]
    await named.aclose()
    assert (await failure_of("s3://versions/image")).failure is Failure.ABSENT


async def test_an_object_without_versions_that_is_replaced_is_noticed(server: S3Server) -> None:
    client = server.client()
    client.put_object(Bucket="plain", Key="replaced", Body=DATA)
    origin = origin_of("s3://plain/replaced")
    await origin.open(10)
    client.put_object(Bucket="plain", Key="replaced", Body=DATA[::-1])
    with pytest.raises(FetchError) as caught:
        await fetch(origin, 300, 300)
    assert caught.value.failure is Failure.REPLACED
    await origin.aclose()


@pytest.mark.parametrize(
    ("address", "words"), [("s3://plain/absent", "no such key"), ("s3://no-such-bucket/x", "no such bucket")]
)
async def test_what_is_not_there(address: str, words: str) -> None:
    error = await failure_of(address)
    assert error.failure is Failure.ABSENT
    assert words in str(error) and address in str(error)


async def test_expired_credentials_are_renewed(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.client().put_object(Bucket="plain", Key="image", Body=DATA)
    answer = tmp_path / "answer"
    answer.write_text(json.dumps({"Version": 1, "AccessKeyId": "old", "SecretAccessKey": "x", "SessionToken": "t"}))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(f"[default]\ncredential_process = cat {answer}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    origin = origin_of("s3://plain/image")
    await origin.open(10)
    server.rule(expired=["old"])
    with pytest.raises(FetchError) as caught:
        await fetch(origin, 0, 10)
    assert caught.value.failure is Failure.DENIED
    assert "expired" in str(caught.value)
    answer.write_text(json.dumps({"Version": 1, "AccessKeyId": "new", "SecretAccessKey": "x", "SessionToken": "t"}))
    await origin.renew()
    assert await fetch(origin, 0, 10) == DATA[:10]
    await origin.aclose()


async def test_the_region_of_a_bucket_is_found(server: S3Server) -> None:
    server.client().put_object(Bucket="plain", Key="image", Body=DATA)
    server.rule(region="eu-north-1")
    origin = origin_of("s3://plain/image")
    assert (await origin.open(10)).size == len(DATA)
    assert await fetch(origin, 0, 10) == DATA[:10]
    await origin.aclose()


async def test_a_public_object_needs_no_credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.client().put_object(Bucket="plain", Key="image", Body=DATA, ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    origin = origin_of("s3://plain/image")
    server.requests()
    assert (await origin.open(10)).size == len(DATA)
    assert set(server.requests()) == {"GET /plain/image?"}
    await origin.aclose()
    server.rule(private=True)
    error = await failure_of("s3://plain/image")
    assert error.failure is Failure.DENIED
    assert "no credentials have been found" in str(error)


async def test_one_signature_serves_many_ranges_and_is_in_no_message(server: S3Server) -> None:
    server.client().put_object(Bucket="plain", Key="image", Body=DATA)
    origin = origin_of("s3://plain/image")
    await origin.open(10)
    server.requests()
    for offset in range(0, 1000, 100):
        await fetch(origin, offset, 100)
    assert len(set(server.requests())) == 1
    server.rule(expired=["good"])
    with pytest.raises(FetchError) as caught:
        await fetch(origin, 0, 10)
    assert "Signature" not in str(caught.value) and "good" not in str(caught.value)
    await origin.aclose()


async def test_what_gives_credentials_may_hang_or_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / ".aws/config").write_text("[default]\ncredential_process = sleep 20\n")
    origin = origin_of("s3://plain/image", io_timeout=0.5)
    with pytest.raises(FetchError, match="does not answer in time") as caught:
        await origin.open(10)
    assert caught.value.failure is Failure.UNREACHABLE
    await origin.aclose()
    (tmp_path / ".aws/config").write_text("[default]\ncredential_process = false\n")
    assert (await failure_of("s3://plain/image")).failure is Failure.DENIED
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in str(await failure_of("s3://plain/image"))

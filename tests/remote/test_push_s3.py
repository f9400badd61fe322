"""Pushes to S3: moto's server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.formats.fssig import Fssig
from mystfuse.remote import push_s3
from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.push_s3 import S3Push
from mystfuse.remote.pushed import Pushed
from mystfuse.remote.s3_address import parse_s3_address
from tests.support.pushing import Bytes
from tests.support.s3_server import S3Server, server_with_buckets

PART = 5 << 20
"""Bytes, as S3 wants at least."""
DATA = random.Random(2).randbytes(3 * PART + 1000) + Fssig(4096, bytes(32)).pack()


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
    monkeypatch.setattr(push_s3, "_PART", PART)


def push(address: str, data: bytes = DATA, force: bool = False) -> tuple[Pushed, int]:
    """Push, and count what was advanced."""
    parsed, advanced = parse_address(address), [0]
    made = S3Push(address, parse_s3_address(parsed), FetcherConfig((address,)), advanced.append)
    return made.push(Bytes(data), force), sum(advanced)


def contents(server: S3Server, key: str, bucket: str = "plain") -> bytes:
    body: bytes = server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def test_in_parts(server: S3Server) -> None:
    pushed, advanced = push("s3://plain/dir/a%20b.img")
    assert pushed == Pushed("s3://plain/dir/a%20b.img", "sent", len(DATA))
    assert advanced == len(DATA)
    assert contents(server, "dir/a b.img") == DATA


def test_a_small_one_at_once(server: S3Server) -> None:
    assert push("s3://plain/small", b"x" * 5000) == (Pushed("s3://plain/small", "sent", 5000), 5000)
    assert contents(server, "small") == b"x" * 5000


def test_the_address_has_the_version(server: S3Server) -> None:
    pushed, _ = push("s3://versions/image")
    wanted = parse_s3_address(parse_address(pushed.address))
    assert wanted.version
    other, _ = push("s3://versions/image", DATA[:-4096] + Fssig(8192, bytes(32)).pack())
    assert other.address != pushed.address
    answer = server.client().get_object(Bucket="versions", Key="image", VersionId=wanted.version)
    assert answer["Body"].read() == DATA


def test_what_is_there_is_not_sent_again(server: S3Server) -> None:
    push("s3://plain/twice")
    server.requests()
    pushed, advanced = push("s3://plain/twice")
    assert (pushed.how, pushed.bytes_sent, advanced) == ("present", 0, len(DATA))
    assert all(request.startswith("GET") for request in server.requests())
    assert push("s3://plain/twice", force=True)[0].how == "sent"
    assert push("s3://plain/twice", DATA[4096:])[0].how == "sent"
    assert contents(server, "twice") == DATA[4096:]


def test_a_push_that_broke_off_goes_on(server: S3Server) -> None:
    server.rule(fail_after=2)
    with pytest.raises(FetchError) as caught:
        push("s3://plain/broken")
    assert caught.value.failure is Failure.DENIED
    server.rule()
    server.requests()
    pushed, advanced = push("s3://plain/broken")
    assert pushed.how == "resumed" and 0 < pushed.bytes_sent < len(DATA)
    assert advanced == len(DATA)
    assert sum("partNumber=" in request for request in server.requests()) < 4
    assert contents(server, "broken") == DATA


def test_parts_of_another_image_are_not_kept(server: S3Server) -> None:
    server.rule(fail_after=2)
    with pytest.raises(FetchError):
        push("s3://plain/other")
    server.rule()
    other = DATA[:PART] + DATA[PART:][::-1]
    pushed, _ = push("s3://plain/other", other)
    assert contents(server, "other") == other
    assert pushed.bytes_sent >= len(DATA) - PART


def test_errors(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, failure, words in (
        ("s3://no-such-bucket/image", Failure.ABSENT, "there is no such bucket"),
        ("s3://plain/image", Failure.DENIED, "the credentials have expired"),
    ):
        server.rule(expired=["good"] if failure is Failure.DENIED else [])
        with pytest.raises(FetchError, match=words) as caught:
            push(address)
        assert caught.value.failure is failure
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(FetchError, match="no credentials have been found"):
        push("s3://plain/image")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(FetchError) as caught:
        push("s3://plain/image")
    assert caught.value.failure is Failure.UNREACHABLE

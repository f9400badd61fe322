"""What addresses of S3 and of registries mean."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import UsageError
from mystfuse.remote.address import parse_address
from mystfuse.remote.oci_address import OciReference, parse_oci_address
from mystfuse.remote.s3_address import S3Object, parse_s3_address

DIGEST = f"sha256:{'0a' * 32}"


def s3(text: str) -> S3Object:
    return parse_s3_address(parse_address(text))


def oci(text: str) -> OciReference:
    return parse_oci_address(parse_address(text))


def test_objects() -> None:
    assert s3("s3://bucket/key") == S3Object("bucket", "key")
    assert s3("S3://my.bucket-1/a//b/c.img") == S3Object("my.bucket-1", "a//b/c.img")
    assert s3("s3://bucket/a%20b%25%3Fc+d%C3%A9") == S3Object("bucket", "a b%?c+dé")
    assert s3("s3://bucket/key?versionId=3%2FL4kq.x_-") == S3Object("bucket", "key", "3/L4kq.x_-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://b/key", "cannot be a bucket"),
        ("s3://-bucket/key", "cannot be a bucket"),
        ("s3://bucket:80/key", "cannot be a bucket"),
        ("s3://me@bucket/key", "has no user"),
        ("s3://bucket/a/../b", "'.' or '..'"),
        ("s3://bucket/%2E%2E", "'.' or '..'"),
        ("s3://bucket/%ff", "not UTF-8"),
        ("s3://bucket/" + "k" * 1025, "at most 1024 bytes"),
        ("s3://bucket/key?versionId=", "?versionId=ID"),
        ("s3://bucket/key?version=1", "?versionId=ID"),
        ("s3://bucket/key?versionId=1&x=2", "?versionId=ID"),
        ("s3://bucket/key?", "?versionId=ID"),
    ],
)
def test_what_is_no_object(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        s3(text)
    assert words in str(caught.value)


def test_references() -> None:
    assert oci("oci://r.example/app") == OciReference("r.example", "app", "latest")
    assert oci("oci://r.example:5000/team/app:V1.0_x-y") == OciReference("r.example:5000", "team/app", "V1.0_x-y")
    assert oci(f"oci://[::1]:5000/a__b/c-d.e@{DIGEST}") == OciReference("[::1]:5000", "a__b/c-d.e", DIGEST)
    assert oci(f"oci://r.example/app:v1@{DIGEST}").name == f"oci://r.example/app@{DIGEST}"
    assert oci("oci://r.example/app:v1").name == "oci://r.example/app:v1"


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("r.example", "https://r.example"),
        ("r.example:5000", "https://r.example:5000"),
        ("docker.io", "https://registry-1.docker.io"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.2:5000", "http://127.0.0.2:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost.example", "https://localhost.example"),
        ("plain.example:80", "http://plain.example:80"),
        ("plain.example", "https://plain.example"),
    ],
)
def test_which_registries_are_asked_without_tls(registry: str, base: str) -> None:
    environment = {"MYSTFUSE_PLAIN_HTTP": "plain.example:80,other.example"}
    assert oci(f"oci://{registry}/app").base_url(environment) == base


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oci://r.example/App", "cannot be a repository"),
        ("oci://r.example/a//b", "cannot be a repository"),
        ("oci://r.example/a/", "cannot be a repository"),
        ("oci://r.example/../v1", "cannot be a repository"),
        ("oci://r.example/a?x=1", "cannot be a repository"),
        ("oci://r.example/" + "a" * 256, "cannot be a repository"),
        ("oci://r.example/app:", "cannot be a tag"),
        ("oci://r.example/app:-x", "cannot be a tag"),
        ("oci://r.example/app:a:b", "cannot be a tag"),
        ("oci://r.example/app@md5:00", "a digest is"),
        ("oci://r.example/app@", "a digest is"),
        ("oci://me:secret@r.example/app", "no user stands"),
        ("oci://r_example/app", "cannot be a registry"),
        ("oci://r.example:123456/app", "cannot be a registry"),
    ],
)
def test_what_is_no_reference(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        oci(text)
    assert words in str(caught.value) and "secret" not in str(caught.value)


@given(st.text(st.sampled_from(string.ascii_letters + string.digits + ":/@.-_%?=[]"), max_size=60))
def test_any_word_is_parsed_or_refused(rest: str) -> None:
    for scheme, parse in (("s3", s3), ("oci", oci)):
        try:
            parse(f"{scheme}://{rest}")
        except UsageError as error:
            assert "\n" not in str(error)

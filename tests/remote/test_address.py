"""Addresses of images elsewhere."""

from __future__ import annotations

import pytest

from mystfuse.errors import UsageError
from mystfuse.remote.address import is_remote, parse_address


@pytest.mark.parametrize(
    "text", ["image", "/a/b", "oci:dir", "oci:/dir:tag", "s3:bucket", "file:/a", "http:/x", "a/http://b"]
)
def test_paths_are_no_addresses(text: str) -> None:
    assert not is_remote(text)
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize(
    "text, name",
    [
        ("https://user:secret@host:8443/a/b?X-Amz-Signature=1&b=2", "https://host:8443/a/b?..."),
        ("HTTP://host/", "HTTP://host/"),
        ("s3://bucket/key/more?versionId=7", "s3://bucket/key/more?versionId=7"),
        ("oci://localhost:5000/a/b:tag", "oci://localhost:5000/a/b:tag"),
        ("oci://host/a@sha256:00", "oci://host/a@sha256:00"),
    ],
)
def test_names_have_no_secrets(text: str, name: str) -> None:
    assert is_remote(text) and parse_address(text).name == name


@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "https:///a",
        "https://a b/c",
        "s3://bucket",
        "s3://bucket/",
        "oci://host",
        "http://h/#x",
        "http://h:99999/x",
        "https://h:0/x",
        "http://h/\n",
    ],
)
def test_impossible_ones_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)

"""Registries and S3 over TLS, whose certificate a private authority has made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.certificates import Authority, make_authority
from tests.support.commands import assert_one_line, mystfuse
from tests.support.registry_server import registry_server
from tests.support.s3_server import s3_server

FAILED = 1


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """0.0.0.0 is this machine too, but no registry that is asked without TLS."""
    return make_authority(tmp_path_factory.mktemp("authority"), "DNS:localhost,IP:127.0.0.1,IP:0.0.0.0")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "auth.json")


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_registry(small_image: Path, tmp_path: Path, authority: Authority) -> None:
    with registry_server(tmp_path / "registry", "basic", certificate=authority) as server:
        address = f"oci://0.0.0.0:{server.port}/app"
        server.auth_file(tmp_path / "auth.json", registry=f"0.0.0.0:{server.port}")
        result = mystfuse("push", small_image, address, cwd=tmp_path)
        assert_one_line(result, FAILED, "certificate is not trusted", "--ca-certificates")
        trust = f"--ca-certificates={authority.ca}"
        assert "pushed" in said(mystfuse("push", trust, small_image, address, cwd=tmp_path))
        assert said(mystfuse("cat", trust, address, "/hello.txt", cwd=tmp_path)) == "hello\n"
        result = mystfuse("cat", address, "/hello.txt", cwd=tmp_path)
        assert_one_line(result, FAILED, "certificate is not trusted")


def test_s3(small_image: Path, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(authority) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert server.environment["AWS_ENDPOINT_URL"].startswith("https:")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        trust = f"--ca-certificates={authority.ca}"
        server.client().create_bucket(Bucket="bucket")
        result = mystfuse("push", small_image, "s3://bucket/app.img")
        assert result.returncode == FAILED and re.search("certificate verify failed", result.stderr), result.stderr
        assert "pushed" in said(mystfuse("push", trust, small_image, "s3://bucket/app.img"))
        assert said(mystfuse("cat", trust, "s3://bucket/app.img", "/hello.txt")) == "hello\n"
        assert_one_line(mystfuse("cat", "s3://bucket/app.img", "/hello.txt"), FAILED, "certificate is not trusted")

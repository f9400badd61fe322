"""Mounts of images in private registries and in S3, whose credentials expire meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.commands import mystfuse
from tests.support.mounts import mounted
from tests.support.registry_server import registry_server
from tests.support.s3_server import s3_server

SIZE = 6 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two files, more than are read ahead at once."""
    directory = tmp_path_factory.mktemp("image")
    (directory / "tree").mkdir()
    for name in ("first", "second", "third"):
        (directory / "tree" / name).write_bytes(name.encode() * (SIZE // len(name)))
    assert mystfuse("mkext2", directory / "tree", directory / "app.img").returncode == 0
    return directory / "app.img"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def read(mountpoint: Path, name: str) -> None:
    assert (mountpoint / name).read_bytes() == name.encode() * (SIZE // len(name))


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_private_registry(image: Path, mountpoint: Path, tmp_path: Path, auth: str) -> None:
    with registry_server(tmp_path / "registry", auth, token_life=12) as server:
        address = f"oci://{server.host}/private/app:v1"
        server.auth_file(tmp_path / "auth.json")
        assert mystfuse("push", image, address).returncode == 0
        (tmp_path / "auth.json").rename(tmp_path / "kept")
        result = mystfuse("mount", address, mountpoint)
        assert result.returncode == 1
        assert "access denied" in result.stderr or "skopeo login" in result.stderr
        (tmp_path / "kept").rename(tmp_path / "auth.json")
        with mounted(address, mountpoint):
            read(mountpoint, "first")
            if auth == "token":
                time.sleep(13)
            read(mountpoint, "second")
            assert any("/blobs/" in request for request in server.requests("GET"))


def test_s3_whose_credentials_expire_and_whose_object_is_replaced(
    image: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        client = server.client()
        client.create_bucket(Bucket="bucket")
        client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
        client.put_object(Bucket="bucket", Key="app.img", Body=image.read_bytes())
        answer = tmp_path / "answer"
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text(f"[default]\ncredential_process = cat {answer}\n")
        credentials = {"Version": 1, "AccessKeyId": "old", "SecretAccessKey": "x", "SessionToken": "t"}
        answer.write_text(json.dumps(credentials))
        for name, value in server.environment.items():
            if name not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.setenv(name, value)
        with mounted("s3://bucket/app.img", mountpoint):
            read(mountpoint, "first")
            client.put_object(Bucket="bucket", Key="app.img", Body=bytes(image.stat().st_size))
            server.rule(expired=["old"])
            answer.write_text(json.dumps({**credentials, "AccessKeyId": "new"}))
            read(mountpoint, "second")
            client.delete_object(Bucket="bucket", Key="app.img")
            read(mountpoint, "third")
            assert any("Credential=new" in request for request in server.requests())


def test_who_logs_in_again_keeps_the_image_that_is_mounted(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    """A file that was replaced is for another worker of the fetcher to read; meanwhile the tag has moved."""
    with registry_server(tmp_path / "registry", "basic") as server:
        address = f"oci://{server.host}/app"
        server.auth_file(tmp_path / "auth.json")
        assert mystfuse("push", image, address).returncode == 0
        with mounted(address, mountpoint) as mount:
            read(mount, "first")
            other = image.with_suffix(".other")
            other.write_bytes(image.read_bytes()[::-1])
            assert mystfuse("push", "--force", other, address).returncode == 0
            server.auth_file(tmp_path / "new.json").rename(tmp_path / "auth.json")
            time.sleep(8)
            read(mount, "second")
            read(mount, "third")


def test_rotated_credentials_of_s3_keep_the_version_that_is_mounted(
    image: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        client = server.client()
        client.create_bucket(Bucket="bucket")
        client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
        client.put_object(Bucket="bucket", Key="a b.img", Body=image.read_bytes())
        kept = "[default]\naws_access_key_id = {}\naws_secret_access_key = x\n"
        (tmp_path / "credentials").write_text(kept.format("old"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with mounted("s3://bucket/a%20b.img", mountpoint) as mount:
            read(mount, "first")
            client.put_object(Bucket="bucket", Key="a b.img", Body=image.read_bytes()[::-1])
            server.rule(expired=["old"])
            (tmp_path / "new").write_text(kept.format("new"))
            (tmp_path / "new").rename(tmp_path / "credentials")
            time.sleep(8)
            read(mount, "second")
            read(mount, "third")
            assert any("Credential=new" in request for request in server.requests())

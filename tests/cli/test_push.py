"""``mystfuse push``: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.json_documents import check_document
from tests.support.registry_server import RegistryServer, registry_server
from tests.support.s3_server import S3Server, s3_server
from tests.support.signed_images import root_hash

FAILED, USAGE, FORMAT = 1, 2, 6
MakeKeys = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    with s3_server() as server:
        monkeypatch.setenv("HOME", str(tmp_path))
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="bucket")
        server.client().put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
        yield server


@pytest.fixture(scope="module")
def signed(small_image: Path, make_keys: MakeKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("signed") / "app.img"
    image.write_bytes(small_image.read_bytes())
    public, private = make_keys("push")
    assert in_process("sign", f"--sign={public}:{private}", image).returncode == 0
    return image


def test_to_a_registry(registry: RegistryServer, signed: Path) -> None:
    target = f"oci://{registry.host}/team/app:v1"
    result = in_process("push", "--annotation", "org.example.a=b=c", signed, target)
    assert (result.returncode, result.stderr) == (0, ""), result
    first, second = result.stdout.splitlines()
    assert first.startswith(f"pushed: {signed}, ")
    assert re.fullmatch(
        rf"mount it: mystfuse oci://{registry.host}/team/app@sha256:[0-9a-f]{{64}} MOUNTPOINT --pubkey PEM", second
    )
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/team/app:v1").stdout
    fields = json.loads(in_process("fssig", "--json", signed).stdout)
    assert json.loads(raw)["annotations"] == {
        "org.mystfuse.root-hash": fields["root_hash"],
        "org.mystfuse.signer": fields["signer"],
        "org.mystfuse.size": str(signed.stat().st_size),
        "org.example.a": "b=c",
    }
    layer = json.loads(raw)["layers"][0]
    assert layer["digest"] == "sha256:" + run("sha256sum", signed).stdout.split()[0]
    assert in_process("push", "--quiet", signed, target).stdout == ""
    document = json.loads(in_process("push", "--json", signed, target).stdout)
    check_document("push", document)
    assert (document["done"], document["bytes_sent"]) == ("present", 0)
    document = json.loads(in_process("push", "--json", "--mount-from=team/app", signed, target + "x").stdout)
    check_document("push", document)
    assert document["done"] == "present"


def test_what_skopeo_copies_is_the_image(registry: RegistryServer, small_image: Path, tmp_path: Path) -> None:
    """As other tools carry it: into a directory, and from there to another repository."""
    assert in_process("push", small_image, f"oci://{registry.host}/carried").returncode == 0
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.host}/carried", f"dir:{tmp_path}/copy")
    digest = run("sha256sum", small_image).stdout.split()[0]
    assert (tmp_path / "copy" / digest).read_bytes() == small_image.read_bytes()
    run("skopeo", "copy", "--dest-tls-verify=false", f"dir:{tmp_path}/copy", f"docker://{registry.host}/carried/on:x")
    result = mystfuse("cat", f"oci://{registry.host}/carried/on:x", "/hello.txt")
    assert (result.returncode, result.stdout) == (0, "hello\n"), result


def test_to_s3(s3: S3Server, small_image: Path) -> None:
    result = mystfuse("push", "--json", small_image, "s3://bucket/dir/app.img")
    assert (result.returncode, result.stderr) == (0, ""), result
    document = json.loads(result.stdout)
    check_document("push", document)
    assert document["address"].startswith("s3://bucket/dir/app.img?versionId=")
    s3.client().put_object(Bucket="bucket", Key="dir/app.img", Body=b"something else")
    result = mystfuse("cat", "--roothash", root_hash(small_image), document["address"], "/hello.txt")
    assert (result.returncode, result.stdout) == (0, "hello\n"), result
    assert mystfuse("push", small_image, "s3://bucket/dir/app.img").stdout.splitlines()[1].startswith("mount it: ")


def test_what_is_no_image_is_pushed_by_force_alone(registry: RegistryServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no image\n")
    target = f"oci://{registry.host}/file"
    assert_one_line(in_process("push", tmp_path / "file", target), FORMAT, "--force pushes it all the same")
    result = in_process("push", "--json", "--force", tmp_path / "file", target)
    document = json.loads(result.stdout)
    check_document("push", document)
    assert document["root_hash"] is None


def test_an_image_that_no_mount_accepts_is_not_pushed(
    registry: RegistryServer, small_image: Path, tmp_path: Path
) -> None:
    data = bytearray(small_image.read_bytes())
    offset = json.loads(in_process("fssig", "--json", small_image).stdout)["hash_offset"]
    data[1024 + 56] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    result = in_process("push", tmp_path / "damaged", f"oci://{registry.host}/damaged")
    assert_one_line(result, 4, "damaged")
    data[offset] ^= 1
    (tmp_path / "no-tree").write_bytes(data)
    assert in_process("push", tmp_path / "no-tree", f"oci://{registry.host}/damaged").returncode == FORMAT
    assert in_process("ls", f"oci://{registry.host}/damaged").returncode == FAILED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("https://host.example/app.img",), "pushed to oci:// and s3://"),
        (("app.img",), "not an address"),
        (("oci://r.example/App",), "cannot be a repository"),
        ((f"oci://r.example/app@sha256:{'0' * 64}",), "push to a tag"),
        (("s3://bucket/key?versionId=1",), "gives the new version its id"),
        (("--mount-from=a", "s3://bucket/key"), "are for registries"),
        (("--annotation=a=b", "s3://bucket/key"), "are for registries"),
        (("--annotation=a", "oci://r.example/app"), "must be KEY=VALUE"),
        (("--annotation= =b", "oci://r.example/app"), "must be KEY=VALUE"),
        (("--mount-from=A", "oci://r.example/app"), "--mount-from A: not the name"),
        (("--quiet", "--json", "oci://r.example/app"), "exclude each other"),
    ],
)
def test_mistakes(small_image: Path, arguments: tuple[str, ...], words: str) -> None:
    assert_one_line(in_process("push", *arguments[:-1], small_image, arguments[-1]), USAGE, words)


def test_without_a_server(small_image: Path, tmp_path: Path) -> None:
    assert_one_line(in_process("push", tmp_path / "nothing", "oci://127.0.0.1:9/app"), FAILED, "No such file")
    assert_one_line(
        in_process("push", "--ca-certificates", tmp_path / "nothing", small_image, "oci://0.0.0.0:9/app"),
        FAILED,
        "nothing",
    )


def test_from_one_registry_to_another() -> None:
    result = in_process("push", "oci://r.example/a", "oci://r.example/b")
    assert_one_line(result, USAGE, "oci://r.example/a: not a file here")


@pytest.mark.parametrize(("address", "module"), [("oci://r.example/a", "httpx2"), ("s3://bucket/key", "botocore")])
def test_without_the_extra(small_image: Path, address: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    assert_one_line(in_process("push", small_image, address), FAILED, "needs pip install 'mystfuse[remote]'")


def test_a_server_that_is_not_there(small_image: Path) -> None:
    result = mystfuse("push", small_image, "oci://127.0.0.1:9/app")
    assert result.returncode == FAILED
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mystfuse: oci://127.0.0.1:9/app:latest: ") and "connection refused" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_interrupted(small_image: Path, number: signal.Signals) -> None:
    """While it waits for a server that is not there."""
    command = [sys.executable, "-m", "mystfuse", "push", str(small_image), "oci://127.0.0.1:9/app"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "trying again" in process.stderr.readline()
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert said.splitlines()[-1] == "mystfuse: interrupted", said


def test_a_push_to_s3_can_be_interrupted(small_image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While its threads wait for a server that never answers them."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        command = [sys.executable, "-m", "mystfuse", "push", str(small_image), "s3://bucket/key"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            os.kill(process.pid, signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (FAILED, "mystfuse: interrupted\n")

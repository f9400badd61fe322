"""``mystfuse oci``: skopeo and umoci accept what it makes, and unpack it to what a mount shows."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.archives.oci_image_config import own_architecture
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.extraction import archive, assert_same
from tests.support.json_documents import check_document
from tests.support.mounts import mounted

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OTHER_TRANSPORTS = ["dir:{0}/dir", "docker-archive:{0}/docker.tar:app:1", "oci-archive:{0}/oci.tar", "oci:{0}/oci:x"]


def make(image: Path, target: str, *options: str | Path) -> dict[str, Any]:
    """Make an OCI image; returns what the command says."""
    result = in_process("oci", "--json", *options, image, target)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    check_document("oci", document)
    return document


def inspect(reference: str, *options: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("skopeo", "inspect", *options, reference).stdout)
    return document


@pytest.fixture(scope="module")
def rich_layout(rich_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = tmp_path_factory.mktemp("rich-layout") / "layout"
    make(rich_image, f"oci:{layout}:rich")
    return layout


def test_skopeo_reads_and_copies_it(rich_layout: Path, rich_image: Path, tmp_path: Path) -> None:
    image = f"oci:{rich_layout}:rich"
    found = inspect(image)
    assert found["Architecture"] == own_architecture() and found["Os"] == "linux" and found["Env"] == [PATH]
    for transport in OTHER_TRANSPORTS:
        copy = transport.format(tmp_path)
        run("skopeo", "copy", "--insecure-policy", image, copy)
        assert inspect(copy, "--config") == inspect(image, "--config")
    with tarfile.open(tmp_path / "docker.tar") as docker:
        manifest = docker.extractfile("manifest.json")
        assert manifest is not None
        [entry] = json.loads(manifest.read())
        assert entry["RepoTags"] == ["docker.io/library/app:1"]
        layer = docker.extractfile(entry["Layers"][0])
        assert layer is not None
        data = layer.read()
    # Uncompressed, it is the archive that ``tar`` writes, but for what is the file system's.
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == inspect(image, "--config")["rootfs"]["diff_ids"][0]
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as ours,
        tarfile.open(fileobj=io.BytesIO(archive(rich_image))) as whole,
    ):
        assert ours.getnames() == [name for name in whole.getnames() if name != "./lost+found"]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_umoci_unpacks_it_to_what_a_mount_shows(
    compression: str, rich_image: Path, rich_mount: Path, tmp_path: Path
) -> None:
    document = make(rich_image, f"oci:{tmp_path / 'layout'}:rich", "--compression", compression)
    [layer] = document["layers"]
    assert layer["mediaType"].endswith({"none": ".tar", "gzip": ".tar+gzip"}[compression])
    assert document["omitted"] == {"socket": 1}
    run("umoci", "unpack", "--image", f"{tmp_path / 'layout'}:rich", tmp_path / "bundle")
    unpacked = tmp_path / "bundle/rootfs"
    # For Go's archive/tar, a pax record without a value takes another one away.
    assert os.getxattr(rich_mount / "sub", "user.a=b%c") == b""
    os.setxattr(unpacked / "sub", "user.a=b%c", b"")
    (unpacked / "lost+found").mkdir(0o700)
    assert not (unpacked / "socket").exists()
    os.mknod(unpacked / "socket", (rich_mount / "socket").lstat().st_mode)
    for path in ("socket", "lost+found", "."):
        os.utime(unpacked / path, ns=((rich_mount / path).lstat().st_mtime_ns,) * 2)
    assert_same(rich_mount, unpacked)
    assert (unpacked / "closed/inner/again").samefile(unpacked / "hello.txt")


def test_skopeo_decompresses_zstd(small_image: Path, tmp_path: Path) -> None:
    """umoci 0.4.7 of Debian 12 does not know it."""
    if sys.version_info < (3, 14):
        pytest.importorskip("backports.zstd")
    target = f"oci:{tmp_path / 'layout'}:app"
    [layer] = make(small_image, target, "--compression", "zstd", "--level", "19")["layers"]
    assert layer["mediaType"].endswith(".tar+zstd") and layer["size"] < layer["archive_size"] / 20
    run("skopeo", "copy", "--insecure-policy", "--dest-decompress", target, f"dir:{tmp_path / 'dir'}")
    assert (tmp_path / "dir" / layer["diff_id"].removeprefix("sha256:")).stat().st_size == layer["archive_size"]


def test_umoci_unpacks_it_without_root(small_image: Path, small_tree: Path, open_tmp_path: Path) -> None:
    make(small_image, f"oci:{open_tmp_path / 'layout'}:app")
    open_tmp_path.chmod(0o777)
    become = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", "env", f"HOME={open_tmp_path}"]
    unpack = ["umoci", "unpack", "--rootless", "--image", f"{open_tmp_path / 'layout'}:app"]
    run(*become, *unpack, open_tmp_path / "bundle")
    unpacked = open_tmp_path / "bundle/rootfs"
    assert (unpacked / "hello.txt").read_text() == "hello\n" and (unpacked / "sub/hard").samefile(
        unpacked / "hello.txt"
    )
    names = {path.relative_to(small_tree) for path in small_tree.rglob("*")}
    assert {path.relative_to(unpacked) for path in unpacked.rglob("*")} == names


def test_the_same_image_gives_the_same_bytes(
    small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(small_image, f"oci:{tmp_path / 'one'}:app")
    os.utime(small_image)
    assert make(small_image, f"oci:{tmp_path / 'two'}:app") == {**first, "image": f"oci:{tmp_path / 'two'}:app"}
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 5
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        assert make(mountpoint, f"oci:{tmp_path / 'of-mount'}:app")["manifest"] == first["manifest"]
        archives = [tmp_path / "1.tar", tmp_path / "2.tar"]
        for path, source in zip(archives, (small_image, mountpoint), strict=True):
            assert make(source, f"oci-archive:{path}:app")["manifest"] == first["manifest"]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    later = make(small_image, f"oci:{tmp_path / 'one'}:later")
    assert later["layers"] == first["layers"] and later["config"] != first["config"]
    assert inspect(f"oci:{tmp_path / 'one'}:later")["Created"] == "2023-11-14T22:13:20Z"


def test_a_mount_gives_its_state_at_one_moment(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        (mountpoint / "written").write_text("new")
        (mountpoint / "hello.txt").unlink()
        make(mountpoint, f"oci:{tmp_path / 'layout'}:changed")
        result = mystfuse("oci", "--roothash", "00" * 32, mountpoint, f"oci:{tmp_path / 'layout'}:no")
        assert result.returncode == 2 and "--roothash: is for an image" in result.stderr
    run("umoci", "unpack", "--image", f"{tmp_path / 'layout'}:changed", tmp_path / "bundle")
    unpacked = tmp_path / "bundle/rootfs"
    assert (unpacked / "written").read_text() == "new" and not (unpacked / "hello.txt").exists()
    assert (unpacked / "sub/hard").read_text() == "hello\n"
    assert not (unpacked / ".mystfuse").exists()


def test_an_archive_is_a_layout(rich_image: Path, rich_layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "app.tar"
    make(rich_image, f"oci-archive:{target}:rich")
    assert inspect(f"oci-archive:{target}:rich")["Digest"] == inspect(f"oci:{rich_layout}:rich")["Digest"]
    run("tar", "-xf", target, "-C", tmp_path)
    for path in ("oci-layout", "index.json", "blobs"):
        run("diff", "-r", tmp_path / path, rich_layout / path)
    assert target.stat().st_size % 10240 == 0
    with tarfile.open(target) as archived:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in archived} == {(0, 0, 0, "")}


def test_the_configuration_comes_from_the_image(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/sh").symlink_to("/bin/program")
    (tree / "bin/program").write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xf3\0" + bytes(40))
    config = {"Entrypoint": ["/bin/app"], "Cmd": ["x"], "Env": ["PATH=/bin"], "User": "7"}
    (tree / ".oci-config.json").write_text(json.dumps({"config": config, "author": "me"}))
    (tree / "sub").mkdir()
    shutil.copy(tree / ".oci-config.json", tree / "sub")
    assert mystfuse("mkext2", "-q", tree, tmp_path / "image").returncode == 0
    layout = tmp_path / "layout"
    document = make(tmp_path / "image", f"oci:{layout}:app")
    assert document["architecture"] == "riscv64"
    found = inspect(f"oci:{layout}:app", "--config")
    assert found["config"] == config and found["author"] == "me" and found["architecture"] == "riscv64"
    layer = layout / "blobs/sha256" / document["layers"][0]["digest"].partition(":")[2]
    with tarfile.open(layer) as members:
        names = members.getnames()
    assert "./sub/.oci-config.json" in names and "./.oci-config.json" not in names
    make(tmp_path / "image", f"oci:{layout}:app", "--entrypoint", "/bin/sh -c 'echo $A'", "--user", "",
         "--env", "A=1 2", "--label", "k=v=w", "--workdir", "/sub", "--architecture", "arm64",
         "--cmd", '["a b"]')  # fmt: skip
    found = inspect(f"oci:{layout}:app", "--config")
    assert found["architecture"] == "arm64" and found["config"] == {
        "Entrypoint": ["/bin/sh", "-c", "echo $A"], "Cmd": ["a b"], "Env": ["PATH=/bin", "A=1 2"],
        "Labels": {"k": "v=w"}, "WorkingDir": "/sub",
    }  # fmt: skip
    (tmp_path / "config.json").write_text('{"Cmd": ["/other"]}')
    make(tmp_path / "image", f"oci:{layout}:app", "--config", tmp_path / "config.json")
    assert inspect(f"oci:{layout}:app", "--config")["config"] == {"Cmd": ["/other"], "Env": [PATH]}


def test_what_is_made_is_told(small_image: Path, tmp_path: Path) -> None:
    target = f"oci:{tmp_path / 'layout'}"
    result = mystfuse("oci", small_image, target)
    made, layer = result.stdout.splitlines()
    digest = hashlib.sha256(run("skopeo", "inspect", "--raw", f"{target}:latest").stdout.encode()).hexdigest()
    assert made == f"made {target}:latest: manifest sha256:{digest}, linux/{own_architecture()}"
    assert layer.startswith("layer sha256:") and " KiB of " in layer
    assert mystfuse("oci", "--quiet", small_image, target).stdout == ""


def test_an_encrypted_image_needs_its_key(
    small_tree: Path, tmp_path: Path, small_image: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    assert mystfuse("mkext2", "-q", "--encrypt", key, small_tree, tmp_path / "image").returncode == 0
    layout = tmp_path / "layout"
    assert in_process("oci", tmp_path / "image", f"oci:{layout}:app").returncode == 5
    assert not layout.exists()
    document = make(tmp_path / "image", f"oci:{layout}:app", "--key-file", key)
    blob = layout / "blobs/sha256" / document["layers"][0]["digest"].partition(":")[2]
    assert blob.stat().st_mode & 0o777 == 0o600
    plain = make(small_image, f"oci:{tmp_path / 'plain'}:app")
    assert document["layers"][0]["diff_id"] == plain["layers"][0]["diff_id"]

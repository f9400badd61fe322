"""``mystfuse oci`` where it must not or cannot: one line, and what was there stays as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.extraction import FAILED, FORMAT, NOT_TRUSTED, USAGE, refused


def image_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    tree = tmp_path / "tree"
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    result = mystfuse("mkext2", "-q", tree, tmp_path / "image")
    assert result.returncode == 0, result.stderr
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("options", "target", "said"),
    [
        ([], "layout:tag", "must be oci:DIR:TAG"),
        ([], "oci:layout:a b", "'a b' is no tag"),
        ([], "oci://host.example/app:v1", "mystfuse push sends an image there"),
        ([], "oci:layout:x:", "'x:' is no tag"),
        (["--force"], "oci:layout:x", "--force goes with oci-archive:FILE"),
        (["--level", "11"], "oci:layout:x", "--level 11: the level of gzip is 1 to 9"),
        (["--compression", "none", "--level", "1"], "oci:layout:x", "is for the others"),
        (["--entrypoint", "it's"], "oci:layout:x", "--entrypoint it's: No closing quotation"),
        (["--cmd", '["a", 1]'], "oci:layout:x", "must be a list of strings"),
        (["--env", "=x"], "oci:layout:x", "--env =x: must be NAME=VALUE"),
        (["--label", "x"], "oci:layout:x", "--label x: must be NAME=VALUE"),
        (["--label", "a=\udcff"], "oci:layout:x", "--label: not valid UTF-8"),
        (["--workdir", "bin"], "oci:layout:x", "must be an absolute path"),
        (["--architecture", "AMD 64"], "oci:layout:x", "--architecture AMD 64"),
        (["--quiet", "--json"], "oci:layout:x", "exclude each other"),
        (["--config", "nowhere"], "oci:layout:x", "--config nowhere"),
    ],
)
def test_usage(
    options: list[str], target: str, said: str, small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(USAGE, "oci", *options, small_image, target)
    assert os.listdir(tmp_path) == []


def test_an_image_that_is_not_trusted_makes_nothing(small_image: Path, tmp_path: Path) -> None:
    refused(NOT_TRUSTED, "oci", "--roothash", "00" * 32, small_image, f"oci:{tmp_path / 'layout'}:x")
    assert os.listdir(tmp_path) == []


def test_a_damaged_image_makes_nothing(small_image: Path, tmp_path: Path) -> None:
    data = bytearray(small_image.read_bytes())
    data[data.index(bytes(range(256)) * 2)] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    for target in (f"oci:{tmp_path / 'layout'}:x", f"oci-archive:{tmp_path / 'file'}:x"):
        result = in_process("oci", tmp_path / "damaged", target)
        assert result.returncode == 4 and "is corrupted" in result.stderr
    assert os.listdir(tmp_path) == ["damaged"]


def test_a_file_in_the_way_stays(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/photo").write_text("precious")
    assert "already exists" in refused(FAILED, "oci", small_image, f"oci-archive:{tmp_path / 'file'}:x")
    assert "Not a directory" in refused(FAILED, "oci", small_image, f"oci:{tmp_path / 'file'}:x")
    assert "is no OCI layout" in refused(FAILED, "oci", small_image, f"oci:{tmp_path / 'home'}:x")
    assert (tmp_path / "file").read_text() == "precious" and os.listdir(tmp_path / "home") == ["photo"]
    assert in_process("oci", "--force", small_image, f"oci-archive:{tmp_path / 'file'}:x").returncode == 0
    run("skopeo", "inspect", f"oci-archive:{tmp_path / 'file'}:x")


def test_a_broken_layout_stays(small_image: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    assert in_process("oci", small_image, f"oci:{layout}:x").returncode == 0
    (layout / "index.json").write_text("{")
    before = sorted(layout.rglob("*"))
    assert "index.json: not JSON" in refused(FORMAT, "oci", "--label", "a=b", small_image, f"oci:{layout}:y")
    assert sorted(layout.rglob("*")) == before and (layout / "index.json").read_text() == "{"


@pytest.mark.parametrize("name", [".wh.removed", "sub/.wh..wh..opq"])
def test_a_name_that_would_remove_another_is_refused(name: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, {name: b"a plain file", "removed": b"here"})
    line = refused(FAILED, "oci", image, f"oci:{tmp_path / 'layout'}:x")
    assert f"./{name}: a layer cannot hold this name" in line
    assert not (tmp_path / "layout").exists()


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"Env": "PATH=/"}', b'{"config":' * 50_000, b'{"Cmd": [' + b'"x",' * 1_100_000 + b'"x"]}', b"\xff"],
    ids=["cut", "list", "type", "deep", "large", "binary"],
)
def test_an_image_with_a_hostile_configuration(data: bytes, tmp_path: Path) -> None:
    image = image_of(tmp_path, {".oci-config.json": data})
    line = refused(FORMAT, "oci", image, f"oci:{tmp_path / 'layout'}:x")
    assert "/.oci-config.json: " in line and line.endswith("--config FILE replaces it") and len(line) < 400
    assert not (tmp_path / "layout").exists()
    (tmp_path / "config").write_text("{}")
    result = in_process("oci", "--config", tmp_path / "config", image, f"oci:{tmp_path / 'layout'}:x")
    assert result.returncode == 0, result.stderr


def test_configurations_of_other_kinds_are_files_like_others(tmp_path: Path) -> None:
    image_of(tmp_path, {"etc/config": b'{"Cmd": ["/linked"]}'})
    (tmp_path / "tree/.oci-config.json").symlink_to("etc/config")
    assert mystfuse("mkext2", "-q", "--force", tmp_path / "tree", tmp_path / "image").returncode == 0
    assert in_process("oci", tmp_path / "image", f"oci:{tmp_path / 'layout'}:x").returncode == 0
    run("umoci", "unpack", "--image", f"{tmp_path / 'layout'}:x", tmp_path / "bundle")
    assert os.readlink(tmp_path / "bundle/rootfs/.oci-config.json") == "etc/config"
    assert "linked" not in run("skopeo", "inspect", "--config", f"oci:{tmp_path / 'layout'}:x").stdout


@pytest.fixture(scope="module")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with 24 MiB that no compression makes less."""
    return image_of(tmp_path_factory.mktemp("large"), {"data": os.urandom(24 << 20)})


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_a_full_disk(kind: str, large_image: Path, small_image: Path, tmp_path: Path) -> None:
    """A disk of 8 MiB: the layout that is there stays, and nothing else is left."""
    script = f"""
        mount -t tmpfs -o size=8M tmpfs {tmp_path} && cd {tmp_path} && PYTHON=$1; shift
        $PYTHON -m mystfuse oci --quiet "$1" oci:layout:small 2>/dev/null || exit 90
        find . -type f | sort | xargs sha256sum > /dev/shm/$$
        $PYTHON -m mystfuse oci "$2" {kind}:$3:large; status=$?
        find . -type f | sort | xargs sha256sum | cmp - /dev/shm/$$ >&2 || status=91; rm /dev/shm/$$
        ls; exit $status
    """
    for name in ("layout", "new"):
        if (kind, name) == ("oci-archive", "layout"):
            continue
        alone = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")
        result = run(*alone, sys.executable, small_image, large_image, name, check=False)
        assert result.stdout == "layout\n"
        lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
        assert (result.returncode, len(lines)) == (FAILED, 1), result.stderr
        assert "cannot be written: No space left on device" in lines[0]


def writes_layer(pid: int) -> bool:
    """Whether a process has begun to write a layer."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            if "/blobs/sha256/" in os.readlink(f"/proc/{pid}/fd/{descriptor}"):
                return os.stat(f"/proc/{pid}/fd/{descriptor}").st_size > 0
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_writer_that_is_ended(number: signal.Signals, large_image: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    for was_there in (False, True):
        before = sorted(layout.rglob("*"))
        command = [sys.executable, "-m", "mystfuse", "oci", large_image, f"oci:{layout}:large"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(partial(writes_layer, process.pid), 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (-number if number is signal.SIGKILL else FAILED)
        assert number is signal.SIGKILL or said.splitlines()[-1] == "mystfuse: interrupted"
        if was_there or number is not signal.SIGKILL:
            assert sorted(layout.rglob("*")) == before
        result = mystfuse("oci", "--quiet", large_image, f"oci:{layout}:other")
        assert result.returncode == 0, result.stderr
        found = json.loads(run("skopeo", "inspect", "--raw", f"oci:{layout}:other").stdout)
        assert len(found["layers"]) == 1


def test_a_mount_that_has_no_control_directory(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    result = mystfuse("oci", tmp_path / "directory", f"oci:{tmp_path / 'layout'}:x")
    assert_one_line(result, FORMAT, "directory")
    assert not (tmp_path / "layout").exists()

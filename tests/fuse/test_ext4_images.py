"""Every command on images of ext3 and ext4 that the kernel has filled, with a hash tree of veritysetup's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import mystfuse as api
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import kernel_mount
from tests.support.ext4_images import BASIC, make_populated
from tests.support.json_documents import check_document
from tests.support.made_images import assert_clean, contents
from tests.support.mounts import mounted

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"
KINDS = [
    "ext4",
    "inline data",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ext3", "meta_bg", "uninit_bg")),
]


@dataclass(frozen=True)
class Made:
    """An image, and the options that open it."""

    path: Path
    filesystem: Path
    options: tuple[str, ...]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("ext4 images")
    filesystem = make_populated(directory / "fs", directory / "mount", *BASIC[request.param])
    image, size = directory / "image", filesystem.stat().st_size
    shutil.copy(filesystem, image)
    said = run("veritysetup", "format", f"--hash-offset={size}", image, image).stdout
    match = re.search(r"Root hash:\s+(\w+)", said)
    assert match
    return Made(image, filesystem, ("--roothash", match[1], f"--hash-offset={size}"))


def test_reading_commands(made: Made, tmp_path: Path) -> None:
    def told(command: str, *arguments: str | Path) -> str:
        result = mystfuse(command, *made.options, *arguments, made.path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    document = json.loads(told("info", "--json"))
    check_document("info", document)
    assert document["file_system"]["type"] in ("ext3", "ext4")
    told("verify", "--files")
    with kernel_mount(made.filesystem, tmp_path / "kernel", "ro") as kernel:
        result = mystfuse("extract", *made.options, made.path, "/", tmp_path / "extracted")
        assert result.returncode == 0, result.stderr
        assert contents(tmp_path / "extracted") == contents(kernel)
        with (tmp_path / "tar").open("wb") as file:
            command = [sys.executable, "-m", "mystfuse", "tar", *made.options, str(made.path)]
            subprocess.run(command, stdout=file, check=True)
        with tarfile.open(tmp_path / "tar") as archive:
            names = {os.path.normpath(member.name) for member in archive} - {"."}
        assert names == {str(path.relative_to(kernel)) for path in kernel.rglob("*")}
        with api.Image(made.path, roothashes=[made.options[1]], hash_offset=made.filesystem.stat().st_size) as image:
            assert image.read_bytes("/file 700001") == (kernel / "file 700001").read_bytes()
            assert set(image.listdir("/many")) == set(os.listdir(kernel / "many"))
            assert image.readlink("/link 120") == os.readlink(kernel / "link 120")
    layout = mystfuse("oci", *made.options, made.path, f"oci:{tmp_path}/layout:tag")
    assert layout.returncode == 0, layout.stderr


def test_writing_commands(made: Made, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with mounted(made.path, tmp_path / "mount", *made.options) as mountpoint:
        assert mystfuse("commit", mountpoint, tmp_path / "same").returncode == 0
        assert (tmp_path / "same").read_bytes()[:4096] == made.path.read_bytes()[:4096]
        (mountpoint / "small/two/added").write_bytes(os.urandom(300_000))
        (mountpoint / "file 60").unlink()
        (mountpoint / "middling/00").rename(mountpoint / "middling/renamed")
        with (mountpoint / "file 5000").open("ab") as file:
            file.write(b"more")
        os.setxattr(mountpoint / "small", "user.directory", b"other")
        (mountpoint / "directories/0/below").mkdir()
        shutil.copy(mountpoint / ".mystfuse/image", tmp_path / "merged")
        assert_clean(tmp_path / "merged")
        assert "needs_recovery" not in run("dumpe2fs", "-h", tmp_path / "merged").stdout
        result = mystfuse("diff", mountpoint)
        assert result.returncode == 1, result.stderr
        said = result.stdout.splitlines()
        assert {line.split("  (")[0] for line in said} >= {
            "A  small/two/added", "D  file 60", "M  file 5000", "M  small/", "A  directories/0/below/",
        }  # fmt: skip
        assert any("middling/renamed" in line for line in said)
        uuid = "01234567-89ab-4cde-8f01-23456789abcd"
        assert mystfuse("commit", f"--uuid={uuid}", mountpoint, new).returncode == 0
        assert_clean(new)
        with kernel_mount(new, tmp_path / "kernel", "ro,noload") as kernel:
            compared = run(COMPARE, mountpoint, kernel, check=False)
            assert compared.returncode == 0, compared.stdout
    with kernel_mount(made.filesystem, tmp_path / "kernel", "ro") as kernel:
        result = mystfuse("diff", "--no-times", "--trust-self", kernel, new)
    assert result.returncode == 1
    # A directory on another file system has other inodes: what was renamed is another file.
    renamed = "R  middling/00 -> middling/renamed"
    expected = {line.split("  (")[0] for line in said if not line.endswith("(time)")} - {renamed}
    expected |= {"D  middling/00", "A  middling/renamed"}
    assert {line.split("  (")[0] for line in result.stdout.splitlines()} == expected

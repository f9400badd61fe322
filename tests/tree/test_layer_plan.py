"""Which names a layer has, and what it cannot hold."""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.mounts import mounted


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layers") / "tree"
    for name in ("kept/below", "gone/below", "replaced/old", "moved/below"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text(name)
    (root / "first").write_text("linked")
    os.link(root / "first", root / "kept/second")
    os.link(root / "first", root / "kept/third")
    (root / "alone").write_text("alone")
    assert in_process("mkext2", "--free", "8M", root, root.with_name("image")).returncode == 0
    return root.with_name("image")


@pytest.fixture
def mountpoint(image: Path, tmp_path: Path) -> Iterator[Path]:
    with mounted(image, tmp_path / "mount", "--allow-other") as path:
        yield path


Layer = Callable[..., list[tarfile.TarInfo]]


@pytest.fixture
def layer(mountpoint: Path, tmp_path: Path) -> Layer:
    """Makes a layer; returns its members."""

    def make() -> list[tarfile.TarInfo]:
        result = in_process("commit", "--quiet", "--force", "--layer", tmp_path / "layer.tar", mountpoint)
        assert result.returncode == 0, result.stderr
        with tarfile.open(tmp_path / "layer.tar") as archive:
            return archive.getmembers()

    return make


def names(members: list[tarfile.TarInfo]) -> list[str]:
    return [member.name for member in members]


def test_nothing_written_is_an_empty_layer(layer: Layer) -> None:
    assert layer() == []


def test_what_is_gone_is_one_whiteout(mountpoint: Path, layer: Layer) -> None:
    run("rm", "-r", mountpoint / "gone")
    assert names(layer()) == [".", ".wh.gone"]


def test_a_whiteout_comes_before_what_is_there(mountpoint: Path, layer: Layer) -> None:
    (mountpoint / "alone").unlink()
    (mountpoint / "aaa").touch()
    (mountpoint / "kept/below/file").unlink()
    assert names(layer()) == [".", ".wh.alone", "aaa", "kept", "kept/below", "kept/below/.wh.file"]


def test_another_directory_is_opaque(mountpoint: Path, layer: Layer) -> None:
    (mountpoint / "replaced").rename(mountpoint / "before")
    (mountpoint / "replaced").mkdir()
    (mountpoint / "before/old").rename(mountpoint / "replaced/old")
    (mountpoint / "before").rmdir()
    assert names(layer()) == [".", "replaced", "replaced/.wh..wh..opq", "replaced/old", "replaced/old/file"]


def test_what_has_moved_is_there_with_all_that_is_in_it(mountpoint: Path, layer: Layer) -> None:
    (mountpoint / "moved").rename(mountpoint / "kept/moved")
    assert names(layer()) == [".", ".wh.moved", "kept", "kept/moved", "kept/moved/below", "kept/moved/below/file"]


def test_a_directory_that_becomes_a_link_has_no_whiteouts_in_it(mountpoint: Path, layer: Layer) -> None:
    run("rm", "-r", mountpoint / "gone")
    (mountpoint / "gone").symlink_to("kept")
    assert names(layer()) == [".", "gone"]


def test_all_names_of_an_inode_are_there(mountpoint: Path, layer: Layer) -> None:
    """Though one has changed its contents, or is new: a link cannot lead out of a layer."""
    with (mountpoint / "kept/third").open("a") as file:
        file.write(" and changed")
    first, second, third = (member for member in layer() if not member.isdir())
    assert first.isreg() and first.size == len("linked and changed")
    assert [(link.name, link.linkname) for link in (second, third)] == [
        ("kept/second", "first"), ("kept/third", "first")
    ]  # fmt: skip
    os.link(mountpoint / "alone", mountpoint / "again")
    assert {"alone", "again"} <= set(names(layer()))


def test_a_name_less_needs_a_whiteout_alone(mountpoint: Path, layer: Layer) -> None:
    (mountpoint / "first").unlink()
    assert names(layer()) == [".", ".wh.first"]


def test_sockets_are_left_out_and_told(mountpoint: Path, layer: Layer, tmp_path: Path) -> None:
    (mountpoint / "alone").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(mountpoint)
        try:
            server.bind("alone")
        finally:
            os.chdir("/")
    assert names(layer()) == [".", ".wh.alone"]
    result = in_process("commit", "--layer", tmp_path / "other.tar", mountpoint)
    assert "warning: not in the layer: socket (1)" in result.stderr


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh."])
def test_names_like_whiteouts_are_an_error(name: str, mountpoint: Path, tmp_path: Path) -> None:
    (mountpoint / "kept" / name).touch()
    result = in_process("commit", "--layer", tmp_path / "layer.tar", mountpoint)
    assert result.returncode == 1 and f"kept/{name}" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "layer.tar").exists()


def test_attributes_of_overlayfs_are_left_out_and_told(mountpoint: Path, layer: Layer, tmp_path: Path) -> None:
    os.setxattr(mountpoint / "kept", "trusted.overlay.opaque", b"y")
    os.setxattr(mountpoint / "kept", "trusted.other", b"y")
    (member,) = (member for member in layer() if member.name == "kept")
    attributes = [name for name in member.pax_headers if name.startswith("SCHILY.xattr")]
    assert attributes == ["SCHILY.xattr.trusted.other"]
    result = in_process("commit", "--layer", tmp_path / "other.tar", mountpoint)
    assert "warning: not in the layer: attribute of overlayfs (1)" in result.stderr


def test_holes_are_zeros_and_small_when_compressed(mountpoint: Path, tmp_path: Path) -> None:
    with (mountpoint / "holes").open("wb") as file:
        file.truncate(50_000_000)
    for name in ("layer.tar", "layer.tar.gz"):
        assert in_process("commit", "--layer", tmp_path / name, mountpoint).returncode == 0
    assert (tmp_path / "layer.tar").stat().st_size > 50_000_000 > 500 * (tmp_path / "layer.tar.gz").stat().st_size
    run("gzip", "-t", tmp_path / "layer.tar.gz")
    assert gzip.decompress((tmp_path / "layer.tar.gz").read_bytes()) == (tmp_path / "layer.tar").read_bytes()


def test_no_time_is_later_than_source_date_epoch(mountpoint: Path, tmp_path: Path) -> None:
    (mountpoint / "new").touch()
    os.utime(mountpoint / "alone", (5, 5))
    outputs = []
    for _ in range(2):
        run("touch", mountpoint / "new")
        result = mystfuse("commit", "--force", "--layer", tmp_path / "layer.tar", mountpoint,
                          env={"SOURCE_DATE_EPOCH": "1000"})  # fmt: skip
        assert result.returncode == 0, result.stderr
        outputs.append((tmp_path / "layer.tar").read_bytes())
    assert outputs[0] == outputs[1]
    with tarfile.open(fileobj=io.BytesIO(outputs[0])) as archive:
        assert {member.name: member.mtime for member in archive} == {".": 1000, "alone": 5, "new": 1000}
        assert all(stat.S_IMODE(member.mode) for member in archive)
    result = mystfuse("commit", "--layer", tmp_path / "l", mountpoint, env={"SOURCE_DATE_EPOCH": "now"})
    assert result.returncode == 2 and "not a number of seconds" in result.stderr

"""An OCI layout while images are added to it: what is in it stays, and it is never half of anything."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mystfuse.archives import oci_media
from mystfuse.archives.oci_descriptor import Descriptor
from mystfuse.archives.oci_layer import LayerStream
from mystfuse.archives.oci_layout_writer import MAX_INDEX, LayoutWriter
from mystfuse.errors import MystfuseError
from tests.support.left_over import left_over


def add(directory: Path, tag: str, data: bytes = b"layer") -> Descriptor:
    """Add an image with this layer; returns its manifest."""
    with LayoutWriter(directory) as writer:
        stream = LayerStream(writer.write_layer, "none")
        stream.write(data)
        layer = stream.finish().descriptor
        config, manifest = b'{"of":"' + data + b'"}', b'{"manifest":"' + data + b'"}'
        writer.publish(layer, config, manifest, tag)
    return Descriptor.of(oci_media.MANIFEST, manifest)


def index_of(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "index.json").read_text())
    return document


def tags_of(directory: Path) -> dict[str, str]:
    """The digests of the manifests, by tag."""
    return {entry["annotations"][oci_media.REF_NAME]: entry["digest"] for entry in index_of(directory)["manifests"]}


def assert_whole(directory: Path) -> None:
    """Every blob has the digest that it is named after, and there is nothing else."""
    blobs = directory / "blobs/sha256"
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    for digest in tags_of(directory).values():
        assert (blobs / digest.removeprefix("sha256:")).exists()
    assert {path.name for path in directory.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_an_image_comes_beside_the_others(tmp_path: Path, without_nameless: bool) -> None:
    layout = tmp_path / "new/layout"
    one = add(layout, "one", b"1")
    two = add(layout, "two", b"2")
    assert tags_of(layout) == {"one": one.digest, "two": two.digest}
    other = add(layout, "one", b"3")
    assert tags_of(layout) == {"one": other.digest, "two": two.digest}
    assert add(layout, "one", b"3") == other
    assert len(index_of(layout)["manifests"]) == 2
    assert_whole(layout)
    assert (layout / "oci-layout").read_text() == '{"imageLayoutVersion":"1.0.0"}'


def test_what_others_have_written_stays(tmp_path: Path) -> None:
    add(tmp_path / "layout", "ours")
    index = index_of(tmp_path / "layout")
    foreign = {"mediaType": "x", "digest": "sha512:ab", "size": 3, "platform": {"os": "plan9"}, "urls": ["u"]}
    index["manifests"] += [foreign, {**foreign, "annotations": None}]
    index["annotations"] = {"of": "the index"}
    (tmp_path / "layout/index.json").write_text(json.dumps(index, indent=4))
    add(tmp_path / "layout", "ours", b"new")
    after = index_of(tmp_path / "layout")
    assert after["annotations"] == {"of": "the index"} and after["manifests"][:2] == index["manifests"][1:]
    assert len(after["manifests"]) == 3


BROKEN = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "another schema": b'{"schemaVersion": 1, "manifests": []}',
    "no manifests": b'{"schemaVersion": 2}',
    "numbers": b'{"schemaVersion": 2, "manifests": [1]}',
    "bad annotations": b'{"schemaVersion": 2, "manifests": [{"annotations": "x"}]}',
    "deep": b'{"manifests":' + b"[" * 100_000,
    "infinite": b'{"schemaVersion": 2, "manifests": [], "x": Infinity}',
    "not UTF-8": b'{"schemaVersion": 2, "manifests": [], "x": "\xff"}',
    "huge": b" " * (MAX_INDEX + 1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_index_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    add(tmp_path / "layout", "ours")
    (tmp_path / "layout/index.json").write_bytes(BROKEN[kind])
    before = sorted(path for path in (tmp_path / "layout").rglob("*"))
    with pytest.raises(MystfuseError, match=r"layout/index\.json: "):
        add(tmp_path / "layout", "new", b"new")
    assert (tmp_path / "layout/index.json").read_bytes() == BROKEN[kind]
    assert sorted(path for path in (tmp_path / "layout").rglob("*")) == before


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_an_index_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    add(tmp_path / "layout", "ours")
    index = tmp_path / "layout/index.json"
    index.rename(tmp_path / "index")
    {"fifo": os.mkfifo, "link": lambda path: os.symlink(tmp_path / "index", path), "directory": os.mkdir}[kind](index)
    before = (tmp_path / "index").read_bytes()
    with pytest.raises(MystfuseError, match=r"layout/index\.json: "):
        add(tmp_path / "layout", "new", b"new")
    assert (tmp_path / "index").read_bytes() == before


@pytest.mark.parametrize("version", [b'{"imageLayoutVersion":"2.0.0"}', b"{}", b"", b"[1]"])
def test_another_version_is_refused(version: bytes, tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_bytes(version)
    with pytest.raises(MystfuseError, match="oci-layout: "):
        add(tmp_path, "new")
    assert os.listdir(tmp_path) == ["oci-layout"] and (tmp_path / "oci-layout").read_bytes() == version


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo").touch()
    with pytest.raises(MystfuseError, match="holds other things, and is no OCI layout"):
        add(tmp_path, "new")
    assert os.listdir(tmp_path) == ["photo"]
    with pytest.raises(MystfuseError, match="photo: Not a directory"):
        add(tmp_path / "photo", "new")


def test_what_a_killed_first_writer_left_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "layout/blobs/sha256").mkdir(parents=True)
    (tmp_path / "layout/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifest = add(tmp_path / "layout", "new")
    assert tags_of(tmp_path / "layout") == {"new": manifest.digest}
    assert_whole(tmp_path / "layout")


@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_leaves_nothing(was_there: bool, tmp_path: Path, without_nameless: bool) -> None:
    before = left_over()
    layout = tmp_path / "layout"
    if was_there:
        layout.mkdir()
    with pytest.raises(ZeroDivisionError), LayoutWriter(layout) as writer:
        writer.write_layer(b"x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["layout"] * was_there
    assert not was_there or os.listdir(layout) == []
    add(layout, "one")
    names = sorted(layout.rglob("*"))
    with pytest.raises(ZeroDivisionError), LayoutWriter(layout) as writer:
        writer.write_layer(b"y")
        raise ZeroDivisionError
    assert sorted(layout.rglob("*")) == names
    assert left_over() == before


@pytest.mark.parametrize("call", range(6))
def test_a_disk_that_fails_leaves_what_was_there(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fsync(2) after the other fails. After a failure, the tags are those of before."""
    add(tmp_path / "layout", "one")
    before = tags_of(tmp_path / "layout")
    calls = iter(range(100))
    real = os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MystfuseError, match="No space left on device"):
        add(tmp_path / "layout", "two", b"2")
    monkeypatch.undo()
    assert tags_of(tmp_path / "layout") == before
    assert_whole(tmp_path / "layout")
    add(tmp_path / "layout", "two", b"2")
    assert tags_of(tmp_path / "layout").keys() == {"one", "two"}


def test_a_damaged_blob_is_replaced(tmp_path: Path) -> None:
    add(tmp_path, "one")
    for blob in (tmp_path / "blobs/sha256").iterdir():
        blob.write_bytes(b"damaged")
    add(tmp_path, "one")
    assert_whole(tmp_path)


def test_the_layer_of_a_secret_is_its_owners(tmp_path: Path) -> None:
    with LayoutWriter(tmp_path, is_secret=True) as writer:
        writer.write_layer(b"secret")
        digest = hashlib.sha256(b"secret").hexdigest()
        writer.publish(Descriptor(oci_media.LAYER, f"sha256:{digest}", 6), b"{}", b"{ }", "tag")
    assert (tmp_path / "blobs/sha256" / digest).stat().st_mode & 0o777 == 0o600


def _add_many(directory: Path, name: str, count: int) -> None:
    for number in range(count):
        add(directory, f"{name}{number}", f"{number % 3}".encode())


def test_writers_side_by_side_lose_no_tag(tmp_path: Path) -> None:
    """Processes, and threads, whose descriptors are locked apart, begin with a directory that is not there."""
    context = multiprocessing.get_context("fork")
    workers: list[Any] = [context.Process(target=_add_many, args=(tmp_path / "layout", name, 12)) for name in "abc"]
    workers += [threading.Thread(target=_add_many, args=(tmp_path / "layout", name, 12)) for name in "de"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert tags_of(tmp_path / "layout").keys() == {f"{name}{number}" for name in "abcde" for number in range(12)}
    assert_whole(tmp_path / "layout")


def test_a_writer_that_fails_takes_nothing_from_another(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with pytest.raises(ZeroDivisionError), LayoutWriter(layout) as failing:
        failing.write_layer(b"x")
        with LayoutWriter(layout) as other:
            other.write_layer(b"other")
            with pytest.raises(ZeroDivisionError), LayoutWriter(layout):
                raise ZeroDivisionError
            digest = hashlib.sha256(b"other").hexdigest()
            other.publish(Descriptor(oci_media.LAYER, f"sha256:{digest}", 5), b"{}", b"{ }", "other")
        raise ZeroDivisionError
    assert tags_of(layout).keys() == {"other"}
    assert_whole(layout)

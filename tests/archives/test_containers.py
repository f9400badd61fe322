"""Images of containers: by skopeo and umoci, by hand, and damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.archives.container_image import open_container_image
from mystfuse.errors import MystfuseError
from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.made_images import assert_clean, contents, loop_mounted
from tests.support.oci_layouts import CONFIG, INDEX, LAYER, make_layout, put_blob, put_image, put_index, tagged
from tests.support.tar_archives import archive, member, packed

OTHER = {"os": "linux", "architecture": "other"}
OWN = {
    "os": "linux",
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
}


@pytest.fixture(scope="module")
def layout(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, the upper one with whiteouts."""
    upper = archive(member("hello.txt", b"new"), member("sub/.wh.deep"), member(".wh.link"))
    return make_layout(tmp_path_factory.mktemp("oci") / "layout", [packed(small_tree), upper], {"Cmd": ["/bin/sh"]})


def tree_of(source: str, work: Path) -> dict[str, dict[str, object]]:
    """What an image of a container contains, by an image of ours and the kernel."""
    made = in_process("mkext2", "--force", source, work / "image")
    assert made.returncode == 0, made.stderr
    assert_clean(work / "image")
    with loop_mounted(work / "image", work / "kernel") as kernel:
        assert json.loads((kernel / ".oci-config.json").read_text())["config"]["Cmd"] == ["/bin/sh"]
        found = contents(kernel)
    del found[".oci-config.json"]
    return found


def test_forms_by_skopeo(layout: Path, tmp_path: Path) -> None:
    expected = tree_of(f"oci:{layout}:latest", tmp_path)
    assert expected["hello.txt"]["size"] == 3 and "sub" in expected
    assert "sub/deep" not in expected and "link" not in expected
    for form in (
        f"oci-archive:{tmp_path}/a.tar:tag",
        f"docker-archive:{tmp_path}/d.tar:name:tag",
        f"oci:{tmp_path}/o:x",
    ):
        run("skopeo", "--insecure-policy", "copy", f"oci:{layout}:latest", form)
        assert tree_of(form, tmp_path) == expected
        assert tree_of(":".join(form.split(":")[:2]), tmp_path) == expected
    run("skopeo", "--insecure-policy", "copy", "--dest-compress-format=zstd", "--dest-compress", f"oci:{layout}:latest",
        f"oci:{tmp_path}/z:x")  # fmt: skip
    assert tree_of(f"oci:{tmp_path}/z", tmp_path) == expected


def test_umoci_unpacks_the_same(layout: Path, tmp_path: Path) -> None:
    run("umoci", "unpack", "--image", f"{layout}:latest", tmp_path / "bundle")
    found, expected = tree_of(f"oci:{layout}", tmp_path), contents(tmp_path / "bundle/rootfs")
    for path in expected.keys() | found.keys():
        # umoci marks the root and directories that it has made with attributes and times of its own.
        ours, theirs = dict(found[path]), dict(expected[path])
        if theirs["mode"].startswith("0o4"):  # type: ignore[attr-defined]
            ours.pop("mtime"), theirs.pop("mtime")
        ours.pop("xattrs"), theirs.pop("xattrs")
        assert ours == theirs, path


def test_old_docker_archives_have_links_of_layers(small_tree: Path, tmp_path: Path) -> None:
    layer = packed(small_tree)
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = json.dumps({"config": {"Cmd": ["/bin/sh"]}, "rootfs": {"diff_ids": [diff_id] * 2}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps(
        [{"Config": name, "RepoTags": ["a:b"], "Layers": ["one/layer.tar", "two/layer.tar"]}]
    ).encode()
    data = archive(
        member("one/layer.tar", layer), member("two/layer.tar", kind=tarfile.SYMTYPE, linkname="../one/layer.tar"),
        member(name, config), member("manifest.json", manifest),
    )  # fmt: skip
    (tmp_path / "d.tar").write_bytes(data)
    assert "sub/deep" in tree_of(f"docker-archive:{tmp_path}/d.tar:a:b", tmp_path)


def test_tags_and_machines(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    ours, theirs = (put_image(layout, [archive(member(name))]) for name in ("ours", "theirs"))
    index = {"schemaVersion": 2, "manifests": [{**theirs, "platform": OTHER}, {**ours, "platform": OWN}]}
    several = put_blob(layout, json.dumps(index).encode(), INDEX)
    foreign = put_blob(layout, json.dumps({"manifests": [{**theirs, "platform": OTHER}]}).encode(), INDEX)
    put_index(layout, tagged(several, "both"), tagged(theirs, "1.0"), tagged(foreign, "foreign"))
    for tag, name in (("both", b"ours"), ("1.0", b"theirs")):
        with open_container_image(f"oci:{layout}:{tag}") as tree:
            assert set(tree.root.children) == {name, b".oci-config.json"}
    for reference, words in (
        (f"oci:{layout}:none", "no image of tag none; it has 1.0, both, foreign"),
        (f"oci:{layout}", "several images: give a tag behind a colon: 1.0, both, foreign"),
        (f"oci:{layout}:foreign", "no image for linux/.*; it has linux/other"),
    ):
        with pytest.raises(MystfuseError, match=words), open_container_image(reference):
            pass


def damage_blob(layout: Path) -> None:
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")


def shorten_blob(layout: Path) -> None:
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(blob, 100)


def wrong_diff_id(layout: Path) -> None:
    ids = [f"sha256:{'0' * 64}"]
    put_index(layout, put_image(layout, [packed_one()], rootfs={"type": "layers", "diff_ids": ids}))


def packed_one() -> bytes:
    return archive(member("one", b"1"))


def other_layer(layout: Path) -> None:
    change_manifest(layout, layers=[put_blob(layout, b"x", "application/vnd.oci.image.layer.nondistributable.v1.tar")])


def too_many_layers(layout: Path) -> None:
    change_manifest(layout, layers=[put_blob(layout, packed_one(), LAYER)] * 2)


def an_artifact(layout: Path) -> None:
    change_manifest(layout, config=put_blob(layout, b"{}", "application/vnd.oci.empty.v1+json"))


def digest_that_leads_out(layout: Path) -> None:
    change_manifest(layout, config={"mediaType": CONFIG, "size": 1, "digest": "sha256:../../../../etc/passwd"})


def negative_size(layout: Path) -> None:
    change_manifest(layout, config={"mediaType": CONFIG, "size": -1, "digest": f"sha256:{'0' * 64}"})


def change_manifest(layout: Path, **changes: object) -> None:
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]
    document = json.loads((layout / "blobs/sha256" / manifest["digest"][7:]).read_text())
    put_index(layout, put_blob(layout, json.dumps({**document, **changes}).encode(), manifest["mediaType"]))


def index_of_itself(layout: Path) -> None:
    descriptor = put_blob(layout, b"{}", INDEX)
    for _ in range(6):
        descriptor = put_blob(layout, json.dumps({"manifests": [descriptor]}).encode(), INDEX)
    put_index(layout, descriptor)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (damage_blob, "damaged: its digest is not"), "cut short": (shorten_blob, "100 bytes, not"),
    "diff_id": (wrong_diff_id, "damaged: its digest is not sha256:0000"),
    "layer of another type": (other_layer, "a layer of type application/vnd.oci.image.layer.nondistributable"),
    "layers": (too_many_layers, "not as many layers"), "artifact": (an_artifact, "not an image of a container"),
    "digest": (digest_that_leads_out, "is no digest by"), "size": (negative_size, "a descriptor without"),
    "indexes": (index_of_itself, "is no manifest of an image"),
    "no layout": (lambda layout: (layout / "oci-layout").unlink(), "oci-layout: No such file"),
    "version": (lambda layout: (layout / "oci-layout").write_text('{"imageLayoutVersion": "2"}'), "of version '2'"),
    "index": (lambda layout: (layout / "index.json").write_text("[" * 99999), "index.json: nested too deeply"),
    "index that is text": (lambda layout: (layout / "index.json").write_text("hello"), "index.json: not JSON"),
    "large index": (lambda layout: os.truncate(layout / "index.json", 5 << 20), "bytes of JSON, more than"),
    "index without images": (lambda layout: put_index(layout), "several images|no image"),
    "index that is a pipe": (lambda layout: ((layout / "index.json").unlink(), os.mkfifo(layout / "index.json")),
                             "not a regular file"),
    "blobs elsewhere": (lambda layout: ((shutil.rmtree(layout / "blobs")), (layout / "blobs").symlink_to("/etc")),
                        "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_layouts_are_one_line(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    damage(make_layout(tmp_path / "layout", [packed_one()]))
    with pytest.raises(MystfuseError, match=words) as raised, open_container_image(f"oci:{tmp_path}/layout"):
        pass
    assert "\n" not in str(raised.value)


def test_a_config_in_a_layer_is_replaced(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [archive(member(".oci-config.json", b"{}"))], {"Cmd": ["mine"]})
    with open_container_image(f"oci:{layout}") as tree:
        found = tree.contents.open(tree.root.children[b".oci-config.json"]).read(0, 9999)
    assert json.loads(found)["config"] == {"Cmd": ["mine"]}


def test_an_archive_that_is_compressed(layout: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(layout, ".")
    (tmp_path / "x.tar.gz").write_bytes(file.getvalue())
    assert tree_of(f"oci-archive:{tmp_path}/x.tar.gz", tmp_path) == tree_of(f"oci:{layout}", tmp_path)

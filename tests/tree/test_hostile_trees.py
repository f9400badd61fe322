"""Extracting hostile images: nothing outside the destination changes, and every extraction ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import USER, run
from tests.support.ext2_editor import ROOT, Editor, debugfs, make_image
from tests.support.extraction import FAILED, FORMAT, refused, root_entries, save


def with_root(editor: Editor, *entries: tuple[int, bytes]) -> None:
    """Replace the contents of the root directory."""
    editor.write_entries(editor.block(ROOT), [(ROOT, b"."), (ROOT, b".."), *entries])


def assert_confined(tmp_path: Path, victim: Path, *more: str) -> None:
    """Assert that nothing has changed except the files in ``more``."""
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"passwd": "root"}
    assert sorted(os.listdir(tmp_path)) == sorted(["image", "plain", "source", "victim", *more])


@pytest.mark.parametrize("order", ["link first", "directory first", "two links", "two files", "link and file"])
def test_a_name_twice(order: str, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    first, second = {
        "link first": (b"link1", b"d2"),
        "directory first": (b"d2", b"link1"),
        "two links": (b"link1", b"link2"),
        "two files": (b"file1", b"file2"),
        "link and file": (b"link2", b"file1"),
    }[order]
    with_root(hostile, (ino[first], b"same"), (ino[b"d1"], b"d1"), (ino[second], b"same"))
    image = save(hostile, tmp_path)
    assert "twice" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)
    assert "twice" in refused(FORMAT, "tar", "--insecure", image)


@pytest.mark.parametrize("cycle", ["itself", "above", "root", "sibling"])
def test_directories_in_two_places(cycle: str, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    position, inner = hostile.find(ino[b"d2"], b"inner")
    child = {"itself": inner, "above": ino[b"d2"], "root": ROOT, "sibling": ino[b"d1"]}[cycle]
    if cycle == "itself":
        position, _ = hostile.find(inner, b"passwd")
    hostile.put("<I", position, child)
    image = save(hostile, tmp_path)
    for command in (("extract", "--insecure", image, "/", tmp_path / "copy"), ("tar", "--insecure", image)):
        line = refused(FORMAT, *command)
        assert "more than one place" in line or "root directory" in line
    refused(FORMAT, "ls", "-R", "--insecure", image)
    assert_confined(tmp_path, victim)


@pytest.mark.parametrize(
    "name", [b"..", b".", b"../victim/passwd", b"/etc/passwd", b"a/b", b"nul\0nul", b"../victim/new"]
)
def test_impossible_names(name: bytes, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    with_root(hostile, (ino[b"file1"], b"good"), (ino[b"d2"], name), (ino[b"file2"], name), (ino[b"link1"], b"link"))
    image = save(hostile, tmp_path)
    result = in_process("extract", "--insecure", image, "/", tmp_path / "copy")
    assert result.returncode == 0
    assert "impossible name" in result.stderr
    assert sorted(os.listdir(tmp_path / "copy")) == ["good", "link"]
    assert_confined(tmp_path, victim, "copy")


def test_links_are_only_copied(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    image = save(hostile, tmp_path)
    assert in_process("extract", "--insecure", image, "/", tmp_path / "copy").returncode == 0
    assert os.readlink(tmp_path / "copy/link1") == str(victim)
    # Nor does extract follow them out of the image.
    for path in ("link1/passwd", "link2/passwd"):
        refused(FAILED, "cat", "--insecure", image, path)
        refused(FAILED, "extract", "--insecure", image, path, tmp_path / "other")
    assert_confined(tmp_path, victim, "copy")


def test_a_target_with_nul(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    link = root_entries(hostile)[b"link2"]
    hostile.put("4s", hostile.pointer(link, 0), b"a\0b\n")
    image = save(hostile, tmp_path)
    assert "NUL" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_a_file_that_is_the_directory_of_another(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """A hard link to a directory, counted as one."""
    ino = root_entries(hostile)
    with_root(hostile, (ino[b"d1"], b"one"), (ino[b"d1"], b"two"))
    hostile.put("<H", hostile.inode(ino[b"d1"]) + 26, 3)
    image = save(hostile, tmp_path)
    assert "more than one place" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_blocks_in_two_files(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """Every pointer of a large map leads to the same block: the copy would have gigabytes."""
    file = root_entries(hostile)[b"file1"]
    block = hostile.get("<I", hostile.pointer(file, 0))
    spare = hostile.get("<I", hostile.pointer(root_entries(hostile)[b"file2"], 0))
    hostile.data[spare * 1024 : spare * 1024 + 1024] = spare.to_bytes(4, "little") * 256
    for index in range(12):
        hostile.put("<I", hostile.pointer(file, index), block)
    for index in (12, 13, 14):
        hostile.put("<I", hostile.pointer(file, index), spare)
    hostile.put("<I", hostile.inode(file) + 4, 0xF0000000)
    hostile.put("<I", hostile.inode(file) + 108, 3)
    image = save(hostile, tmp_path)
    assert "more blocks" in refused(FORMAT, "extract", "--insecure", image, "/file1", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_tables_in_many_places(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """A map of 65536 tables that are all the same empty one: a hole that takes long to scan."""
    ino = root_entries(hostile)
    file = ino[b"file1"]
    spares = [hostile.find(ino[b"d1"], b"dfile")[1], hostile.find(ino[b"d2"], b"passwd")[1], ino[b"file2"]]
    top, middle, empty = (hostile.get("<I", hostile.pointer(spare, 0)) for spare in spares)
    for table, child in ((top, middle), (middle, empty), (empty, 0)):
        hostile.data[table * 1024 : table * 1024 + 1024] = child.to_bytes(4, "little") * 256
    hostile.put("<I", hostile.pointer(file, 14), top)
    hostile.put("<I", hostile.inode(file) + 4, 0xF0000000)
    hostile.put("<I", hostile.inode(file) + 108, 3)
    image = save(hostile, tmp_path)
    assert "more tables" in refused(FORMAT, "extract", "--insecure", image, "/file1", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_an_absurd_size_stays_a_hole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("begin")
    editor = Editor(make_image(tmp_path / "plain", "-b", "4096", size="1M", tree=source).read_bytes())
    _, file = editor.find(ROOT, b"file")
    # 2 TiB, and the pointers of three levels lead to empty tables.
    editor.put("<I", editor.inode(file) + 4, 5)
    editor.put("<I", editor.inode(file) + 108, 512)
    image = save(editor, tmp_path)
    started = time.monotonic()
    assert in_process("extract", "--insecure", image, "/file", tmp_path / "copy").returncode == 0
    assert time.monotonic() - started < 10
    status = (tmp_path / "copy").stat()
    assert status.st_size == (2 << 40) + 5
    assert status.st_blocks <= 16
    with (tmp_path / "copy").open("rb") as copy:
        assert copy.read(8) == b"begin\0\0\0"
    editor.put("<I", editor.inode(file) + 108, 0x7FFFFFFF)
    (tmp_path / "copy").unlink()
    refused(FORMAT, "extract", "--insecure", save(editor, tmp_path), "/file", tmp_path / "copy")


def test_directories_deeper_than_files_may_be_open(tmp_path: Path) -> None:
    source = tmp_path / "source"
    path = source
    for _ in range(150):
        path = path / "d"
    path.mkdir(parents=True)
    image = make_image(tmp_path / "image", size="2M", tree=source)
    command = (sys.executable, "-m", "mystfuse", "extract", "--insecure", image, "/", tmp_path / "copy")
    result = run("prlimit", "--nofile=50:100", *command, check=False)
    assert result.returncode == FAILED
    assert "directories lie in each other, and no more files may be open" in result.stderr.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == ["image", "source"]
    run("prlimit", "--nofile=50:400", *command)
    assert (tmp_path / "copy").joinpath(*["d"] * 150).is_dir()


def test_devices_of_a_hostile_image_are_not_an_ordinary_users(
    tmp_path: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image = make_image(open_tmp_path / "image")
    debugfs(image, "mknod sda b 8 0", "sif sda mode 060666")
    image.chmod(0o644)
    target = open_tmp_path / "target"
    target.mkdir()
    os.chown(target, USER, USER)
    result = run(*ordinary_user, "extract", "--insecure", image, "/sda", target / "disk", check=False)
    assert result.returncode == FAILED
    assert result.stderr.splitlines()[-1] == f"mystfuse: {target}/disk: Operation not permitted"
    assert os.listdir(target) == []

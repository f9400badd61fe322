"""``mystfuse cat`` and ``mystfuse ls``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.ext2_editor import Editor, make_image
from tests.support.extraction import FAILED, FORMAT, refused, root_entries, save
from tests.support.json_documents import check_document


def test_cat_writes_files_one_after_the_other(rich_image: Path, rich_mount: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "cat", rich_image, "/link", "hello.txt", "holes"]
    said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert said == b"".join((rich_mount / name).read_bytes() for name in ("sub/deep/data.bin", "hello.txt", "holes"))
    assert "/sub: Is a directory" in refused(FAILED, "cat", rich_image, "/sub")
    assert "nope: No such file" in refused(FAILED, "cat", rich_image, "nope")


def test_cat_ends_when_its_reader_does(rich_image: Path) -> None:
    command = f'"{sys.executable}" -m mystfuse cat "{rich_image}" holes holes 2>&1 >&3 3>&- | cat >&2'
    result = run("bash", "-c", f"{{ {command}; }} 3>&1 | head -c 4; true")
    assert result.stdout == "data"
    assert result.stderr.splitlines() == [f"mystfuse: warning: {rich_image} is trusted by nobody but itself"]


def test_cat_can_be_ended_while_its_reader_is_stuck(rich_image: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "cat", rich_image, "holes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(4) == b"data"
    time.sleep(0.3)
    process.terminate()
    assert process.wait(timeout=10) == FAILED
    process.stdout.close()


def test_ls_shows_what_ls_shows(rich_image: Path, rich_mount: Path) -> None:
    environment = {"TZ": "UTC", "LC_ALL": "C"}
    for path in ("/", "/sub", "/sticky"):
        ours = in_process("ls", "-la", rich_image, path)
        assert ours.returncode == 0
        style = "--time-style=+%Y-%m-%dT%H:%M:%SZ"
        listed = run("ls", "-lAn", "-N", style, rich_mount / path[1:], env=environment).stdout.splitlines()[1:]
        # ls marks names with an ACL, and prints undecodable bytes as they are.
        expected = [line[:10] + " " + line[11:].lstrip() for line in listed]
        expected = [" ".join(line.split()).replace("\udce9", "\\udce9") for line in expected]
        assert [" ".join(line.split()) for line in ours.stdout.splitlines()] == expected
    names = in_process("ls", rich_image).stdout.splitlines()
    assert names == sorted(names) and "hello.txt" in names
    assert in_process("ls", rich_image, "/hello.txt").stdout == "/hello.txt\n"
    assert in_process("ls", "-l", rich_image, "/link").stdout.endswith(" /link -> sub/deep/data.bin\n")


def test_ls_goes_down_and_hides(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "b/c").mkdir(parents=True)
    for name in (".hidden", "b/x\x1b[31m\n", "a"):
        (source / name).touch()
    image = make_image(tmp_path / "image", tree=source)
    result = in_process("ls", "-R", "--insecure", image)
    assert result.stdout == "/:\na\nb\nlost+found\n\n/b:\nc\nx\\x1b[31m\\n\n\n/b/c:\n\n/lost+found:\n"
    assert ".hidden" in in_process("ls", "-a", "--insecure", image).stdout.splitlines()


def test_ls_as_json(rich_image: Path, rich_mount: Path) -> None:
    documents = json.loads(in_process("ls", "-Ra", "--json", rich_image).stdout)
    check_document("ls", documents)
    found = {document["path"]: document for document in documents}
    paths = ["/" + str(path.relative_to(rich_mount)) for path in rich_mount.rglob("*")]
    assert sorted(found, key=os.fsencode) == sorted(paths, key=os.fsencode)
    assert found["/disk"] | {"inode": 0, "mtime": "", "mtime_ns": 0} == {
        "path": "/disk", "inode": 0, "type": "block device", "mode": "0660", "links": 1, "uid": 0, "gid": 0, "size": 0,
        "mtime": "", "mtime_ns": 0, "major": 259, "minor": 70000,
    }  # fmt: skip
    assert (found["/sub"]["mtime_ns"], found["/sub"]["mtime"]) == (4_000_000_000_000_000_000, "2096-10-02T07:06:40Z")
    assert found["/link"]["target"] == "sub/deep/data.bin"
    assert json.loads(in_process("ls", "--json", rich_image, "/sticky").stdout) == []


def test_ls_lists_names_whose_inodes_are_broken(hostile: Editor, tmp_path: Path) -> None:
    ino = root_entries(hostile)
    hostile.put("<H", hostile.inode(ino[b"file2"]), 0)
    image = save(hostile, tmp_path)
    result = in_process("ls", "-l", "--insecure", image)
    assert result.returncode == FORMAT
    assert "?????????? ? ? ? ? ? file2" in [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"/file2: inode {ino[b'file2']}" in result.stderr

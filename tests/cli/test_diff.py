"""``mystfuse diff``: what it prints, and its exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.tree.diff.change import Aspect, Kind
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.ext2_editor import debugfs, make_image
from tests.support.json_documents import check_document
from tests.support.mounts import mounted

TIME = (10**18, 10**18)


def make_tree(place: Path) -> Path:
    (place / "dir").mkdir(parents=True)
    (place / "dir/text").write_text("one\ntwo\n")
    (place / "binary").write_bytes(b"\0" + b"x" * 9999)
    (place / "gone").write_text("gone\n")
    (place / "link").symlink_to("old")
    for path in (*place.rglob("*"), place):
        os.utime(path, ns=TIME, follow_symlinks=False)
    return place


def change_tree(place: Path) -> None:
    (place / "dir/text").write_text("one\nthree\n")
    (place / "dir/text").chmod(0o600)
    os.chown(place / "dir/text", 1000, 2000)
    with (place / "binary").open("r+b") as file:
        file.seek(5000)
        file.write(b"y")
    (place / "gone").unlink()
    (place / "link").unlink()
    (place / "link").symlink_to("new")
    (place / "new\n\x1b[31m").mkdir()
    for path in (place / "dir/text", place / "binary", place / "link", place):
        os.utime(path, ns=TIME, follow_symlinks=False)


LINES = [
    "M  binary  (content)",
    "M  dir/text  (content, size 8 -> 10, mode 0644 -> 0600, owner 0 -> 1000, group 0 -> 2000)",
    "D  gone",
    "M  link  (target old -> new)",
    "A  new\\n\\x1b[31m/",
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trees, as directories and as images."""
    place = tmp_path_factory.mktemp("trees")
    old, new = make_tree(place / "old"), make_tree(place / "new")
    change_tree(new)
    found = {"old": old, "new": new}
    for name, tree in (("old", old), ("new", new)):
        found[f"{name}.img"] = place / f"{name}.img"
        assert in_process("mkext2", tree, found[f"{name}.img"]).returncode == 0
    return found


@pytest.mark.parametrize("old", ["old", "old.img"])
@pytest.mark.parametrize("new", ["new", "new.img"])
def test_a_line_a_path(old: str, new: str, trees: dict[str, Path]) -> None:
    result = in_process("diff", trees[old], trees[new])
    assert result.returncode == 1
    assert result.stdout.splitlines() == LINES


@pytest.mark.parametrize("old", ["old", "old.img"])
def test_no_differences(old: str, trees: dict[str, Path]) -> None:
    result = in_process("diff", "--trust-self", trees[old], trees["old.img"])
    assert (result.returncode, result.stdout) == (0, "")
    result = in_process("diff", "--stat", trees[old], trees["old.img"])
    assert (result.returncode, result.stdout) == (0, "no differences\n")


def test_contents(trees: dict[str, Path]) -> None:
    result = mystfuse("diff", "--contents", trees["old"], trees["new"])
    assert result.stdout.splitlines() == [
        LINES[0],
        "binary, 1 of 3 blocks differs",
        LINES[1],
        "--- a/dir/text",
        "+++ b/dir/text",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+three",
        LINES[2],
        "--- a/gone",
        "+++ /dev/null",
        "@@ -1 +0,0 @@",
        "-gone",
        *LINES[3:],
    ]


def test_contents_do_not_drive_a_terminal(tmp_path: Path) -> None:
    for name, text in (("old", "a\tb\n"), ("new", "\x1b]0;title\x07\tb\r\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    command = f"{sys.executable} -m mystfuse diff --contents {tmp_path}/old {tmp_path}/new"
    shown = run("script", "-qec", command, "/dev/null", check=False).stdout
    assert "-a\tb" in shown and "+\\x1b]0;title\\x07\tb\\r\n" in shown and "\x1b]0" not in shown
    plain = subprocess.run(command.split(), capture_output=True, check=False).stdout
    assert b"+\x1b]0;title\x07\tb\r\n" in plain


def test_counts(trees: dict[str, Path]) -> None:
    assert in_process("diff", "--stat", trees["old"], trees["new"]).stdout.splitlines() == [
        "added    1 path   0 bytes",
        "removed  1 path   5 bytes",
        "changed  3 paths  9.8 KiB",
        "of the paths in both: content 2, target 1, size 1, mode 1, owner 1, group 1",
    ]


def test_what_is_left_out(trees: dict[str, Path]) -> None:
    result = in_process("diff", "--no-owners", trees["old"], trees["new"])
    assert "M  dir/text  (content, size 8 -> 10, mode 0644 -> 0600)" in result.stdout.splitlines()


def test_times(trees: dict[str, Path], tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    os.utime(tree / "gone", ns=(5, 5))
    assert in_process("diff", trees["old"], tree).stdout == "M  gone  (time)\n"
    result = in_process("diff", "--no-times", trees["old"], tree)
    assert (result.returncode, result.stdout) == (0, "")


def document_of(*arguments: str | Path) -> dict[str, Any]:
    result = in_process("diff", "--json", *arguments)
    document: dict[str, Any] = json.loads(result.stdout)
    check_document("diff", document)
    assert result.returncode == bool(any(document["statistics"][kind]["paths"] for kind in Kind))
    return document


def test_json(trees: dict[str, Path]) -> None:
    document = document_of("--contents", trees["old"], trees["new"])
    changes = {change["path"]: change for change in document["changes"]}
    assert [change["change"] for change in document["changes"]] == ["changed", "changed", "removed", "changed", "added"]
    assert changes["binary"]["blocks"] == {"differing": 1, "all": 3}
    assert changes["dir/text"]["text"] == "@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert changes["dir/text"]["differs"] == ["content", "size", "mode", "owner", "group"]
    assert (changes["link"]["old"]["target"], changes["link"]["new"]["target"]) == ("old", "new")
    assert changes["new\n\x1b[31m"]["new"]["type"] == "directory"
    assert document["statistics"]["changed"] == {"paths": 3, "bytes": 10_010}
    assert document_of(trees["old"], trees["old.img"])["changes"] == []
    assert "changes" not in document_of("--stat", trees["old"], trees["new"])


def test_what_has_been_written_since_the_mount(trees: dict[str, Path], tmp_path: Path) -> None:
    image = trees["old.img"]
    with mounted(image, tmp_path / "mnt", "--trust-self") as mount:
        assert in_process("diff", mount).returncode == 0
        change_tree(mount)
        (mount / "dir").rename(mount / "renamed")
        os.utime(mount, ns=TIME)
        result = in_process("diff", mount)
        assert result.returncode == 1
        lines = result.stdout.splitlines()
        assert "R  dir/ -> renamed/" in lines
        assert LINES[1].replace("dir/", "renamed/") in lines
        assert {LINES[0], *LINES[2:]} < set(lines) and len(lines) == 6
        document = document_of("--contents", mount)
        assert document["new"] is None
        assert in_process("diff", "--trust-self", image, mount).returncode == 1
        new = tmp_path / "new.img"
        assert mystfuse("commit", mount, new).returncode == 0
        assert in_process("diff", mount, new).stdout == ""
        assert in_process("diff", image, new).stdout.splitlines() == lines


def test_images_are_trusted_as_elsewhere(
    trees: dict[str, Path], make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    public, private = make_keys("diff")
    signed = tmp_path / "signed.img"
    assert in_process("mkext2", f"--sign={public}:{private}", trees["old"], signed).returncode == 0
    other = trees["new.img"]
    assert in_process("diff", f"--pubkey={public}", signed, trees["old"]).stderr == ""
    assert_one_line(in_process("diff", f"--pubkey={public}", signed, other), 3, str(other), "not trusted")
    root_hash = in_process("fssig", "--roothash", other).stdout.strip()
    result = in_process("diff", f"--pubkey={public}", f"--roothash={root_hash}", signed, other)
    assert (result.returncode, result.stderr) == (1, "")
    result = in_process("diff", signed, other)
    assert result.stderr.count("is trusted by nobody but itself") == 2


def test_damage(trees: dict[str, Path], tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert in_process("mkext2", "--block-size=4096", trees["old"], image).returncode == 0
    data = bytearray(image.read_bytes())
    data[data.index(b"one\ntwo\n")] ^= 1
    damaged = tmp_path / "damaged.img"
    damaged.write_bytes(data)
    # Nothing is read where the digests are the same.
    assert in_process("diff", "--trust-self", damaged, image).returncode == 0
    result = in_process("diff", "--trust-self", damaged, trees["old"])
    assert result.returncode == 4
    assert "dir/text: verity: data block" in result.stderr


def test_trouble(trees: dict[str, Path], tmp_path: Path) -> None:
    old = trees["old"]
    assert_one_line(in_process("diff", old, tmp_path / "nowhere"), 2, "nowhere: No such file or directory")
    assert_one_line(in_process("diff", trees["old.img"]), 2, "a single argument is a mountpoint")
    assert_one_line(in_process("diff", old), 7, "old")
    assert_one_line(in_process("diff", "--insecure", old, old), 2, "--insecure", "none is named")
    assert in_process("diff", "--no-such", old, old).returncode == 2
    assert in_process("diff").returncode == 2
    (tmp_path / "text").write_text("no image")
    assert_one_line(in_process("diff", old, tmp_path / "text"), 6, "text")


def test_unreadable_files_are_named(trees: dict[str, Path], ordinary_user: list[str], open_tmp_path: Path) -> None:
    for name in ("old", "new"):
        make_tree(open_tmp_path / name)
    (open_tmp_path / "new/dir/text").chmod(0)
    result = run(*ordinary_user, "diff", open_tmp_path / "old", open_tmp_path / "new", check=False)
    assert_one_line(result, 2, str(open_tmp_path / "new/dir/text: Permission denied"))


def test_1_is_for_differences_alone(trees: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "mystfuse", "diff", str(trees["old"]), str(trees["new"])]
    # A closed pipe, an internal error, no memory to begin with.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        assert subprocess.run(command, stdout=pipe, check=False).returncode == 2
    with open("/dev/full", "wb") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, check=False).returncode == 2
    limited = subprocess.run(
        ["sh", "-c", 'ulimit -v 50000; exec "$@"', "sh", *command], capture_output=True, check=False
    )
    assert limited.returncode not in (0, 1)
    monkeypatch.setattr("mystfuse.cli.commands.diff.compare", None)
    result = in_process("diff", trees["old"], trees["new"])
    assert result.returncode == 2 and "internal error" in result.stderr


def reads(pid: int, name: str) -> bool:
    """Whether a process has a file of this name open."""
    descriptors = Path(f"/proc/{pid}/fd")
    try:
        return any(descriptor.readlink().name == name for descriptor in descriptors.iterdir())
    except FileNotFoundError:
        return False


def test_interrupted(tmp_path: Path) -> None:
    """While a comparison runs, which the size of a file makes last for minutes."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "file").open("wb") as file:
            file.truncate(1 << 42)
            for position in range(0, 1 << 34, 1 << 22):
                file.seek(position)
                file.write(b"x")
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "diff", tmp_path / "old", tmp_path / "new"], stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: reads(process.pid, "file"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (2, b"mystfuse: interrupted\n")


def test_every_aspect_has_its_words(tmp_path: Path) -> None:
    trees = [tmp_path / "old", tmp_path / "new"]
    for tree in trees:
        tree.mkdir()
        for name in ("acl", "xattr", "first", "type"):
            (tree / name).write_text(name)
        os.link(tree / "first", tree / "second")
    os.mknod(trees[0] / "device", 0o20600, os.makedev(1, 3))
    os.mknod(trees[1] / "device", 0o20600, os.makedev(1, 5))
    new = trees[1]
    run("setfacl", "-m", "u:1000:r", new / "acl")
    os.setxattr(new / "xattr", b"user.a", b"b")
    shutil.copy2(new / "first", new / "copy")
    (new / "copy").rename(new / "second")
    (new / "type").unlink()
    os.mkfifo(new / "type")
    result = in_process("diff", "--no-times", *trees)
    assert result.stdout.splitlines() == [
        "M  acl  (acl)",
        "M  device  (device 1:3 -> 1:5)",
        "M  second  (links)",
        "M  type  (file -> fifo)",
        "M  xattr  (xattrs)",
    ]
    assert {aspect for change in document_of(*trees)["changes"] for aspect in change["differs"]} >= {
        Aspect.ACL, Aspect.DEVICE, Aspect.LINKS, Aspect.TYPE, Aspect.XATTRS, Aspect.MTIME
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "txz", "TAR.ZST"])
def test_archives(suffix: str, trees: dict[str, Path], tmp_path: Path) -> None:
    archives = {}
    for name in ("old", "new"):
        archives[name] = tmp_path / f"{name}.{suffix}"
        compress = {"tar.gz": "--gzip", "txz": "--xz", "TAR.ZST": "--zstd"}.get(suffix, "--no-auto-compress")
        run("tar", "-c", compress, "-f", archives[name], "--format=pax", "-C", trees[name], ".")
    for other in ("new", "new.img"):
        result = in_process("diff", archives["old"], trees[other])
        assert (result.returncode, result.stdout.splitlines()) == (1, LINES)
    for other in ("old", "old.img"):
        assert in_process("diff", trees[other], archives["old"]).stdout == ""
    assert in_process("diff", *archives.values()).stdout.splitlines() == LINES
    result = mystfuse("diff", "--contents", archives["old"], trees["new"])
    assert "binary, 1 of 3 blocks differs\n" in result.stdout and "+three\n" in result.stdout
    assert mystfuse("mkext2", "--tar", archives["new"], tmp_path / "made.img").returncode == 0
    assert in_process("diff", archives["new"], tmp_path / "made.img").stdout == ""


def test_what_is_no_archive_is_an_error(trees: dict[str, Path], tmp_path: Path) -> None:
    """By its name alone it is one, and not an image that nobody has to vouch for."""
    for name, data in (("empty.tar", b""), ("text.tgz", b"text")):
        (tmp_path / name).write_bytes(data)
        result = in_process("diff", tmp_path / name, trees["old"])
        assert_one_line(result, 6, str(tmp_path / name))
    run("tar", "-cf", tmp_path / "archive", "-C", trees["old"], ".")
    assert_one_line(in_process("diff", tmp_path / "archive", trees["old"]), 6, "a tar archive")


@pytest.mark.parametrize(
    "name", ["pass word", "tab\tin it", "new\nline", 'quo"te', "back\\slash", "\udcff", "\x1b[31m", "é"]
)
def test_patch_finds_the_files_of_unified_diffs(name: str, tmp_path: Path) -> None:
    old, new, copy = (tmp_path / place for place in ("old", "new", "copy"))
    for tree in (old, new):
        tree.mkdir()
        (tree / "pass").write_text("one\ntwo\n")
        (tree / name).write_text("one\ntwo\n")
    (new / name).write_text("one\nthree\n")
    (new / f"{name} added").write_text("added\n")
    shutil.copytree(old, copy)
    diff = mystfuse("diff", "--contents", "--no-times", old, new)
    assert diff.returncode == 1
    (tmp_path / "patch").write_text(diff.stdout)
    run("patch", "-p1", "-s", "-d", copy, "-i", tmp_path / "patch")
    assert {path.name: path.read_text() for path in copy.iterdir()} == {
        "pass": "one\ntwo\n", name: "one\nthree\n", f"{name} added": "added\n",
    }  # fmt: skip


def test_nothing_is_printed_before_both_trees_are_open(trees: dict[str, Path]) -> None:
    result = in_process("diff", "--json", trees["old"], "/nowhere")
    assert (result.returncode, result.stdout) == (2, "")


def test_longer_files_have_other_contents_whoever_asks(trees: dict[str, Path], tmp_path: Path) -> None:
    commit = tmp_path / "commit.img"
    with mounted(trees["old.img"], tmp_path / "mnt") as mount:
        os.truncate(mount / "gone", 100)
        since_mount = mystfuse("diff", "--no-times", mount).stdout
        assert mystfuse("commit", mount, commit).returncode == 0
    assert since_mount == "M  gone  (content, size 5 -> 100)\n"
    assert in_process("diff", "--no-times", trees["old.img"], commit).stdout == since_mount


def test_without_a_uuid_nothing_is_renamed(tmp_path: Path) -> None:
    """Two file systems without one are not the same file system."""
    images = []
    for name in ("apple", "pear"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        images.append(make_image(tmp_path / f"{name}.img", "-U", "clear", tree=tmp_path / name))
    said = in_process("diff", "--insecure", "--no-times", *images).stdout.splitlines()
    assert [line.split("  ")[:2] for line in said] == [["D", "apple"], ["A", "pear"]]


def test_more_names_than_the_link_count_says_are_an_error(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("x", "y"):
        (tree / name).write_text("same")
    old = make_image(tmp_path / "old.img", tree=tree)
    shutil.copy(old, tmp_path / "new.img")
    debugfs(tmp_path / "new.img", "rm y", "ln x y", "sif x links_count 1")
    result = in_process("diff", "--insecure", old, tmp_path / "new.img")
    assert result.returncode > 1
    assert "more names than its link count says" in result.stderr


def test_a_path_that_is_too_long_is_an_error(trees: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    here = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(90):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        result = in_process("diff", trees["old"], tmp_path / "deep")
        assert (result.returncode, "a path of more than 16384 bytes" in result.stderr) == (2, True)
        assert len(result.stderr) < 500
    finally:
        run("rm", "-rf", tmp_path / "deep")

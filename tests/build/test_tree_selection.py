"""``mkext2 --exclude``, ``--from-list`` and ``--owner``: the image is as that of a copy that has only what is taken."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mystfuse.build import tree_source
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, mystfuse, run, wait_until
from tests.support.made_images import (
    assert_clean,
    assert_refused,
    check_ended_mkext2,
    contents,
    fssig,
    loop_mounted,
    make,
)
from tests.support.mounts import mounted

AT_EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}


def copy_of(tree: Path, target: Path, *without: str) -> Path:
    """A copy that keeps everything but some paths, and the times of directories."""
    run("cp", "-a", tree, target)
    for path in without:
        above = (target / path).parent
        times = above.stat()
        run("rm", "-rf", target / path)
        os.utime(above, ns=(times.st_atime_ns, times.st_mtime_ns))
    return target


def sparse_tree(root: Path) -> Path:
    """A file with a large hole, others with small ones, and long names in a large directory."""
    (root / "many").mkdir(parents=True)
    generator = random.Random(3)
    for number in range(700):
        name = f"{number}{'n' * generator.randrange(200)}"
        (root / "many" / name).write_bytes(generator.randbytes(generator.randrange(300)))
    with (root / "sparse").open("wb") as file:
        for place in (0, 5 << 20, 300 << 20):
            file.seek(place)
            file.write(b"data" * 1000)
    with (root / "small-hole").open("wb") as file:
        file.seek(100_000)
        file.write(b"x")
    (root / "large").write_bytes(generator.randbytes(3 << 20))
    for path in (*root.rglob("*"), root):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    return root


@pytest.mark.parametrize("options", [(), ("--size=min",), ("--block-size=4096", "--free=3M")])
def test_the_bytes_are_those_of_a_copy(options: tuple[str, ...], rich_tree: Path, tmp_path: Path) -> None:
    """All kinds of files, attributes, ACLs, times."""
    tree = copy_of(rich_tree, tmp_path / "tree", "setuid")
    # mke2fs stores several attributes in the order of the system's list, and a copy has another one.
    os.removexattr(tree, "user.of-the-root")
    copy = copy_of(tree, tmp_path / "copy", "sub/deep", "names/line\nbreak")
    selection = ("--exclude=/sub/deep", "--exclude=line?break")
    shown = make(tree, tmp_path / "shown", *selection, *options, env=AT_EPOCH)
    copied = make(copy, tmp_path / "copied", *options, env=AT_EPOCH)
    assert shown == copied
    assert (tmp_path / "shown").read_bytes() == (tmp_path / "copied").read_bytes()
    assert_clean(tmp_path / "shown")


def test_holes_and_large_files_are_copied(tmp_path: Path) -> None:
    tree = sparse_tree(tmp_path / "tree")
    copy = copy_of(tree, tmp_path / "copy", "many/0")
    make(tree, tmp_path / "shown", "--exclude=nothing at all", "--size=min", env=AT_EPOCH)
    make(copy, tmp_path / "copied", "--size=min", env=AT_EPOCH)
    assert (tmp_path / "shown").read_bytes() == (tmp_path / "copied").read_bytes()
    with loop_mounted(tmp_path / "shown", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(tree)


def test_what_is_excluded_is_not_read(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    tree, target = open_tmp_path / "tree", open_tmp_path / "target"
    (tree / "secret/below").mkdir(parents=True)
    (tree / "key.pem").touch(mode=0o600)
    (tree / "file").write_text("x")
    (tree / "secret").chmod(0)
    target.mkdir()
    os.chown(target, USER, GROUP)
    arguments = ("mkext2", "--exclude=secret/", "--exclude=*.pem", tree, target / "image")
    run(*ordinary_user, *arguments)
    assert_clean(target / "image")
    assert in_process("ls", target / "image").stdout == "file\nlost+found\n"
    # Patterns for directories leave files, and the reverse.
    refused = run(*ordinary_user, *arguments[:2], "--force", *arguments[3:], check=False)
    assert_refused(refused, 1, "key.pem: cannot be read")


def test_patterns_come_from_files_and_the_last_one_decides(tmp_path: Path) -> None:
    tree, patterns = tmp_path / "tree", tmp_path / "patterns"
    for name in ("keep.log", "drop.log", "text", "build/out", "sub/build/out"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    patterns.write_text("# logs\n*.log\n/build/\n")
    arguments = ("mkext2", "--exclude-from", patterns, "--exclude=!keep.log", tree, tmp_path / "image")
    assert in_process(*arguments).returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        assert set(contents(mountpoint)) == {".", "keep.log", "text", "sub", "sub/build", "sub/build/out"}


@pytest.mark.parametrize("null", [False, True])
def test_only_listed_paths_and_what_is_above_them(null: bool, small_tree: Path, tmp_path: Path) -> None:
    listed = ["sub/deep/data.bin", "./hello.txt", "link", "sub//deep", os.fsdecode(b"latin-\xe9"), ".", "hello.txt"]
    text = "".join(path + ("\0" if null else "\n") for path in listed)
    options = ["--null"] if null else []
    result = mystfuse("mkext2", "--from-list=-", *options, small_tree, tmp_path / "image", input=text)
    assert result.returncode == 0, result.stderr
    assert_clean(tmp_path / "image")
    expected = {".", "hello.txt", "link", "sub", "sub/deep", "sub/deep/data.bin", os.fsdecode(b"latin-\xe9")}
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        found = contents(mountpoint)
    assert set(found) == expected
    whole = contents(small_tree)
    for path, entry in found.items():
        for key in ("mode", "mtime", "uid", "gid", "size", "sha256", "target", "xattrs"):
            assert entry.get(key) == whole[path].get(key), path


def test_what_git_tracks(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for name in ("tracked", "sub/ta\nb", "untracked"):
        (tree / name).write_text(name)
    run("git", "init", "-q", tree)
    run("git", "-C", tree, "add", "tracked", "sub")
    listed = run("git", "-C", tree, "ls-files", "-z").stdout
    result = mystfuse("mkext2", "--from-list", "-", "--null", tree, tmp_path / "image", input=listed)
    assert result.returncode == 0, result.stderr
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        assert set(contents(mountpoint)) == {".", "tracked", "sub", "sub/ta\nb"}
    (tree / "tracked").unlink()
    result = mystfuse("mkext2", "--from-list", "-", "-0", tree, tmp_path / "again", input=listed)
    assert_refused(result, 2, "tracked: cannot be taken from", "No such file")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/etc/passwd", "is absolute"), ("../x", "lead out"), ("sub/../hello.txt", "through .."),
        ("", "lists no paths"),
        ("missing", "No such file"), ("sub/missing/x", "No such file"), ("link/x", "link is a symbolic link"),
        ("hello.txt/x", "hello.txt is no directory"), ("hello.txt\0link", "--null"), ("n" * 300, "name too long"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_followed_are_one_line(path: str, word: str, small_tree: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(f"{path}\n")
    result = in_process("mkext2", "--from-list", listed, small_tree, tmp_path / "image")
    assert_refused(result, 2, f"--from-list {listed}: ", word)
    assert [entry.name for entry in tmp_path.iterdir()] == ["list"]


@pytest.mark.parametrize(
    "options",
    [
        ("--exclude=[a",), ("--exclude=",), ("--exclude-from=/nowhere",), ("--exclude-from=/",),
        ("--from-list=/nowhere",),
        ("--null",), ("--exclude-from=-", "--from-list=-"), ("--from-list=-", "--encrypt=-"), ("--owner=root",),
        ("--owner=:",), ("--owner=nobody knows:root",), ("--owner=0:nobody knows",), ("--owner=0:4294967295",),
        ("--owner=-1:0",), ("--quiet", "--json"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    result = mystfuse("mkext2", *options, small_tree, tmp_path / "image", input="")
    assert_refused(result, 2, "stdin" if options[-1].endswith("=-") else options[0].split("=")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("owner", "expected"), [("root:root", (0, 0)), ("100000:70001", (100_000, 70_001))])
@pytest.mark.parametrize("options", [(), ("--exclude=sparse",), ("--size=min",)])
def test_one_owner_for_all_files(
    owner: str, expected: tuple[int, int], options: tuple[str, ...], rich_tree: Path, tmp_path: Path
) -> None:
    make(rich_tree, tmp_path / "image", f"--owner={owner}", *options)
    assert_clean(tmp_path / "image")
    with loop_mounted(tmp_path / "image", tmp_path / "kernel") as kernel:
        for path in (kernel, *kernel.rglob("*")):
            assert (path.lstat().st_uid, path.lstat().st_gid) == expected, path
        whole = contents(rich_tree, with_owners=False)
        found = contents(kernel, with_owners=False)
        if "--exclude=sparse" in options:
            del whole["sparse"]
        assert {path: entry["mode"] for path, entry in found.items()} == {
            path: entry["mode"] for path, entry in whole.items()
        }


def test_images_of_different_users_are_the_same_with_one_owner(
    small_tree: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    """An ordinary user makes an image of root's files, and root makes the same one."""
    theirs, target = open_tmp_path / "theirs", open_tmp_path / "target"
    run("cp", "-a", small_tree, theirs)
    for path in theirs.rglob("*"):
        for name in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, name, follow_symlinks=False)
    ours = copy_of(theirs, open_tmp_path / "ours")
    run("chown", "-R", "-h", f"{USER}:{GROUP}", theirs)
    target.mkdir()
    os.chown(target, USER, GROUP)
    at_epoch = ("env", "SOURCE_DATE_EPOCH=1600000000")
    run(*at_epoch, *ordinary_user, "mkext2", "--owner=root:root", theirs, target / "theirs")
    make(ours, target / "ours", "--owner=root:root", env=AT_EPOCH)
    assert (target / "theirs").read_bytes() == (target / "ours").read_bytes()


def test_encrypted_from_a_part(small_tree: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    options = ("--encrypt", key, "--exclude=sub", "--size=min", "--json")
    result = mystfuse("mkext2", *options, small_tree, tmp_path / "image")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["root_hash"] == fssig(tmp_path / "image")["root_hash"]
    with mounted(tmp_path / "image", tmp_path / "mount", "--key-file", str(key)) as mountpoint:
        found = contents(mountpoint)
    for path, entry in contents(small_tree).items():
        assert (path in found) != path.startswith("sub")
        if path in found:
            assert entry.get("sha256") == found[path].get("sha256"), path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_making_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    def fill(source: Path) -> None:
        for index in range(4000):
            (source / str(index)).write_bytes(secrets.token_bytes(9000))

    check_ended_mkext2(tmp_path, fill, number, "--exclude=none")


def children_of(pid: int) -> dict[int, str]:
    """The children of a process, and their names."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {child: Path(f"/proc/{child}/comm").read_text() for child in children}


def test_a_server_that_is_killed_is_one_line(tmp_path: Path) -> None:
    source, temporary = tmp_path / "source", tmp_path / "temporary"
    source.mkdir()
    temporary.mkdir()
    for index in range(4000):
        (source / str(index)).write_bytes(secrets.token_bytes(9000))
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mkext2", "--exclude=none", source, tmp_path / "x.img"],
        env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        # By then mke2fs, or what starts it, runs beside the server.
        wait_until(lambda: len(children_of(process.pid)) == 2)
        os.kill(
            next(pid for pid, name in children_of(process.pid).items() if name.startswith("mystfuse:")), signal.SIGKILL
        )
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert said == "mystfuse: mke2fs: a process that it needs has ended\n"
    wait_until(lambda: not list(temporary.iterdir()))
    assert not (tmp_path / "x.img").exists()


def test_a_file_that_vanishes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 5000)
    scan = tree_source.scan

    def scan_and_replace(*given: object) -> object:
        found = scan(*given)  # type: ignore[arg-type]
        (tree / "sub/file").unlink()
        (tree / "sub/file").symlink_to("/etc/passwd")
        return found

    monkeypatch.setattr(tree_source, "scan", scan_and_replace)
    result = in_process("mkext2", "--exclude=none", tree, image)
    assert_refused(result, 1, "mke2fs failed", "symbolic links", "file")
    assert not image.exists()

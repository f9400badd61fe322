"""The contents of a mount, compared with the golden manifest and the kernel's own mount of the same image, and read by
common tools."""

from __future__ import annotations

import concurrent.futures
import hashlib
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import kernel_mount
from tests.support.images import GOLDEN_NAMES
from tests.support.mounts import mounted

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"


@pytest.fixture
def mount(small_image: Path, tmp_path: Path) -> Iterator[Path]:
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        yield mountpoint


def describe(path: bytes) -> dict[str, Any]:
    """One path as the golden manifest describes it."""
    status = os.lstat(path)
    found: dict[str, Any] = {
        "mode": oct(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "mtime": int(status.st_mtime),
    }
    if stat.S_ISREG(status.st_mode):
        data = Path(os.fsdecode(path)).read_bytes()
        found |= {"size": status.st_size, "sha256": hashlib.sha256(data).hexdigest()}
        assert len(data) == status.st_size
    elif stat.S_ISLNK(status.st_mode):
        found["target"] = os.fsdecode(os.readlink(path))
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["rdev"] = status.st_rdev
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False).hex() for name in os.listxattr(path, follow_symlinks=False)
    }
    return found | ({"xattr": attributes} if attributes else {})


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_image_is_exactly_its_manifest(
    name: str, golden: dict[str, Path], manifest: dict[str, Any], tmp_path: Path
) -> None:
    with mounted(golden[name], tmp_path / "mount") as mountpoint:
        root = os.fsencode(mountpoint)
        found = {}
        for directory, subdirectories, files in os.walk(root):
            for entry in subdirectories + files:
                path = os.path.join(directory, entry)
                found[os.fsdecode(os.path.relpath(path, root))] = describe(path)
    del found["lost+found"]
    assert found == manifest


@pytest.mark.parametrize(
    ("source", "block_size"),
    [("/usr/include", 1024), (str(Path(os.__file__).parent / "encodings"), 2048), ("/etc", 4096)],
)
def test_mount_agrees_with_the_kernels_on_everything(source: str, block_size: int, tmp_path: Path) -> None:
    image, kernel = tmp_path / "image", tmp_path / "kernel"
    kernel.mkdir()
    assert mystfuse("mkext2", f"--block-size={block_size}", source, image).returncode == 0
    run("mount", "-t", "ext2", "-o", "loop,ro,noatime", image, kernel)
    try:
        with mounted(image, tmp_path / "mount") as mountpoint:
            result = run(sys.executable, COMPARE, mountpoint, kernel, check=False)
            assert result.returncode == 0, result.stdout
            assert int(result.stdout.split()[-4]) > 100
            ours, theirs = os.statvfs(mountpoint), os.statvfs(kernel)
            for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax"):
                assert getattr(ours, field) == getattr(theirs, field), field
    finally:
        run("umount", kernel)


def test_compare_trees_sees_differences(small_tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    run("cp", "-a", small_tree, copy)
    ignored = "--ignore=st_ino,st_ctime_ns,st_atime_ns,st_blocks"
    assert run(sys.executable, COMPARE, small_tree, copy, ignored).returncode == 0
    (copy / "sub/deep/data.bin").write_bytes(b"other")
    os.setxattr(copy / "empty", "user.new", b"1")
    (copy / "additional").touch()
    result = run(sys.executable, COMPARE, small_tree, copy, ignored, check=False)
    assert result.returncode == 1
    for expected in ("sub/deep/data.bin: sha256", "empty: xattrs", "additional: error", ".: names"):
        assert expected in result.stdout


def test_rsync_finds_nothing_to_change(mount: Path, small_tree: Path) -> None:
    result = run("rsync", "-aHAXn", "--checksum", "--delete", "-i", "--exclude=/lost+found", f"{small_tree}/", mount)
    assert result.stdout == ""
    result = run("rsync", "-aHAXn", "--checksum", "--delete", "-i", "--exclude=/lost+found", f"{mount}/", small_tree)
    assert result.stdout == ""


def test_tar_of_the_mount_equals_tar_of_the_source(mount: Path, small_tree: Path) -> None:
    def tar(directory: Path) -> str:
        command = ["tar", "c", "--sort=name", "--exclude=./lost+found", "-C", str(directory), "."]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        return hashlib.sha256(archive).hexdigest()

    assert tar(mount) == tar(small_tree)


def test_everyday_tools_agree_with_the_source(mount: Path, small_tree: Path) -> None:
    def listing(directory: Path, *command: str) -> list[str]:
        lines = run(*command, cwd=directory).stdout.splitlines()
        return sorted(line for line in lines if "lost+found" not in line)

    for command in (
        # The size and link count of a directory depend on the file system.
        ("find", ".", "!", "-type", "d", "-printf", "%p %y %m %n %s %l\n"),
        ("grep", "-r", "hello", "."),
        ("getfattr", "-Rhd", "-m-", "."),
        ("getfacl", "-R", "-n", "sub", "hello.txt"),
        ("du", "-ab", "sub/deep/data.bin", "sub/hard", "sparse"),
    ):
        assert listing(mount, *command) == listing(small_tree, *command) != [], command
    assert run("ls", "-lR", mount).returncode == 0
    assert "n" * 255 in run("ls", mount).stdout
    assert run("df", "--output=source", mount).stdout.split()[-1].endswith("small.img")


def test_cp_a_copies_everything(mount: Path, tmp_path: Path) -> None:
    run("cp", "-a", mount, tmp_path / "copy")
    result = run(
        sys.executable, COMPARE, mount, tmp_path / "copy",
        "--ignore=st_ino,st_ctime_ns,st_atime_ns,st_blocks,st_blksize,st_size",
    )  # fmt: skip
    assert "0 differences" in result.stdout


def test_dots_are_listed_and_the_control_directory_is_not(mount: Path) -> None:
    names = run("ls", "-a", mount).stdout.split()
    assert names[:2] == [".", ".."]
    assert ".mystfuse" not in names
    inodes = dict(reversed(line.split()) for line in run("ls", "-ai", mount / "sub").stdout.splitlines())
    assert int(inodes["."]) == (mount / "sub").stat().st_ino
    assert int(inodes[".."]) == mount.stat().st_ino == 2


def test_programs_run_from_the_mount_and_mapped_files_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    run("cp", "/usr/bin/sha256sum", "/usr/bin/env", source)
    (source / "script").write_text("#!/bin/sh\necho from a script\n")
    (source / "script").chmod(0o755)
    payload = os.urandom(3_000_001)
    (source / "payload").write_bytes(payload)
    assert mystfuse("mkext2", source, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        said = run(mountpoint / "sha256sum", mountpoint / "payload").stdout
        assert said.split()[0] == hashlib.sha256(payload).hexdigest()
        assert run(mountpoint / "script").stdout == "from a script\n"
        with (mountpoint / "payload").open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                assert mapped[:] == payload
            assert os.pread(file.fileno(), 100, 3_000_000) == payload[3_000_000:]
            assert os.pread(file.fileno(), 10, 3_000_001) == b""


def test_pool_readers_all_read_right(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    contents = {f"file-{number}": os.urandom(100_000 + 7919 * number) for number in range(32)}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    assert mystfuse("mkext2", source, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:

        def read(name: str) -> bool:
            right = contents[name]
            with (mountpoint / name).open("rb", buffering=0) as file:
                order = sorted(range(0, len(right), 9973), key=lambda position: hash((name, position)))
                return all(os.pread(file.fileno(), 9973, at) == right[at : at + 9973] for at in order)

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            assert all(pool.map(read, contents))
            assert all(pool.map(read, reversed(contents)))


def test_large_directories_list_and_look_up(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = [f"entry-{number:05}-{'x' * (number % 60)}" for number in range(6000)]
    for name in names:
        (source / name).touch()
    assert mystfuse("mkext2", source, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        assert not (mountpoint / "missing").exists()
        assert (mountpoint / names[4321]).exists()
        assert sorted(os.listdir(mountpoint)) == sorted([*names, "lost+found"])
        with os.scandir(mountpoint) as entries:
            assert sum(entry.is_file(follow_symlinks=False) for entry in entries) == 6000
        assert not (mountpoint / "missing").exists()


@pytest.mark.parametrize("option", ["--read-only", "-oro", "-r"])
def test_a_read_only_mount_refuses_every_change(small_image: Path, tmp_path: Path, option: str) -> None:
    with mounted(small_image, tmp_path / "mount", option) as mount:
        for attempt in (
            lambda: (mount / "new").touch(),
            lambda: (mount / "hello.txt").write_text("x"),
            lambda: (mount / "hello.txt").unlink(),
            lambda: (mount / "directory").mkdir(),
            lambda: os.setxattr(mount / "hello.txt", "user.x", b"1"),
            lambda: (mount / "hello.txt").chmod(0o600),
            lambda: os.truncate(mount / "hello.txt", 0),
            lambda: os.rename(mount / "hello.txt", mount / "other"),
            lambda: os.link(mount / "hello.txt", mount / "other"),
            lambda: os.symlink("x", mount / "other"),
            lambda: os.utime(mount / "hello.txt"),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                attempt()
        assert (mount / ".mystfuse/image").stat().st_size == len((mount / ".mystfuse/image").read_bytes())


def test_names_too_long_and_not_directories_give_the_kernels_errnos(mount: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        os.stat(mount / ("n" * 256))
    with pytest.raises(NotADirectoryError):
        os.stat(mount / "hello.txt/below")
    with pytest.raises(FileNotFoundError):
        os.stat(mount / "sub/missing")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(mount / "hello.txt", "user.missing")


def test_a_directory_that_was_once_large_still_lists(tmp_path: Path) -> None:
    """EXT2 never shrinks a directory: most of its blocks are empty after its names are removed."""
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-N", "30000", "-O", "^dir_index", image, "40M")
    with kernel_mount(image, tmp_path / "kernel", "rw") as kernel:
        for number in range(20_000):
            (kernel / f"a-rather-long-name-for-a-file-{number:06}").touch()
        for number in range(10, 19_990):
            (kernel / f"a-rather-long-name-for-a-file-{number:06}").unlink()
        expected = sorted(os.listdir(kernel))
        assert len(expected) == 21 and kernel.stat().st_size > 800_000
    with mounted(image, tmp_path / "mount", "--insecure") as mountpoint:
        assert sorted(os.listdir(mountpoint)) == expected
        assert all((mountpoint / name).exists() for name in expected)
        assert not (mountpoint / "a-rather-long-name-for-a-file-000500").exists()

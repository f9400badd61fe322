"""``mystfuse extract``: the copy equals a mount's contents, and a failure leaves nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import USER, run
from tests.support.ext2_editor import kernel_mount, make_image
from tests.support.extraction import COMPARE, COPY, FAILED, INTEGRITY, NOT_TRUSTED, archive, assert_same, refused


def extract(image: Path, *arguments: str | Path) -> None:
    result = in_process("extract", image, *arguments)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert result.stderr.splitlines() == [f"mystfuse: warning: {image} is trusted by nobody but itself"]


def test_a_copy_is_what_a_mount_shows(rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    extract(rich_image, "/", tmp_path / "copy")
    for name in ("empty", "sub", "link", "fifo", "hello.txt"):
        assert (tmp_path / "copy" / name).lstat().st_atime_ns == (rich_mount / name).lstat().st_atime_ns
    assert_same(rich_mount, tmp_path / "copy")
    assert os.listdir(tmp_path) == ["copy"]
    # Holes stay holes, and names of one file stay one file.
    assert (tmp_path / "copy/holes").stat().st_blocks * 512 < 100_000
    assert (tmp_path / "copy/closed/inner/again").samefile(tmp_path / "copy/hello.txt")
    assert (tmp_path / "copy/sub/hard-null").samefile(tmp_path / "copy/null")
    run("cp", "-a", rich_mount, tmp_path / "cp")
    assert_same(tmp_path / "cp", tmp_path / "copy")


@pytest.mark.parametrize("path", ["sub", "/link", "hello.txt", "null", "closed", "./sub/../sub/deep/"])
def test_a_part_of_an_image(path: str, rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    extract(rich_image, path, tmp_path / "ours/copy")
    run("cp", "-a", rich_mount / path.strip("/"), tmp_path / "theirs/copy")
    for name in ("ours", "theirs"):
        os.utime(tmp_path / name, (0, 0))
    # Names outside the copied part do not count.
    assert_same(tmp_path / "theirs", tmp_path / "ours", ",st_nlink")
    assert os.listdir(tmp_path / "ours") == ["copy"]


def test_times_have_nanoseconds(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-I", "256")
    with kernel_mount(image, tmp_path / "kernel", "rw") as mount:
        (mount / "directory").mkdir()
        (mount / "file").touch()
        (mount / "link").symlink_to("file")
        times = {"file": 1_600_000_000_123_456_789, "link": -1_500_000_000, "directory": 5_000_000_000_000_000_001}
        for name, time_ns in times.items():
            os.utime(mount / name, ns=(time_ns + 7, time_ns), follow_symlinks=False)
    assert in_process("extract", "--insecure", image, "/", tmp_path / "copy").returncode == 0
    for name, time_ns in times.items():
        status = (tmp_path / "copy" / name).lstat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (time_ns + 7, time_ns)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    command = ["tar", "-x", "--warning=no-timestamp", "-C", str(unpacked)]
    subprocess.run(command, input=archive(image, "--insecure"), timeout=60, check=True)
    assert {name: (unpacked / name).lstat().st_mtime_ns for name in times} == times


def test_what_the_destinations_directory_hands_down_is_not_in_the_image(
    rich_image: Path, rich_mount: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    run("setfacl", "-d", "-m", "u:4321:rwx", target)
    extract(rich_image, "sub", target / "copy")
    extract(rich_image, "empty", target / "file")
    assert_same(rich_mount / "sub", target / "copy", ",st_nlink")
    assert run("getfacl", "-cn", target / "file").stdout.split() == ["user::rw-", "group::r--", "other::r--"]


def test_an_ordinary_user_gets_what_he_may_have(
    rich_image: Path, rich_mount: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, target = open_tmp_path / "image", open_tmp_path / "target"
    run("cp", rich_image, image)
    target.mkdir()
    os.chown(target, USER, USER)
    result = run(*ordinary_user, "extract", image, "/", target / "copy", check=False)
    assert result.returncode == 0, result.stderr
    warning = result.stderr.splitlines()[-1]
    for omitted in ("device (3)", "security.capability (1)", "trusted.secret (1)", "trusted.of-link (1)"):
        assert omitted in warning
    assert os.listdir(target) == ["copy"]
    copy = target / "copy"
    assert not (copy / "null").exists() and not (copy / "sub/hard-null").exists()
    assert stat.S_ISFIFO((copy / "fifo").stat().st_mode)
    for path in (copy, copy / "setuid", copy / "link"):
        assert path.lstat().st_uid == USER
    assert stat.S_IMODE((copy / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE((copy / "sticky").stat().st_mode) == 0o1777
    assert stat.S_IMODE((copy / "closed").stat().st_mode) == 0o500
    assert (copy / "closed/inner/again").samefile(copy / "hello.txt")
    for path in (copy / "null", copy / "disk", copy / "sub/hard-null"):
        assert not os.path.lexists(path)
    result = run(sys.executable, COMPARE, rich_mount, copy, f"{COPY},st_uid,st_gid,st_rdev", check=False)
    expected = ("null: ", "disk: ", "sub/hard-null: ", "setuid: st_mode", "sticky: st_mode", "capable: xattrs",
                "sub: xattrs", "link: xattrs", ".: names", "sub: names")  # fmt: skip
    for line in result.stdout.splitlines()[:-1]:
        assert line.startswith(expected) or ": st_size:" in line, line


def test_the_destination_must_not_exist(rich_image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "directory", "dangling", "directory/", "."):
        assert "already exists" in refused(FAILED, "extract", rich_image, "/sub", f"{tmp_path}/{name}")
    assert "there is no directory" in refused(FAILED, "extract", rich_image, "/sub", tmp_path / "no/such")
    assert "/nope: No such file" in refused(FAILED, "extract", rich_image, "/nope", tmp_path / "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "directory", "file"]


@pytest.mark.parametrize("command", ["extract", "tar"])
def test_a_damaged_block_leaves_nothing(command: str, rich_image: Path, tmp_path: Path) -> None:
    data = bytearray(rich_image.read_bytes())
    data[data.index(b"longest name\n")] ^= 1
    image = tmp_path / "damaged"
    image.write_bytes(data)
    line = refused(INTEGRITY, command, image, "/", *([tmp_path / "copy"] if command == "extract" else []))
    assert "damaged: " in line and ": verity: data block" in line
    assert os.listdir(tmp_path) == ["damaged"]


def test_an_untrusted_image(rich_image: Path, tmp_path: Path) -> None:
    wrong = "--roothash=" + "0" * 64
    for command in (("ls",), ("tar",), ("cat", "/empty"), ("extract", "/", str(tmp_path / "copy"))):
        refused(NOT_TRUSTED, command[0], wrong, rich_image, *command[1:])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(rich_image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk)
    try:
        assert "No space left" in refused(FAILED, "extract", rich_image, "/", disk / "copy")
        assert os.listdir(disk) == []
    finally:
        run("umount", disk)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_extraction_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(6):
        with (source / f"file-{index}").open("wb") as file:
            file.write(os.urandom(20 << 20))
    image = make_image(tmp_path / "image", size="140M", tree=source)
    run("rm", "-r", source)
    target = tmp_path / "target"
    target.mkdir()
    command = [sys.executable, "-m", "mystfuse", "extract", "--insecure", image, "/", target / "copy"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in target.glob(".copy.*.tmp/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    assert not (target / "copy").exists()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.splitlines()[-1]) == (FAILED, "mystfuse: interrupted")
    assert os.listdir(target) == []

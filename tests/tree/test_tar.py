"""``mystfuse tar``: the unpacked archive equals a mount's contents, and the archive is the same every time."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.extraction import USAGE, archive, assert_same


def test_an_archive_unpacks_to_what_a_mount_shows(rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    data = archive(rich_image)
    assert len(data) % 10240 == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack = ["tar", "-x", "--xattrs", "--xattrs-include=*", "--acls", "-p", "--numeric-owner",
              "--warning=no-timestamp", "-C", str(copy)]  # fmt: skip
    result = subprocess.run(unpack, input=data, capture_output=True, timeout=60, check=True)
    assert result.stderr == b""
    os.mknod(copy / "socket", stat.S_IFSOCK | 0o700)
    times = rich_mount.lstat()
    os.utime(copy / "socket", ns=((rich_mount / "socket").lstat().st_mtime_ns,) * 2)
    os.utime(copy, ns=(times.st_mtime_ns,) * 2)
    assert_same(rich_mount, copy)
    assert (copy / "closed/inner/again").samefile(copy / "hello.txt")


def test_an_archive_is_the_same_every_time_and_sorted(rich_image: Path, rich_mount: Path) -> None:
    data = archive(rich_image)
    assert hashlib.sha256(archive(rich_image, "/")).digest() == hashlib.sha256(data).digest()
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        names = members.getnames()
        assert members.getmember("./sub").pax_headers["SCHILY.xattr.user.a%3Db%25c"] == ""
        assert members.getmember("./empty").mtime == -5
    assert names[0] == "." and len(names) == len(set(names))
    assert [name for name in names if name.count("/") == 1] == sorted(name for name in names if name.count("/") == 1)
    assert "./sub/deep/data.bin" in names and "./" + "n" * 255 in names
    with tarfile.open(fileobj=io.BytesIO(archive(rich_image, "sub/deep/data.bin"))) as members:
        assert members.getnames() == ["data.bin"]
        content = members.extractfile("data.bin")
        assert content is not None and content.read() == (rich_mount / "sub/deep/data.bin").read_bytes()


def test_an_archive_says_what_is_not_in_it(rich_image: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mystfuse", "tar", rich_image], capture_output=True, timeout=60, check=True
    )
    assert result.stderr.splitlines()[-1] == b"mystfuse: warning: not in the archive: socket (1)"


def test_an_archive_does_not_go_to_a_terminal(rich_image: Path) -> None:
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "mystfuse", "tar", rich_image]
        result = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert result.returncode == USAGE
    assert b"terminal" in result.stderr

"""Programs that ask a file system for more than reading and writing, in a mount."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.mounts import HAS_FAST_PATH, assert_clean, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no holes")

MEBIBYTE = 1 << 20
KINDS = {
    "ext2": ("-t", "ext2"),
    "ext4": ("-t", "ext4"),
    "everything": ("-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,orphan_file,large_dir,metadata_csum_seed"),
}
"""mke2fs's arguments."""


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def mountpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("programs")
    run("mke2fs", "-q", "-F", *request.param, "-I", "256", directory / "image", "256M")
    with mounted(directory / "image", directory / "mount", "--insecure", "--overlay-limit=200M") as mountpoint:
        yield mountpoint


@pytest.fixture
def place(mountpoint: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory in the mount; afterwards e2fsck finds nothing."""
    directory = mountpoint / tmp_path.name
    directory.mkdir()
    yield directory
    assert_clean(mountpoint, tmp_path)
    run("rm", "-r", directory)


def make_sparse(path: Path) -> Path:
    """64 MiB with three MiB of data."""
    noise = random.Random(3)
    with path.open("wb") as file:
        for offset in (0, 17 * MEBIBYTE + 4096, 40 * MEBIBYTE):
            file.seek(offset)
            file.write(noise.randbytes(MEBIBYTE))
        file.truncate(64 * MEBIBYTE)
    return path


def assert_sparse(path: Path, source: Path, most: int = 4 * MEBIBYTE) -> None:
    assert path.stat().st_blocks * 512 <= most
    run("cmp", path, source)


@pytest.mark.parametrize("how", ["--sparse=always", "--sparse=auto", "--sparse=never"])
def test_cp(place: Path, tmp_path: Path, how: str) -> None:
    source = make_sparse(tmp_path / "source")
    run("cp", how, source, place / "in")
    run("cp", how, place / "in", place / "within")
    run("cp", how, place / "within", tmp_path / "out")
    most = 70 * MEBIBYTE if how == "--sparse=never" else 4 * MEBIBYTE
    for path in (place / "in", place / "within", tmp_path / "out"):
        assert_sparse(path, source, most)


def test_tar(place: Path, tmp_path: Path) -> None:
    source = make_sparse(place / "source")
    run("tar", "-C", place, "-Scf", tmp_path / "archive", "source")
    assert (tmp_path / "archive").stat().st_size < 4 * MEBIBYTE
    (place / "out").mkdir()
    run("tar", "-C", place / "out", "-Sxf", tmp_path / "archive")
    assert_sparse(place / "out/source", source)


def test_rsync(place: Path, tmp_path: Path) -> None:
    source = place / "from"
    source.mkdir()
    make_sparse(source / "sparse")
    (source / "file").write_bytes(b"content")
    os.link(source / "file", source / "hard")
    os.setxattr(source / "file", "user.u", b"value")
    run("setfacl", "-m", "u:1234:rw", source / "file")
    run("rsync", "-aHAXS", f"{source}/", place / "to")
    assert_sparse(place / "to/sparse", source / "sparse")
    assert (place / "to/file").stat().st_ino == (place / "to/hard").stat().st_ino
    assert os.getxattr(place / "to/file", "user.u") == b"value"
    facls = [run("getfacl", "-c", directory / "file", cwd=place).stdout for directory in (source, place / "to")]
    assert facls[0] == facls[1]
    assert run("rsync", "-aHAXS", "--itemize-changes", f"{source}/", place / "to").stdout == ""


def test_qemu_img(place: Path, tmp_path: Path) -> None:
    source = make_sparse(tmp_path / "source")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, place / "disk.qcow2")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place / "disk.qcow2", place / "disk.raw")
    assert_sparse(place / "disk.raw", source)
    run("qemu-img", "check", place / "disk.qcow2")
    run("qemu-img", "compare", place / "disk.qcow2", place / "disk.raw")
    run("qemu-img", "create", "-f", "raw", "-o", "preallocation=falloc", place / "allocated", "8M")
    assert (place / "allocated").stat().st_blocks >= 8 * MEBIBYTE // 512


def test_fallocate(place: Path, tmp_path: Path) -> None:
    """fallocate(1): digging the holes of a file, and more."""
    path = place / "file"
    path.write_bytes(bytes(8 * MEBIBYTE) + b"end")
    run("fallocate", "--dig-holes", path)
    assert path.stat().st_blocks <= 64 and path.read_bytes() == bytes(8 * MEBIBYTE) + b"end"
    run("fallocate", "-l", "2M", path)
    run("fallocate", "--zero-range", "-o", "8M", "-l", "1K", path)
    assert path.read_bytes()[8 * MEBIBYTE :] == bytes(1024)


def test_git(place: Path) -> None:
    def git(*words: str) -> str:
        return run(
            "git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=m", *words, cwd=place
        ).stdout

    git("init", "-q")
    noise = random.Random(4)
    for number in range(15):
        for name in range(20):
            (place / f"file-{name}").write_bytes(noise.randbytes(2000) + b"\n%d" % number)
        git("add", ".")
        git("commit", "-qm", f"{number}")
    git("gc", "-q", "--aggressive", "--prune=now")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == "" and len(git("log", "--oneline").splitlines()) == 15
    git("clone", "-q", ".", "clone")
    assert run("git", "-C", place / "clone", "rev-parse", "HEAD").stdout == git("rev-parse", "HEAD")


WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"pragma journal_mode={sys.argv[2]}")
database.execute("create table if not exists t (number integer primary key, text)")
number = database.execute("select coalesce(max(number), 0) from t").fetchone()[0]
while True:
    database.execute("begin")
    for _ in range(10):
        number += 1
        database.execute("insert into t values (?, ?)", (number, "x" * (number % 3000)))
    database.execute("commit")
    print(number, flush=True)
"""


@pytest.mark.parametrize("journal", ["delete", "wal", "truncate", "persist"])
def test_sqlite_whose_writer_is_killed(place: Path, journal: str) -> None:
    """What was committed is there, and nothing half done."""
    database = place / "database"
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, database, journal], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        committed = int(process.stdout.readline())
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        committed = max([committed, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait()
        reader = sqlite3.connect(database)
        assert reader.execute("pragma integrity_check").fetchone() == ("ok",)
        count, last = reader.execute("select count(*), max(number) from t").fetchone()
        assert count == last >= committed and count % 10 == 0
        reader.close()

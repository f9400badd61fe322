"""Requests that pyfuse3 does not have, compared with the kernel's ext2: files without names (O_TMPFILE), birth times,
copying within the mount, whiteouts, the umask beside default ACLs, locks."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import random
import re
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import (
    AT_FDCWD,
    DEFAULT_ACL,
    NO_ID,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Pair,
    acl,
    as_user,
    libc,
    opened,
    outcome,
    pair_of,
    rename,
    state,
)
from tests.support.mounts import HAS_FAST_PATH, assert_clean, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no such requests")

AT_SYMLINK_FOLLOW = 0x400
NAMELESS = os.O_TMPFILE | os.O_RDWR


@pytest.fixture(scope="module", params=("128", "256"))
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """By the size of inodes."""
    image = tmp_path_factory.mktemp("empty") / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-I", request.param, image, "64M")
    with pair_of(image, 1024) as pair:
        for side in pair.sides():
            side.chmod(0o777)
        yield pair


@pytest.fixture
def clean(empty: Pair, tmp_path: Path) -> Iterator[Pair]:
    """The mounts; afterwards e2fsck finds nothing in the present state of ours."""
    yield empty
    assert_clean(empty.ours, tmp_path)


def link(handle: int, path: Path) -> None:
    """linkat(2) of an open file, as an ordinary user may do it."""
    libc("linkat", AT_FDCWD, f"/proc/self/fd/{handle}".encode(), AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW)


# Files without names


def test_a_nameless_file_gets_a_name(clean: Pair, tmp_path: Path) -> None:
    for side in clean.sides():
        with opened(side, NAMELESS, 0o640) as handle:
            assert os.fstat(handle).st_nlink == 0
            os.write(handle, b"content" * 1000)
            if side is clean.ours:
                assert_clean(side, tmp_path)
            link(handle, side / "named")
            link(handle, side / "named-twice")
            assert outcome(partial(link, handle, side / "named")) == "EEXIST"
            os.pwrite(handle, b"later", 7000)
        assert (side / "named").read_bytes() == b"content" * 1000 + b"later"
    for side in clean.sides():
        assert (side / "named").stat().st_nlink == 2
        (side / "named").unlink()
        (side / "named-twice").unlink()


def test_a_nameless_file_goes_with_its_handle(clean: Pair) -> None:
    before = os.statvfs(clean.ours)
    with opened(clean.ours, NAMELESS) as handle:
        os.write(handle, bytes(range(256)) * 4000)
        assert os.statvfs(clean.ours).f_bfree < before.f_bfree - 900
    deadline = time.monotonic() + 5
    while (after := os.statvfs(clean.ours)) and (after.f_bfree, after.f_ffree) != (before.f_bfree, before.f_ffree):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_answers_about_nameless_files(clean: Pair) -> None:
    answers = []
    for side in clean.sides():
        found = []
        (side / "directory").mkdir()
        with opened(side / "directory", NAMELESS | os.O_EXCL) as handle:
            found.append(outcome(partial(link, handle, side / "excluded")))
            os.rmdir(side / "directory")
        with opened(side, NAMELESS, 0o4711) as handle:
            found += [oct(os.fstat(handle).st_mode), str(os.fstat(handle).st_size)]
            link(handle, side / "linked")
            os.unlink(side / "linked")
            found.append(outcome(partial(link, handle, side / "again")))
            found.append(os.readlink(f"/proc/self/fd/{handle}").split("/")[-1].split(" ")[-1])
        with as_user(), opened(side, NAMELESS) as handle:
            link(handle, side / "users")
        status = (side / "users").stat()
        found.append((status.st_uid, status.st_gid, oct(status.st_mode)))
        (side / "users").unlink()
        answers.append(found)
    assert answers[1] == answers[0]


def test_a_program_that_replaces_a_file_by_a_nameless_one(clean: Pair) -> None:
    """As systemd and others do: write, link under a passing name, rename."""
    for number in range(50):
        with opened(clean.ours, NAMELESS) as handle:
            os.write(handle, b"%d" % number)
            link(handle, clean.ours / ".passing")
        os.rename(clean.ours / ".passing", clean.ours / "target")
        assert (clean.ours / "target").read_bytes() == b"%d" % number
    (clean.ours / "target").unlink()


def test_a_full_disk_has_no_inode_for_a_nameless_file(tmp_path: Path) -> None:
    run("mke2fs", "-q", "-F", "-t", "ext2", "-N", "16", tmp_path / "image", "4M")
    with mounted(tmp_path / "image", tmp_path / "mount", "--insecure") as mountpoint:
        with ExitStack() as handles, pytest.raises(OSError, match="No space"):
            for _ in range(20):
                handles.enter_context(opened(mountpoint, NAMELESS))
        assert_clean(mountpoint, tmp_path)


# Birth times


def birth(path: Path) -> str:
    return run("stat", "-c", "%w", path).stdout.strip()


def test_birth_times(empty: Pair) -> None:
    for side in empty.sides():
        (side / "born").write_bytes(b"x")
        (side / "born-directory").mkdir()
        os.mkfifo(side / "born-fifo")
        os.symlink("x", side / "born-link")
        time.sleep(0.02)
        (side / "born").write_bytes(b"changed")
        os.utime(side / "born", (1, 1))
    for name in ("born", "born-directory", "born-fifo", "born-link", "lost+found", "."):
        kernel, ours = birth(empty.kernel / name), birth(empty.ours / name)
        assert (ours == "-") == (kernel == "-")
        if name in ("lost+found", "."):
            assert ours == kernel
        elif kernel != "-":
            assert ours[:10] == kernel[:10] and birth(empty.ours / name) == ours
    for name in ("status.json", "metrics", "image", "."):
        assert birth(empty.ours / ".mystfuse" / name) == "-"


# Copying


def test_copies_within_the_mount(clean: Pair) -> None:
    data = random.Random(5).randbytes(3_000_000)
    for side in clean.sides():
        (side / "source").write_bytes(data)
        (side / "target").write_bytes(b"old" * 1000)
        with opened(side / "source", os.O_RDONLY) as source, opened(side / "target", os.O_WRONLY) as target:
            found: list[object] = []
            for offset, length, into in (
                (0, 100, 0),
                (1, 5000, 1500),
                (123_457, 2_000_000, 9_999),
                (2_999_000, 5000, 7),
            ):
                position = 0
                while position < length:
                    count = os.copy_file_range(source, target, length - position, offset + position, into + position)
                    if not count:
                        break
                    position += count
                found.append(position)
            found.append(outcome(partial(os.copy_file_range, source, target, 10, 3_000_000, 0)))
            assert found == [100, 5000, 2_000_000, 1000, "0"]
        with opened(side / "source", os.O_RDWR) as handle:
            assert outcome(partial(os.copy_file_range, handle, handle, 100, 0, 50)) == "EINVAL"
            assert os.copy_file_range(handle, handle, 1000, 0, 1_000_000) == 1000
    for name in ("source", "target"):
        assert (clean.ours / name).read_bytes() == (clean.kernel / name).read_bytes()
        (clean.ours / name).unlink()


def test_a_copy_does_not_leave_the_daemon(empty: Pair) -> None:
    """No READ or WRITE is asked for: the file is twice as large as what one request copies."""
    (empty.ours / "large").write_bytes(bytes(range(256)) * 80_000)

    def counts() -> tuple[int, int]:
        found = run("cat", empty.ours / ".mystfuse/status.json").stdout
        numbers = [
            sum(map(int, re.findall(rf'"{kind}": (\d+)', found))) for kind in ("write", "copy_file_range(?:_64)?")
        ]
        return numbers[0], numbers[1]

    writes, copies = counts()
    with (
        opened(empty.ours / "large", os.O_RDONLY) as source,
        opened(empty.ours / "copy", os.O_CREAT | os.O_WRONLY) as target,
    ):
        left = 20_480_000
        while left:
            left -= os.copy_file_range(source, target, left)
    assert counts()[0] == writes and counts()[1] >= copies + 2
    digests = [hashlib.sha256((empty.ours / name).read_bytes()).digest() for name in ("large", "copy")]
    assert digests[0] == digests[1]
    (empty.ours / "large").unlink()
    (empty.ours / "copy").unlink()


def test_a_copy_takes_privileges(empty: Pair) -> None:
    for side in empty.sides():
        (side / "source").write_bytes(b"content")
        (side / "program").write_bytes(b"old")
        (side / "program").chmod(0o6777)
        with as_user(), opened(side / "source", os.O_RDONLY) as source, opened(side / "program", os.O_WRONLY) as target:
            os.copy_file_range(source, target, 7)
    kernel, ours = (stat.S_IMODE((side / "program").stat().st_mode) for side in empty.sides())
    assert oct(ours) == oct(kernel) == "0o777"


@pytest.mark.parametrize("mode", [3, 0])
def test_fallocate_takes_privileges(empty: Pair, mode: int) -> None:
    """As far as the kernel's ext2 has it (mode 3, a hole)."""
    for side in empty.sides():
        (side / "program").write_bytes(b"old")
        os.chown(side / "program", 0, 0)
        (side / "program").chmod(0o6777)
        with as_user(), opened(side / "program", os.O_WRONLY) as handle:
            outcome(partial(libc, "fallocate", handle, mode, ctypes.c_long(0), ctypes.c_long(2)))
    kernel, ours = (oct(stat.S_IMODE((side / "program").stat().st_mode)) for side in empty.sides())
    assert ours == "0o777" and (mode == 0 or kernel == ours)


# Whiteouts


def test_whiteouts(clean: Pair) -> None:
    for side in clean.sides():
        for name in ("white", "in"):
            (side / name).mkdir()
        (side / "white/file").write_bytes(b"file")
        (side / "white/other").write_bytes(b"other")
        (side / "white/sub").mkdir()
        rename(side / "white/file", side / "white/new", RENAME_WHITEOUT)
        rename(side / "white/other", side / "in/other", RENAME_WHITEOUT | RENAME_NOREPLACE)
        rename(side / "white/sub", side / "in/sub", RENAME_WHITEOUT)
        rename(side / "white/new", side / "in/other", RENAME_WHITEOUT)
        for name in ("file", "other", "sub", "new"):
            status = (side / "white" / name).lstat()
            assert (stat.S_ISCHR(status.st_mode), status.st_rdev, stat.S_IMODE(status.st_mode)) == (True, 0, 0)
        assert (side / "in/other").read_bytes() == b"file"
        (side / "white/file").unlink()
        (side / "white/file").mkdir()
    for name in ("white", "in"):
        assert state(clean.ours / name) == state(clean.kernel / name)


# The umask and default ACLs


def test_a_default_acl_replaces_the_umask(empty: Pair) -> None:
    entries = acl((0x01, 7, NO_ID), (0x02, 6, 1234), (0x04, 7, NO_ID), (0x10, 7, NO_ID), (0x20, 7, NO_ID))
    before = os.umask(0o077)
    try:
        for side in empty.sides():
            (side / "plain").mkdir(0o777)
            (side / "defaulted").mkdir(0o777)
            os.setxattr(side / "defaulted", DEFAULT_ACL, entries)
            for name in ("plain", "defaulted"):
                with opened(side / name / "file", os.O_CREAT | os.O_WRONLY, 0o666):
                    pass
                (side / name / "directory").mkdir(0o755)
                os.mknod(side / name / "fifo", stat.S_IFIFO | 0o660)
                os.symlink("x", side / name / "link")
                with opened(side / name, NAMELESS, 0o666) as handle:
                    link(handle, side / name / "nameless")
    finally:
        os.umask(before)
    for name in ("plain", "defaulted"):
        assert state(empty.ours / name) == state(empty.kernel / name)
        for entry in ("file", "directory", "nameless"):
            kernel, ours = (run("getfacl", "-c", "-p", side / name / entry).stdout for side in empty.sides())
            assert ours == kernel


# Locks, which the kernel keeps by itself


@contextmanager
def locker(path: Path, how: str) -> Iterator[None]:
    """Another process that holds a lock."""
    program = f"import fcntl,sys; f=open({str(path)!r},'r+'); {how}; print(1,flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        yield
    finally:
        process.communicate()


def test_locks_of_processes(empty: Pair) -> None:
    for side in empty.sides():
        path = side / "locked"
        path.write_bytes(bytes(100))
        with opened(path, os.O_RDWR) as handle:
            with locker(path, "fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)"):
                assert outcome(partial(fcntl.lockf, handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 18)) == "EAGAIN"
                assert outcome(partial(fcntl.lockf, handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)) == "done"
                wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 20, 1, 0)
                kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(handle, fcntl.F_GETLK, wanted))
                assert (kind, start, length) == (fcntl.F_WRLCK, 20, 10) and pid > 0
            with locker(path, "fcntl.flock(f, fcntl.LOCK_SH)"):
                assert outcome(partial(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN"
                assert outcome(partial(fcntl.flock, handle, fcntl.LOCK_SH | fcntl.LOCK_NB)) == "done"


def test_syncfs(empty: Pair) -> None:
    with opened(empty.ours, os.O_RDONLY) as handle:
        libc("syncfs", handle)

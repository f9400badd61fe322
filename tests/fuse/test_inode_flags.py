"""Inode flags and generations by ioctl(2), each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, run
from tests.support.errno_pairs import Pair, as_user, open_directory, opened, outcome, pair_of, touch_open
from tests.support.mounts import HAS_FAST_PATH, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no ioctl")

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
GETVERSION, SETVERSION = 0x80087601, 0x40087602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP, NOATIME, SYNC, TOPDIR, DIRSYNC = 0x10, 0x20, 0x40, 0x80, 0x08, 0x20000, 0x10000


def get(path: Path, number: int = GETFLAGS, size: int = 8) -> bytes:
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
        return fcntl.ioctl(handle, number, bytes(size))


def flags_of(path: Path) -> str:
    return hex(struct.unpack_from("<I", get(path))[0])


def set_flags(path: Path, flags: int, number: int = SETFLAGS) -> None:
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
        fcntl.ioctl(handle, number, struct.pack("<Q", flags))


def set_xflags(path: Path, xflags: int, extent_size: int = 0, project: int = 0) -> None:
    with opened(path, os.O_RDONLY) as handle:
        fcntl.ioctl(handle, FSSETXATTR, struct.pack("<IIIII8x", xflags, extent_size, 0, project, 0))


@pytest.fixture(scope="module", params=("128", "256"))
def files(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A file, a directory and a FIFO on both sides."""
    with open_directory() as directory:
        image = directory / "image"
        run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-I", request.param, image, "8M")
        with pair_of(image, 1024) as pair:
            for side in pair.sides():
                (side / "directory").mkdir()
                (side / "file").write_bytes(b"content")
                os.mkfifo(side / "fifo")
                (side / "mine").write_bytes(b"content")
                os.chown(side / "mine", USER, GROUP)
            yield pair


def both(pair: Pair, call: Callable[[Path], object]) -> str:
    """The answer, which must be the same on both sides."""
    kernel, ours = (outcome(partial(call, side)) for side in pair.sides())
    assert ours == kernel
    return ours


@pytest.mark.parametrize("name", ["file", "directory", "fifo"])
def test_every_single_flag(files: Pair, name: str) -> None:
    for bit in range(32):
        if bit in (14, 22):
            # EXT2_JOURNAL_DATA_FL: root may not set it here, for want of CAP_SYS_RESOURCE, and it would change nothing.
            # 0x400000 had a meaning in ext4 before Linux 5.7; the kernel still keeps it, we do not.
            continue
        both(files, lambda side, bit=bit: set_flags(side / name, 1 << bit))
        both(files, lambda side: flags_of(side / name))
        both(files, lambda side: set_flags(side / name, 0))
        both(files, lambda side: flags_of(side / name))


def test_flags_together(files: Pair) -> None:
    assert both(files, lambda side: set_flags(side / "file", IMMUTABLE | NODUMP)) == "done"
    assert both(files, lambda side: set_flags(side / "file", IMMUTABLE | NOATIME)) == "EPERM"
    assert both(files, lambda side: set_flags(side / "file", NOATIME)) == "done"
    assert both(files, lambda side: set_flags(side / "file", SYNC | APPEND)) == "done"
    assert both(files, lambda side: touch_open(side / "file", os.O_WRONLY)) == "EPERM"
    assert both(files, lambda side: flags_of(side / "file")) == hex(SYNC | APPEND)
    assert both(files, lambda side: set_flags(side / "file", 0)) == "done"


def test_flags_change_ctime_alone(files: Pair) -> None:
    for side in files.sides():
        before = (side / "file").stat()
        # Small inodes have whole seconds.
        time.sleep(1.1)
        set_flags(side / "file", NODUMP)
        after = (side / "file").stat()
        assert after.st_ctime_ns > before.st_ctime_ns and after.st_mtime_ns == before.st_mtime_ns
        set_flags(side / "file", 0)


def test_new_files_inherit_flags(files: Pair) -> None:
    for side in files.sides():
        set_flags(side / "directory", 0x220380CF)
        (side / "directory/file").touch()
        (side / "directory/sub").mkdir()
        os.mkfifo(side / "directory/fifo")
        set_flags(side / "directory", 0)
    for name in ("file", "sub", "fifo"):
        both(files, lambda side, name=name: flags_of(side / "directory" / name))


def test_who_may_set_flags(files: Pair) -> None:
    def as_somebody(call: Callable[[Path], object]) -> str:
        answers = []
        for side in files.sides():
            with as_user():
                answers.append(outcome(partial(call, side)))
        assert answers[0] == answers[1]
        return answers[0]

    assert as_somebody(lambda side: set_flags(side / "file", NODUMP)) == "EPERM"
    assert as_somebody(lambda side: set_flags(side / "mine", NODUMP)) == "done"
    assert as_somebody(lambda side: set_flags(side / "mine", IMMUTABLE)) == "EPERM"
    assert as_somebody(lambda side: flags_of(side / "file")) == "0x0"


def test_generations(files: Pair) -> None:
    assert both(files, lambda side: len(get(side / "file", GETVERSION))) == "8"
    generation = get(files.ours / "file", GETVERSION)
    # The kernel would take it for another inode.
    assert outcome(partial(set_flags, files.ours / "file", 7, SETVERSION)) == "ENOTTY"
    assert get(files.ours / "file", GETVERSION) == generation != bytes(8)


def test_xflags(files: Pair) -> None:
    for xflags in (0, 0x08, 0x10, 0x20, 0x40, 0x80, 0xF8, 0x80 | 0x40):
        both(files, lambda side, xflags=xflags: set_xflags(side / "file", xflags))
        both(files, lambda side: get(side / "file", FSGETXATTR, 28))
        both(files, lambda side: flags_of(side / "file"))
        both(files, lambda side: set_xflags(side / "file", 0))
    for xflags, extent_size, project in ((1, 0, 0), (2, 0, 0), (0x100, 0, 0), (0, 4096, 0), (0, 0, 5)):
        both(files, lambda side, given=(xflags, extent_size, project): set_xflags(side / "file", *given))


def test_other_commands(files: Pair) -> None:
    for number in (0x12345678, 0xC0086601, 0x5401):
        assert both(files, lambda side, number=number: get(side / "file", number)) == "ENOTTY"
    for name in ("image", "status.json", "metrics", "."):
        with opened(files.ours / ".mystfuse" / name, os.O_RDONLY) as handle:
            assert outcome(partial(fcntl.ioctl, handle, GETFLAGS, bytes(8))) == "ENOTTY"


def test_programs(files: Pair) -> None:
    """lsattr(1) and chattr(1)."""
    for side in files.sides():
        run("chattr", "+dA", side / "file")
    assert both(files, lambda side: run("lsattr", "file", cwd=side).stdout)
    assert both(files, lambda side: sorted(run("lsattr", "-R", ".", cwd=side).stdout.split()))
    (generation,) = struct.unpack_from("<I", get(files.ours / "file", GETVERSION))
    assert run("lsattr", "-v", "file", cwd=files.ours).stdout.split()[0] == str(generation)


def test_a_read_only_mount(tmp_path: Path) -> None:
    run("mke2fs", "-q", "-F", "-t", "ext2", tmp_path / "image", "4M")
    with mounted(tmp_path / "image", tmp_path / "mount", "--insecure", "--read-only") as mountpoint:
        assert flags_of(mountpoint) == "0x0"
        assert outcome(partial(set_flags, mountpoint, NODUMP)) == "EROFS"

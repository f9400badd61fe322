"""Errnos of calls on open files, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EFBIG,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOTDIR,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    ETXTBSY,
)
from functools import partial
from pathlib import Path

import pytest

from tests.support.errno_pairs import (
    AT_FDCWD,
    CREATE,
    DONE,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    Case,
    Pair,
    cases,
    check_in,
    handle_of,
    in_turn,
    ioctl,
    libc,
    mknod,
    open_literally,
    opened,
    outcome,
    spell,
    touch_open,
    without_fast_path,
    write_at,
)
from tests.support.mounts import HAS_FAST_PATH

F_OFD_SETLK = 37
MAX_FILE_SIZES = {1024: 17_247_252_480, 4096: 2_196_873_666_560}
"""By block size: the largest file that the block map reaches; for 4 KiB blocks that i_blocks can count, indirect blocks
included."""
MAX_LOGICAL = (1 << 32) - 1
"""Blocks of a file with extents."""


pytestmark = pytest.mark.usefixtures("no_umask")


def fallocate(path: Path, mode: int) -> None:
    with opened(path, os.O_RDWR) as handle:
        libc("fallocate", handle, mode, ctypes.c_long(0), ctypes.c_long(100_000))


def write_mapped(path: Path) -> bytes:
    with opened(path, os.O_RDWR) as handle, mmap.mmap(handle, 0) as mapped:
        mapped[:3] = b"CON"
        mapped.flush()
        return os.pread(handle, 100, 0)


def lock_twice(path: Path, lock: Callable[[int], object]) -> object:
    with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        lock(first)
        return lock(second)


def flock(kind: int, handle: int) -> None:
    fcntl.flock(handle, kind | fcntl.LOCK_NB)


def ofd_lock(handle: int) -> None:
    fcntl.fcntl(handle, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def posix_lock(path: Path) -> str:
    """The answer to a child that asks for a lock that its parent holds."""
    with opened(path, os.O_RDWR) as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child = os.fork()
        if not child:
            os._exit(0 if outcome(lambda: fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN" else 1)
        return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def while_running(directory: Path, call: Callable[[Path], object]) -> object:
    """Call with the path of a program that is running."""
    program = directory / "program"
    shutil.copy(Path("/bin/sleep").resolve(), program)
    # No process may have the program open for writing when it starts.
    with subprocess.Popen([program, "60"]) as process:
        try:
            return call(program)
        finally:
            process.kill()


def run_while_writing(directory: Path) -> None:
    program = directory / "program"
    shutil.copy(Path("/bin/true").resolve(), program)
    with opened(program, os.O_WRONLY):
        subprocess.run([program], check=True)


def seek(path: Path, offset: int, whence: int) -> int:
    with opened(path, os.O_RDONLY) as handle:
        return os.lseek(handle, offset, whence)


def seek_in_sparse(path: Path, whence: int) -> int:
    """Seek from the beginning of a file that is a hole except for its last byte."""
    os.truncate(path, 0)
    write_at(path, b"x", 200_000)
    with opened(path, os.O_RDONLY) as handle:
        os.fsync(handle)
        return os.lseek(handle, 0, whence)


def copy_range(source: Path, target: Path) -> int:
    with opened(source, os.O_RDONLY) as reader, opened(target, os.O_WRONLY) as writer:
        return os.copy_file_range(reader, writer, 100)


def name_to_handle(path: Path) -> int:
    handle = ctypes.create_string_buffer(struct.pack("I", 128), 136)
    return libc("name_to_handle_at", AT_FDCWD, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0)


HANDLES = cases(
    Case("open what is missing", lambda d: touch_open(d / "missing", os.O_RDONLY), ENOENT),
    Case("open a dangling link", lambda d: touch_open(d / "dangling", os.O_RDONLY), ENOENT),
    Case("open a loop", lambda d: touch_open(d / "loop", os.O_RDONLY), ELOOP),
    Case("open below a loop", lambda d: touch_open(d / "loop/x", os.O_RDONLY), ELOOP),
    Case("open below a file", lambda d: touch_open(d / "file/x", os.O_RDONLY), ENOTDIR),
    Case("open a link without following", lambda d: touch_open(d / "link", os.O_RDONLY | os.O_NOFOLLOW), ELOOP),
    Case("create a link without following", lambda d: touch_open(d / "link", CREATE | os.O_NOFOLLOW), ELOOP),
    Case("open a file as a directory", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_DIRECTORY), ENOTDIR),
    Case("open a file with a slash", lambda d: open_literally(f"{d}/file/", os.O_RDONLY), ENOTDIR),
    Case("open a directory to write", lambda d: touch_open(d / "full", os.O_WRONLY), EISDIR),
    Case("open a directory to read and write", lambda d: touch_open(d / "full", os.O_RDWR), EISDIR),
    Case("open a directory to truncate", lambda d: touch_open(d / "full", os.O_RDONLY | os.O_TRUNC), EISDIR),
    Case("open a fifo to write", lambda d: touch_open(d / "fifo", os.O_WRONLY | os.O_NONBLOCK), ENXIO),
    Case("open a fifo to read", lambda d: touch_open(d / "fifo", os.O_RDONLY | os.O_NONBLOCK)),
    Case(
        "open a socket",
        in_turn(mknod("socket", stat.S_IFSOCK), lambda d: touch_open(d / "socket", os.O_RDONLY)),
        ENXIO,
    ),
    Case(
        "open a device without a driver",
        in_turn(mknod("device", stat.S_IFCHR), lambda d: touch_open(d / "device", os.O_RDONLY)),
        ENXIO,
    ),
    Case("write to a handle for reading", lambda d: write_at(d / "file", b"x", flags=os.O_RDONLY), EBADF),
    Case("write nothing", lambda d: write_at(d / "file", b""), "0"),
    Case("write behind the end", lambda d: write_at(d / "file", b"xy", 5000), "2"),
    Case("read from a handle for writing", handle_of("file", os.O_WRONLY, lambda h: os.read(h, 1)), EBADF),
    Case("read a directory", handle_of("full", os.O_RDONLY, lambda h: os.read(h, 1)), EISDIR),
    Case("write to a directory", handle_of("full", os.O_RDONLY, lambda h: os.write(h, b"x")), EBADF),
    Case("write at a negative offset", lambda d: write_at(d / "file", b"x", -1), EINVAL),
    Case("write at the last offset", lambda d: write_at(d / "file", b"x", 2**63 - 2), EFBIG),
    Case("write past the last offset", lambda d: write_at(d / "file", b"xy", 2**63 - 1), EINVAL),
    Case("truncate", lambda d: os.truncate(d / "file", 3)),
    Case("truncate to a negative size", lambda d: os.truncate(d / "file", -1), EINVAL),
    Case("truncate to the last size", lambda d: os.truncate(d / "file", 2**63 - 1), EFBIG),
    Case("truncate a directory", lambda d: os.truncate(d / "full", 0), EISDIR),
    Case("truncate a fifo", lambda d: os.truncate(d / "fifo", 0), EINVAL),
    Case("truncate what is missing", lambda d: os.truncate(d / "missing", 0), ENOENT),
    Case("truncate a handle", handle_of("file", os.O_WRONLY, lambda h: os.ftruncate(h, 3))),
    Case("truncate a handle for reading", handle_of("file", os.O_RDONLY, lambda h: os.ftruncate(h, 3)), EINVAL),
    Case("truncate on opening for reading", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_TRUNC)),
    Case("sync a handle for reading", handle_of("file", os.O_RDONLY, os.fsync)),
    Case("sync a directory", handle_of("full", os.O_RDONLY, os.fsync)),
    Case("sync a fifo", handle_of("fifo", os.O_RDWR, os.fsync), EINVAL),
    Case("readlink of a file", lambda d: os.readlink(d / "file"), EINVAL),
    Case("readlink of a directory", lambda d: os.readlink(d / "full"), EINVAL),
    Case("list a file", lambda d: os.listdir(d / "file"), ENOTDIR),
    Case("list what is missing", lambda d: os.listdir(d / "missing"), ENOENT),
    Case("chmod what is missing", lambda d: os.chmod(d / "missing", 0o600), ENOENT),
    Case("chmod a dangling link", lambda d: os.chmod(d / "dangling", 0o600), ENOENT),
    Case("chown what is missing", lambda d: os.chown(d / "missing", 1, 1), ENOENT),
    Case("chown a link", lambda d: os.chown(d / "dangling", 1, 1, follow_symlinks=False)),
    Case("utime of what is missing", lambda d: os.utime(d / "missing"), ENOENT),
    Case("utime of a link", lambda d: os.utime(d / "dangling", (1, 1), follow_symlinks=False)),
    Case("write a running program", lambda d: while_running(d, lambda p: touch_open(p, os.O_WRONLY)), ETXTBSY),
    Case("truncate a running program", lambda d: while_running(d, lambda p: os.truncate(p, 0)), ETXTBSY),
    Case("unlink a running program", lambda d: while_running(d, os.unlink)),
    Case("run what is being written", run_while_writing, ETXTBSY),
    Case("run what is not executable", lambda d: subprocess.run([d / "file"], check=False), EACCES),
    Case("run a directory", lambda d: subprocess.run([d / "full"], check=False), EACCES),
    Case(
        "allocate",
        lambda d: fallocate(d / "file", 0),
        EOPNOTSUPP,
        ours=DONE if HAS_FAST_PATH else EOPNOTSUPP,
        on_ext4=(DONE, DONE if HAS_FAST_PATH else EOPNOTSUPP),
    ),
    Case(
        "allocate behind the end",
        lambda d: fallocate(d / "file", 1),
        EOPNOTSUPP,
        on_ext4=(DONE, DONE if HAS_FAST_PATH else EOPNOTSUPP),
    ),
    Case("punch a hole", lambda d: fallocate(d / "file", 3), DONE, ours=without_fast_path(EOPNOTSUPP)),
    Case(
        "zero a range",
        lambda d: fallocate(d / "file", 16),
        EOPNOTSUPP,
        ours=DONE if HAS_FAST_PATH else EOPNOTSUPP,
        on_ext4=(DONE, DONE if HAS_FAST_PATH else EOPNOTSUPP),
    ),
    Case("get flags", lambda d: ioctl(d / "file", FS_IOC_GETFLAGS), DONE, ours=without_fast_path(ENOTTY)),
    # On ext4, none of the flags means no extents: chattr -e.
    Case(
        "set flags",
        lambda d: ioctl(d / "file", FS_IOC_SETFLAGS),
        DONE,
        ours=without_fast_path(ENOTTY),
        on_ext4=(DONE, EOPNOTSUPP if HAS_FAST_PATH else ENOTTY),
    ),
    Case("unknown ioctl", lambda d: ioctl(d / "file", 0x12345678), ENOTTY),
    Case("unknown ioctl of a directory", lambda d: ioctl(d / "full", 0x12345678), ENOTTY),
    Case("seek data", lambda d: seek(d / "file", 0, os.SEEK_DATA), "0"),
    Case("seek a hole", lambda d: seek(d / "file", 0, os.SEEK_HOLE), "8"),
    Case("seek data at the end", lambda d: seek(d / "file", 8, os.SEEK_DATA), ENXIO),
    Case("seek a hole at the end", lambda d: seek(d / "file", 8, os.SEEK_HOLE), ENXIO),
    Case("seek data behind the end", lambda d: seek(d / "file", 100, os.SEEK_DATA), ENXIO),
    Case(
        "seek a hole in a sparse file",
        lambda d: seek_in_sparse(d / "file", os.SEEK_HOLE),
        "0",
        ours=without_fast_path("200001"),
    ),
    Case("seek before the beginning", lambda d: seek(d / "file", -1, os.SEEK_SET), EINVAL),
    Case("lock the locked", lambda d: lock_twice(d / "file", partial(flock, fcntl.LOCK_EX)), EAGAIN),
    Case("lock for sharing", lambda d: lock_twice(d / "file", partial(flock, fcntl.LOCK_SH))),
    Case("lock the locked range", lambda d: lock_twice(d / "file", ofd_lock), EAGAIN),
    Case("lock another process's range", lambda d: posix_lock(d / "file"), "0"),
    Case("write a mapping", lambda d: write_mapped(d / "file"), "b'CONtent\\n'"),
    Case(
        "write directly, unaligned",
        lambda d: write_at(d / "file", b"x", 1, os.O_WRONLY | os.O_DIRECT),
        EINVAL,
        ours="1",
    ),
    Case("lease", handle_of("other", os.O_RDONLY, lambda h: fcntl.fcntl(h, fcntl.F_SETLEASE, fcntl.F_RDLCK)), "0"),
    Case("copy a range", lambda d: copy_range(d / "file", d / "other"), "8"),
    Case("name to handle", lambda d: name_to_handle(d / "file"), "0"),
    Case(
        "map a directory",
        handle_of("full", os.O_RDONLY, lambda h: mmap.mmap(h, 1, mmap.MAP_SHARED, 1)),
        "ENODEV",
    ),
)


@pytest.mark.parametrize("case", HANDLES)
def test_handles(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


def append_at(path: Path, size: int) -> int:
    """Append to a file of this size."""
    os.truncate(path, size)
    return write_at(path, b"x", 0, os.O_WRONLY | os.O_APPEND)


AT_THE_LIMIT: dict[str, tuple[Callable[[Path, int], object], int | str]] = {
    "truncate": (lambda path, limit: os.truncate(path, limit), DONE),
    "truncate past it": (lambda path, limit: os.truncate(path, limit + 1), EFBIG),
    "truncate far past it": (lambda path, limit: os.truncate(path, 2 * limit), EFBIG),
    "write the last byte": (lambda path, limit: write_at(path, b"x", limit - 1), "1"),
    "write two of three bytes": (lambda path, limit: write_at(path, b"xyz", limit - 2), "2"),
    "write half of it": (lambda path, limit: write_at(path, bytes(100_000), limit - 50_000), "50000"),
    "write behind it": (lambda path, limit: write_at(path, b"x", limit), EFBIG),
    "write nothing behind it": (lambda path, limit: write_at(path, b"", limit), "0"),
    "write far behind it": (lambda path, limit: write_at(path, b"x", limit + 5000), EFBIG),
    "append": (lambda path, limit: append_at(path, limit), EFBIG),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_largest_file(pair: Pair, name: str) -> None:
    call, expected = AT_THE_LIMIT[name]
    limit = MAX_FILE_SIZES[pair.block_size] if pair.kind == "ext2" else MAX_LOGICAL * pair.block_size
    for root in pair.sides():
        path = root / f"largest-{name}"
        path.touch()
        assert outcome(partial(call, path, limit)) == spell(expected)
        path.unlink()

"""Errnos of creating, removing and renaming, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    EXDEV,
)
from pathlib import Path

import pytest

from tests.support.errno_pairs import (
    CREATE,
    DONE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    SPECIAL_TYPES,
    Case,
    Pair,
    cases,
    check_in,
    in_turn,
    mknod,
    open_literally,
    opened,
    rename,
    touch_open,
    without_fast_path,
)

LONG = "n" * 256
"""A name that is one byte too long."""


pytestmark = pytest.mark.usefixtures("no_umask")


def in_removed_directory(call: Callable[[int], object]) -> Callable[[Path], object]:
    """Call with a handle of a directory that has been removed."""

    def in_removed(directory: Path) -> object:
        with opened(directory / "directory", os.O_RDONLY | os.O_DIRECTORY) as handle:
            (directory / "directory").rmdir()
            return call(handle)

    return in_removed


def in_removed_cwd(call: Callable[[Path], object]) -> Callable[[Path], object]:
    """Call where the current directory has been removed."""

    def in_removed(directory: Path) -> object:
        with opened(Path("."), os.O_RDONLY | os.O_DIRECTORY) as before:
            os.chdir(directory / "directory")
            try:
                os.rmdir(directory / "directory")
                return call(directory)
            finally:
                os.fchdir(before)

    return in_removed


CREATING = cases(
    Case("create exclusively", lambda d: touch_open(d / "new", CREATE | os.O_EXCL)),
    Case("create exclusively over a file", lambda d: touch_open(d / "file", CREATE | os.O_EXCL), EEXIST),
    Case("create exclusively over a directory", lambda d: touch_open(d / "full", CREATE | os.O_EXCL), EEXIST),
    Case("create exclusively over a link", lambda d: touch_open(d / "dangling", CREATE | os.O_EXCL), EEXIST),
    Case("create through a dangling link", lambda d: touch_open(d / "dangling", CREATE)),
    Case("create over a directory", lambda d: touch_open(d / "full", CREATE), EISDIR),
    Case("create in a missing directory", lambda d: touch_open(d / "missing/new", CREATE), ENOENT),
    Case("create in a file", lambda d: touch_open(d / "file/new", CREATE), ENOTDIR),
    Case("create with a slash", lambda d: open_literally(f"{d}/new/", CREATE), EISDIR),
    Case("create and be a directory", lambda d: touch_open(d / "new", CREATE | os.O_DIRECTORY), EINVAL),
    Case("create through a loop", lambda d: touch_open(d / "loop", CREATE), ELOOP),
    Case("mkdir", lambda d: os.mkdir(d / "new")),
    Case("mkdir over a file", lambda d: os.mkdir(d / "file"), EEXIST),
    Case("mkdir over a directory", lambda d: os.mkdir(d / "full"), EEXIST),
    Case("mkdir over a link", lambda d: os.mkdir(d / "dangling"), EEXIST),
    Case("mkdir in a missing directory", lambda d: os.mkdir(d / "missing/new"), ENOENT),
    Case("mkdir in a file", lambda d: os.mkdir(d / "file/new"), ENOTDIR),
    Case("mkdir with a slash", lambda d: os.mkdir(f"{d}/new/")),
    Case("mkdir of dot", lambda d: os.mkdir(f"{d}/."), EEXIST),
    Case("mkdir of dotdot", lambda d: os.mkdir(f"{d}/.."), EEXIST),
    Case("mkdir without a name", lambda d: os.mkdir(""), ENOENT),
    *(
        case
        for name, kind in SPECIAL_TYPES.items()
        for case in (
            Case(f"mknod of a {name}", mknod("new", kind)),
            Case(f"mknod of a {name} over a file", mknod("file", kind), EEXIST),
            Case(f"mknod of a {name} over a directory", mknod("full", kind), EEXIST),
            Case(f"mknod of a {name} in a file", mknod("file/new", kind), ENOTDIR),
            Case(f"mknod of a {name} nowhere", mknod("missing/new", kind), ENOENT),
            Case(f"mknod of a {name} with a slash", mknod("new/", kind), ENOENT),
        )
    ),
    Case("mknod of a directory", lambda d: os.mknod(d / "new", stat.S_IFDIR | 0o755), EPERM),
    Case("mknod of a link", lambda d: os.mknod(d / "new", stat.S_IFLNK | 0o777), EINVAL),
    Case("mknod of no type there is", lambda d: os.mknod(d / "new", 0o070_000), EINVAL),
    Case("symlink", lambda d: os.symlink("target", d / "new")),
    Case("symlink over a file", lambda d: os.symlink("target", d / "file"), EEXIST),
    Case("symlink over a directory", lambda d: os.symlink("target", d / "full"), EEXIST),
    Case("symlink over a link", lambda d: os.symlink("target", d / "dangling"), EEXIST),
    Case("symlink in a missing directory", lambda d: os.symlink("target", d / "missing/new"), ENOENT),
    Case("symlink in a file", lambda d: os.symlink("target", d / "file/new"), ENOTDIR),
    Case("symlink to nothing", lambda d: os.symlink("", d / "new"), ENOENT),
    Case("symlink with a slash", lambda d: os.symlink("target", f"{d}/new/"), ENOENT),
    Case("link", lambda d: os.link(d / "file", d / "new")),
    Case("link to a symlink", lambda d: os.link(d / "link", d / "new", follow_symlinks=False)),
    Case("link to a fifo", lambda d: os.link(d / "fifo", d / "new")),
    Case("link to a directory", lambda d: os.link(d / "full", d / "new"), EPERM),
    Case("link over a file", lambda d: os.link(d / "file", d / "other"), EEXIST),
    Case("link over itself", lambda d: os.link(d / "file", d / "file"), EEXIST),
    Case("link over a directory", lambda d: os.link(d / "file", d / "full"), EEXIST),
    Case("link to what is missing", lambda d: os.link(d / "missing", d / "new"), ENOENT),
    Case("link in a missing directory", lambda d: os.link(d / "file", d / "missing/new"), ENOENT),
    Case("link in a file", lambda d: os.link(d / "file", d / "other/new"), ENOTDIR),
    Case("link to another file system", lambda d: os.link(d / "file", d.parents[1] / "new"), EXDEV),
    Case("link from another file system", lambda d: os.link(d.parents[1] / "copy", d / "new"), EXDEV),
    Case("temporary file", lambda d: touch_open(d, os.O_TMPFILE | os.O_RDWR), DONE, ours=without_fast_path(EOPNOTSUPP)),
)

REMOVING = cases(
    Case("unlink", lambda d: os.unlink(d / "file")),
    Case("unlink a fifo", lambda d: os.unlink(d / "fifo")),
    Case("unlink a link", lambda d: os.unlink(d / "dangling")),
    Case("unlink a directory", lambda d: os.unlink(d / "full"), EISDIR),
    Case("unlink what is missing", lambda d: os.unlink(d / "missing"), ENOENT),
    Case("unlink in a file", lambda d: os.unlink(d / "file/x"), ENOTDIR),
    Case("unlink with a slash", lambda d: os.unlink(f"{d}/file/"), ENOTDIR),
    Case("unlink dot", lambda d: os.unlink(f"{d}/."), EISDIR),
    Case("rmdir", lambda d: os.rmdir(d / "directory")),
    Case("rmdir a file", lambda d: os.rmdir(d / "file"), ENOTDIR),
    Case(
        "rmdir a link to a directory",
        in_turn(lambda d: os.symlink("full", d / "l"), lambda d: os.rmdir(d / "l")),
        ENOTDIR,
    ),
    Case("rmdir what is not empty", lambda d: os.rmdir(d / "full"), ENOTEMPTY),
    Case("rmdir what is missing", lambda d: os.rmdir(d / "missing"), ENOENT),
    Case("rmdir in a file", lambda d: os.rmdir(d / "file/x"), ENOTDIR),
    Case("rmdir dot", lambda d: os.rmdir(f"{d}/directory/."), EINVAL),
    Case("rmdir dotdot", lambda d: os.rmdir(f"{d}/directory/.."), ENOTEMPTY),
    Case("rmdir the mountpoint", lambda d: os.rmdir(d.parent), EBUSY),
    Case("rmdir a current directory", in_removed_cwd(lambda d: None)),
    Case("rmdir the removed", in_removed_cwd(lambda d: os.rmdir(d / "directory")), ENOENT),
    Case("name of a removed current directory", in_removed_cwd(lambda d: os.getcwd()), ENOENT),
    Case("create in a removed current directory", in_removed_cwd(lambda d: touch_open("new", CREATE)), ENOENT),
    Case("stat of a removed current directory", in_removed_cwd(lambda d: os.stat(".").st_nlink), "0"),
    Case("parent of a removed current directory", in_removed_cwd(lambda d: os.stat("..").st_nlink), "3"),
    Case("list the removed", in_removed_directory(os.listdir), "[]"),
    Case("create in the removed", in_removed_directory(lambda h: os.open("new", CREATE, dir_fd=h)), ENOENT),
    Case("look up in the removed", in_removed_directory(lambda h: os.stat("new", dir_fd=h)), ENOENT),
    Case("mkdir in the removed", in_removed_directory(lambda h: os.mkdir("new", dir_fd=h)), ENOENT),
    Case("mkfifo in the removed", in_removed_directory(lambda h: os.mkfifo("new", dir_fd=h)), ENOENT),
    Case("symlink in the removed", in_removed_directory(lambda h: os.symlink("to", "new", dir_fd=h)), ENOENT),
    Case("chmod of the removed", in_removed_directory(lambda h: os.fchmod(h, 0o700))),
    Case("setxattr of the removed", in_removed_directory(lambda h: os.setxattr(h, "user.a", b"value"))),
    Case(
        "link into the removed",
        lambda d: in_removed_directory(lambda h: os.link(d / "file", "new", dst_dir_fd=h))(d),
        ENOENT,
    ),
    Case(
        "rename into the removed",
        lambda d: in_removed_directory(lambda h: os.rename(d / "file", "new", dst_dir_fd=h))(d),
        ENOENT,
    ),
)

RENAMING = cases(
    Case("rename", lambda d: rename(d / "file", d / "new")),
    Case("rename to itself", lambda d: rename(d / "file", d / "file")),
    Case(
        "rename to another link", in_turn(lambda d: os.link(d / "file", d / "l"), lambda d: rename(d / "file", d / "l"))
    ),
    Case("rename a file over a file", lambda d: rename(d / "file", d / "other")),
    Case("rename a file over a link", lambda d: rename(d / "file", d / "dangling")),
    Case("rename a file over a directory", lambda d: rename(d / "file", d / "directory"), EISDIR),
    Case("rename a directory", lambda d: rename(d / "full", d / "directory/new")),
    Case("rename a directory over an empty one", lambda d: rename(d / "full", d / "directory")),
    Case("rename a directory over a file", lambda d: rename(d / "directory", d / "file"), ENOTDIR),
    Case("rename a directory over a link", lambda d: rename(d / "directory", d / "link"), ENOTDIR),
    Case("rename a directory over a full one", lambda d: rename(d / "directory", d / "full"), ENOTEMPTY),
    Case("rename a directory over its parent", lambda d: rename(d / "full/sub", d / "full"), ENOTEMPTY),
    Case("rename a file over its parent", lambda d: rename(d / "full/x", d / "full"), ENOTEMPTY),
    Case("rename a directory into itself", lambda d: rename(d / "full", d / "full/new"), EINVAL),
    Case("rename a directory deep into itself", lambda d: rename(d / "full", d / "full/sub/deep/new"), EINVAL),
    Case("rename a directory over its child", lambda d: rename(d / "full", d / "full/sub"), EINVAL),
    Case("rename a directory to a slash", lambda d: rename(d / "directory", f"{d}/new/")),
    Case("rename a file to a slash", lambda d: rename(d / "file", f"{d}/new/"), ENOTDIR),
    Case("rename a file with a slash", lambda d: rename(f"{d}/file/", d / "new"), ENOTDIR),
    Case("rename what is missing", lambda d: rename(d / "missing", d / "new"), ENOENT),
    Case("rename what is missing over a file", lambda d: rename(d / "missing", d / "file"), ENOENT),
    Case("rename from a missing directory", lambda d: rename(d / "missing/x", d / "new"), ENOENT),
    Case("rename into a missing directory", lambda d: rename(d / "file", d / "missing/new"), ENOENT),
    Case("rename from a file", lambda d: rename(d / "file/x", d / "new"), ENOTDIR),
    Case("rename into a file", lambda d: rename(d / "other", d / "file/new"), ENOTDIR),
    Case("rename dot", lambda d: rename(f"{d}/directory/.", d / "new"), EBUSY),
    Case("rename dotdot", lambda d: rename(f"{d}/directory/..", d / "new"), EBUSY),
    Case("rename over dot", lambda d: rename(d / "directory", f"{d}/full/."), EBUSY),
    Case("rename the mountpoint", lambda d: rename(d.parent, d.parents[1] / "new"), EBUSY),
    Case("rename over the mountpoint", lambda d: rename(d, d.parent), EXDEV),
    Case("rename to another file system", lambda d: rename(d / "file", d.parents[1] / "new"), EXDEV),
    Case("rename from another file system", lambda d: rename(d.parents[1] / "copy", d / "new"), EXDEV),
    Case("rename and replace nothing", lambda d: rename(d / "file", d / "new", RENAME_NOREPLACE)),
    Case("replace nothing, but a file", lambda d: rename(d / "file", d / "other", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, but itself", lambda d: rename(d / "file", d / "file", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, but a directory", lambda d: rename(d / "full", d / "directory", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, from nothing", lambda d: rename(d / "missing", d / "new", RENAME_NOREPLACE), ENOENT),
    Case("replace nothing into itself", lambda d: rename(d / "full", d / "full/new", RENAME_NOREPLACE), EINVAL),
    Case("exchange files", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE)),
    Case("exchange a file and a directory", lambda d: rename(d / "file", d / "full", RENAME_EXCHANGE)),
    Case("exchange across directories", lambda d: rename(d / "directory", d / "full/x", RENAME_EXCHANGE)),
    Case("exchange with what is missing", lambda d: rename(d / "file", d / "missing", RENAME_EXCHANGE), ENOENT),
    Case("exchange what is missing", lambda d: rename(d / "missing", d / "file", RENAME_EXCHANGE), ENOENT),
    Case("exchange with its child", lambda d: rename(d / "full", d / "full/sub", RENAME_EXCHANGE), EINVAL),
    Case("exchange with its grandparent", lambda d: rename(d / "full/sub/deep", d / "full", RENAME_EXCHANGE), EINVAL),
    Case("exchange with itself", lambda d: rename(d / "file", d / "file", RENAME_EXCHANGE)),
    Case("both flags", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL),
    Case("whiteout", lambda d: rename(d / "file", d / "new", RENAME_WHITEOUT)),
    Case("whiteout over a file", lambda d: rename(d / "file", d / "other", RENAME_WHITEOUT)),
    Case("whiteout and exchange", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE | RENAME_WHITEOUT), EINVAL),
    Case("unknown flag", lambda d: rename(d / "file", d / "new", 32), EINVAL),
)


@pytest.mark.parametrize("case", CREATING + REMOVING + RENAMING)
def test_names(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


LONG_NAMES: dict[str, Callable[[Path], object]] = {
    "stat": lambda d: os.lstat(d / LONG),
    "access": lambda d: os.stat(d / LONG),
    "open": lambda d: touch_open(d / LONG, os.O_RDONLY),
    "create": lambda d: touch_open(d / LONG, CREATE),
    "create exclusively": lambda d: touch_open(d / LONG, CREATE | os.O_EXCL),
    "chdir": lambda d: os.chdir(d / LONG),
    "list": lambda d: os.listdir(d / LONG),
    "mkdir": lambda d: os.mkdir(d / LONG),
    "mkfifo": lambda d: os.mkfifo(d / LONG),
    "mknod": lambda d: os.mknod(d / LONG, stat.S_IFCHR),
    "symlink": lambda d: os.symlink("target", d / LONG),
    "readlink": lambda d: os.readlink(d / LONG),
    "link from": lambda d: os.link(d / LONG, d / "new"),
    "link to": lambda d: os.link(d / "file", d / LONG),
    "unlink": lambda d: os.unlink(d / LONG),
    "rmdir": lambda d: os.rmdir(d / LONG),
    "rename from": lambda d: rename(d / LONG, d / "new"),
    "rename to": lambda d: rename(d / "file", d / LONG),
    "rename a directory to": lambda d: rename(d / "full", d / LONG),
    "exchange from": lambda d: rename(d / LONG, d / "file", RENAME_EXCHANGE),
    "exchange to": lambda d: rename(d / "file", d / LONG, RENAME_EXCHANGE),
    "replace nothing": lambda d: rename(d / "file", d / LONG, RENAME_NOREPLACE),
    "truncate": lambda d: os.truncate(d / LONG, 1),
    "chmod": lambda d: os.chmod(d / LONG, 0o600),
    "chown": lambda d: os.chown(d / LONG, 1, 1),
    "utime": lambda d: os.utime(d / LONG),
    "setxattr": lambda d: os.setxattr(d / LONG, "user.a", b""),
    "getxattr": lambda d: os.getxattr(d / LONG, "user.a"),
    "listxattr": lambda d: os.listxattr(d / LONG),
    "removexattr": lambda d: os.removexattr(d / LONG, "user.a"),
    "through": lambda d: os.mkdir(d / LONG / "new"),
    "path": lambda d: os.mkdir(f"{d}/" + "./" * 2048 + "new"),
}


@pytest.mark.parametrize("case", cases(*(Case(name, call, ENAMETOOLONG) for name, call in LONG_NAMES.items())))
def test_names_too_long(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


def test_longest_names(pair: Pair) -> None:
    """One byte shorter, and every call works."""
    longest, other = "n" * 255, "m" * 255
    for number, call in enumerate(
        (
            lambda d: touch_open(d / longest, CREATE | os.O_EXCL),
            lambda d: os.mkdir(d / longest),
            lambda d: os.mkfifo(d / longest),
            lambda d: os.symlink("target", d / longest),
            lambda d: os.link(d / "file", d / longest),
            in_turn(
                lambda d: rename(d / "file", d / longest),
                lambda d: rename(d / longest, d / other),
                lambda d: os.unlink(d / other),
            ),
        )
    ):
        check_in("tree", pair, Case(str(number), call))


@pytest.mark.parametrize("length", (59, 60, 61, 1022, 1023, 1024, 1025, 4094, 4095, 4096, 5000))
def test_symlink_targets(pair: Pair, length: int) -> None:
    """The terminating NUL must fit the block as well, and the path."""
    expected: int | str = DONE if length < min(pair.block_size, 4096) else ENAMETOOLONG
    check_in("tree", pair, Case("", lambda d: os.symlink("t" * length, d / "new"), expected))

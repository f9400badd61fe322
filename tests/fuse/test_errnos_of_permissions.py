"""Errnos that depend on the caller, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from errno import (
    EACCES,
    EEXIST,
    ENODATA,
    ENOENT,
    EPERM,
)
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER
from tests.support.errno_pairs import (
    ACCESS_ACL,
    CREATE,
    DEFAULT_ACL,
    NAMED_ACL,
    OTHER,
    RENAME_EXCHANGE,
    SUPPLEMENTARY,
    Case,
    Pair,
    as_user,
    cases,
    check_in,
    opened,
    rename,
    touch_open,
    write_at,
)
from tests.support.mounts import HAS_FAST_PATH

CAPABILITY = struct.pack("<5I", 0x02000000, 1, 0, 0, 0)


pytestmark = pytest.mark.usefixtures("no_umask")


def mode_after(call: Callable[[Path], object], name: str) -> Callable[[Path], str]:
    """The mode of a file after a call."""

    def act(directory: Path) -> str:
        call(directory / name)
        return oct(stat.S_IMODE((directory / name).lstat().st_mode))

    return act


def group_of_new(directory: Path, mode: int) -> str:
    """The mode and whether the group is that of the directory, for a file made in a set-group-ID directory."""
    touch_open(directory / "setgid/new", CREATE, mode)
    status = (directory / "setgid/new").lstat()
    return f"{oct(status.st_mode)} {status.st_gid}"


def truncate_on_opening(path: Path) -> None:
    touch_open(path, os.O_WRONLY | os.O_TRUNC)


def write_byte(path: Path) -> None:
    write_at(path, b"x")


def write_as_user(path: Path) -> None:
    """Write as an ordinary user to a handle that root opened."""
    with opened(path, os.O_WRONLY) as handle, as_user():
        os.write(handle, b"x")


USERS = cases(
    Case("read", lambda d: (d / "root").read_bytes(), "b'content\\n'"),
    Case("open to write", lambda d: touch_open(d / "root", os.O_WRONLY), EACCES),
    Case("open to create", lambda d: touch_open(d / "root", CREATE), EACCES),
    Case("create exclusively", lambda d: touch_open(d / "root", CREATE | os.O_EXCL), EEXIST),
    Case("truncate on opening", lambda d: touch_open(d / "root", os.O_RDONLY | os.O_TRUNC), EACCES),
    Case("truncate", lambda d: os.truncate(d / "root", 0), EACCES),
    Case("write what all may write", lambda d: write_at(d / "writable", b"x"), "1"),
    Case("truncate what all may write", lambda d: os.truncate(d / "writable", 0)),
    Case("open a secret", lambda d: touch_open(d / "secret", os.O_RDONLY), EACCES),
    Case("list a closed directory", lambda d: os.listdir(d / "closed"), EACCES),
    Case("stat in a closed directory", lambda d: os.stat(d / "closed/file"), EACCES),
    Case("stat nothing in a closed directory", lambda d: os.stat(d / "closed/missing"), EACCES),
    Case("open in a closed directory", lambda d: touch_open(d / "closed/file", os.O_RDWR), EACCES),
    Case("chdir into a closed directory", lambda d: os.chdir(d / "closed"), EACCES),
    Case("create in a closed directory", lambda d: touch_open(d / "closed/new", CREATE), EACCES),
    Case("create", lambda d: touch_open(d / "roots/new", CREATE), EACCES),
    Case("mkdir", lambda d: os.mkdir(d / "roots/new"), EACCES),
    Case("mkdir over a file", lambda d: os.mkdir(d / "roots/file"), EEXIST),
    Case("mkfifo", lambda d: os.mkfifo(d / "roots/new"), EACCES),
    Case("symlink", lambda d: os.symlink("target", d / "roots/new"), EACCES),
    Case("link", lambda d: os.link(d / "mine", d / "roots/new"), EACCES),
    Case("unlink", lambda d: os.unlink(d / "roots/file"), EACCES),
    Case("unlink what is missing", lambda d: os.unlink(d / "roots/missing"), ENOENT),
    Case("rmdir", lambda d: os.rmdir(d / "roots/directory"), EACCES),
    Case("rename in", lambda d: rename(d / "roots/file", d / "roots/new"), EACCES),
    Case("rename out", lambda d: rename(d / "roots/file", d / "open/new"), EACCES),
    Case("rename into", lambda d: rename(d / "sticky/mine", d / "roots/new"), EACCES),
    Case("rename a directory out", lambda d: rename(d / "roots/directory", d / "open/new"), EACCES),
    Case("rename a directory of root", lambda d: rename(d / "sticky/others-directory", d / "open/new"), EPERM),
    Case("exchange", lambda d: rename(d / "sticky/mine", d / "roots/file", RENAME_EXCHANGE), EACCES),
    Case("create where all may", lambda d: touch_open(d / "open/new", CREATE)),
    Case("mkdir where all may", lambda d: os.mkdir(d / "open/new")),
    Case("mkfifo where all may", lambda d: os.mkfifo(d / "open/new")),
    Case("mknod of a socket", lambda d: os.mknod(d / "open/new", stat.S_IFSOCK | 0o644)),
    Case("mknod of a character device", lambda d: os.mknod(d / "open/new", stat.S_IFCHR | 0o644, 259), EPERM),
    Case("mknod of a block device", lambda d: os.mknod(d / "open/new", stat.S_IFBLK | 0o644, 259), EPERM),
    Case("link to what is another's", lambda d: os.link(d / "root", d / "open/new"), EPERM),
    Case("link to what is mine", lambda d: os.link(d / "mine", d / "open/new")),
    Case("chmod", lambda d: os.chmod(d / "root", 0o666), EPERM),
    Case("chmod what all may write", lambda d: os.chmod(d / "writable", 0o600), EPERM),
    Case("chmod in a closed directory", lambda d: os.chmod(d / "closed/file", 0o600), EACCES),
    Case("chmod mine", lambda d: os.chmod(d / "mine", 0o600)),
    Case("chown", lambda d: os.chown(d / "root", USER, -1), EPERM),
    Case("chown to the same", lambda d: os.chown(d / "root", 0, 0), EPERM),
    Case("chown mine to another", lambda d: os.chown(d / "mine", OTHER, -1), EPERM),
    Case("chown mine to me", lambda d: os.chown(d / "mine", USER, GROUP)),
    Case("chgrp mine to another group", lambda d: os.chown(d / "mine", -1, OTHER), EPERM),
    Case("chgrp mine to a group of mine", lambda d: os.chown(d / "mine", -1, SUPPLEMENTARY)),
    Case("chgrp to a group of mine", lambda d: os.chown(d / "root", -1, SUPPLEMENTARY), EPERM),
    Case("utime", lambda d: os.utime(d / "root", (1, 1)), EPERM),
    Case("utime of what all may write", lambda d: os.utime(d / "writable", (1, 1)), EPERM),
    Case("touch", lambda d: os.utime(d / "root"), EACCES),
    Case("touch what all may write", lambda d: os.utime(d / "writable")),
    Case("setxattr", lambda d: os.setxattr(d / "root", "user.a", b""), EACCES),
    Case("setxattr of what all may write", lambda d: os.setxattr(d / "writable", "user.a", b"")),
    Case("removexattr", lambda d: os.removexattr(d / "root", "user.u"), EACCES),
    Case("getxattr", lambda d: os.getxattr(d / "root", "user.u"), "b'value'"),
    Case("getxattr of a secret", lambda d: os.getxattr(d / "secret", "user.u"), EACCES),
    Case("listxattr of a secret", lambda d: os.listxattr(d / "secret"), "['user.u']"),
    Case("set trusted", lambda d: os.setxattr(d / "mine", "trusted.t", b""), EPERM),
    Case("get trusted", lambda d: os.getxattr(d / "root", "trusted.t"), ENODATA),
    Case("remove trusted", lambda d: os.removexattr(d / "root", "trusted.t"), EPERM),
    Case("list trusted", lambda d: os.listxattr(d / "root"), "['user.u']"),
    Case("set security", lambda d: os.setxattr(d / "mine", "security.s", b""), EPERM),
    Case("set a capability", lambda d: os.setxattr(d / "mine", "security.capability", CAPABILITY), EPERM),
    Case("setxattr of a sticky directory", lambda d: os.setxattr(d / "sticky", "user.a", b""), EPERM),
    Case("setxattr of an open directory", lambda d: os.setxattr(d / "open", "user.a", b"")),
    Case("set an ACL", lambda d: os.setxattr(d / "root", ACCESS_ACL, NAMED_ACL), EPERM),
    Case("set an ACL of what all may write", lambda d: os.setxattr(d / "writable", ACCESS_ACL, NAMED_ACL), EPERM),
    Case("set an ACL of mine", lambda d: os.setxattr(d / "mine", ACCESS_ACL, NAMED_ACL)),
    Case("set a default ACL", lambda d: os.setxattr(d / "open", DEFAULT_ACL, NAMED_ACL), EPERM),
    Case("remove an ACL", lambda d: os.removexattr(d / "root", ACCESS_ACL), EPERM),
    Case("sticky: create", lambda d: touch_open(d / "sticky/new", CREATE)),
    Case("sticky: unlink mine", lambda d: os.unlink(d / "sticky/mine")),
    Case("sticky: unlink another's", lambda d: os.unlink(d / "sticky/others"), EPERM),
    Case("sticky: rmdir another's", lambda d: os.rmdir(d / "sticky/others-directory"), EPERM),
    Case("sticky: rename mine", lambda d: rename(d / "sticky/mine", d / "sticky/new")),
    Case("sticky: rename another's", lambda d: rename(d / "sticky/others", d / "sticky/new"), EPERM),
    Case("sticky: rename over another's", lambda d: rename(d / "sticky/mine", d / "sticky/others"), EPERM),
    Case("sticky: exchange", lambda d: rename(d / "sticky/mine", d / "sticky/others", RENAME_EXCHANGE), EPERM),
    Case("sticky: write another's", lambda d: write_at(d / "sticky/others", b"x"), "1"),
    Case("chmod sets the group ID", mode_after(lambda p: p.chmod(0o2755), "mine"), "0o2755"),
    Case("chmod cannot set a foreign group ID", mode_after(lambda p: p.chmod(0o2755), "mine-of-roots-group"), "0o755"),
    Case("chmod cannot keep it", mode_after(lambda p: p.chmod(0o2600), "mine-setgid-of-roots-group"), "0o600"),
    Case("chmod sets the user ID", mode_after(lambda p: p.chmod(0o4755), "mine-of-roots-group"), "0o4755"),
    Case("chmod sets the sticky bit", mode_after(lambda p: p.chmod(0o1755), "mine"), "0o1755"),
    Case("chown takes the user ID", mode_after(lambda p: os.chown(p, -1, SUPPLEMENTARY), "mine-setid"), "0o777"),
    Case("chown to the same takes it", mode_after(lambda p: os.chown(p, USER, GROUP), "mine-setid"), "0o777"),
    Case("chown to -1 keeps it", mode_after(lambda p: os.chown(p, -1, -1), "mine-setid"), "0o777"),
    Case("write takes the user ID", mode_after(write_byte, "mine-setid"), "0o777"),
    Case("write takes root's user ID", mode_after(write_byte, "writable-setid"), "0o777"),
    Case("write takes a foreign group ID", mode_after(write_byte, "writable-setgid"), "0o666"),
    Case(
        "write takes a foreign group ID of mine",
        mode_after(write_byte, "mine-setgid-of-roots-group"),
        "0o666",
    ),
    Case("truncate takes the user ID", mode_after(lambda p: os.truncate(p, 0), "mine-setid"), "0o777"),
    Case("truncate takes root's user ID", mode_after(lambda p: os.truncate(p, 3), "writable-setid"), "0o777"),
    Case(
        "truncate takes a foreign group ID",
        mode_after(lambda p: os.truncate(p, 3), "writable-setgid"),
        "0o666",
    ),
    Case("opening takes the user ID", mode_after(truncate_on_opening, "mine-setid"), "0o777"),
    Case("opening takes a foreign group ID", mode_after(truncate_on_opening, "writable-setgid"), "0o666"),
    Case("opening keeps the user ID", mode_after(lambda p: touch_open(p, os.O_RDWR), "mine-setid"), "0o6777"),
    Case("setxattr keeps the user ID", mode_after(lambda p: os.setxattr(p, "user.a", b""), "mine-setid"), "0o6777"),
    Case(
        "an ACL takes a foreign group ID",
        mode_after(lambda p: os.setxattr(p, ACCESS_ACL, NAMED_ACL), "mine-setgid-of-roots-group"),
        "0o664",
    ),
    Case("create inherits the group", lambda d: group_of_new(d, 0o644), f"0o100644 {OTHER}"),
    Case("create loses the group ID", lambda d: group_of_new(d, 0o2755), f"0o100755 {OTHER}"),
    Case("create keeps the user ID", lambda d: group_of_new(d, 0o4755), f"0o104755 {OTHER}"),
    Case("create keeps the group ID without x", lambda d: group_of_new(d, 0o2644), f"0o102644 {OTHER}"),
    Case("mkdir inherits the group ID", mode_after(os.mkdir, "setgid/new"), "0o2777"),
)

ROOT = cases(
    Case("a user's write takes the user ID", mode_after(write_as_user, "writable-setid"), "0o777"),
    # pyfuse3 does not say that the writer may not keep it.
    Case(
        "a user's write takes a foreign group ID",
        mode_after(write_as_user, "writable-setgid"),
        "0o666",
        ours=None if HAS_FAST_PATH else "0o2666",
    ),
    Case("write keeps the user ID", mode_after(write_byte, "mine-setid"), "0o6777"),
    Case("truncate keeps the user ID", mode_after(lambda p: os.truncate(p, 0), "mine-setid"), "0o6777"),
    Case("opening keeps the user ID", mode_after(truncate_on_opening, "mine-setid"), "0o6777"),
    Case("chown takes the user ID", mode_after(lambda p: os.chown(p, 1, 1), "mine-setid"), "0o777"),
    Case("chown keeps the group ID", mode_after(lambda p: os.chown(p, 1, 1), "writable-setgid"), "0o2666"),
    Case("chown of a directory keeps it", mode_after(lambda p: os.chown(p, 1, 1), "setgid"), "0o2777"),
    Case("chmod sets any group ID", mode_after(lambda p: p.chmod(0o2755), "mine-of-roots-group"), "0o2755"),
    Case("create keeps the group ID", lambda d: group_of_new(d, 0o2755), f"0o102755 {OTHER}"),
    Case("open a secret", lambda d: touch_open(d / "secret", os.O_RDWR)),
    Case("unlink in a sticky directory", lambda d: os.unlink(d / "sticky/others")),
    Case("list trusted", lambda d: sorted(os.listxattr(d / "root")), "['trusted.t', 'user.u']"),
)


@pytest.mark.parametrize("case", USERS)
def test_users(pair: Pair, case: Case) -> None:
    check_in("users", pair, case, as_user)


@pytest.mark.parametrize("case", ROOT)
def test_root(pair: Pair, case: Case) -> None:
    check_in("users", pair, case)

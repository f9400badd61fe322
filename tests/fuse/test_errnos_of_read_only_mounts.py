"""Errnos of mounts that are read-only, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import os
from errno import (
    EEXIST,
    EISDIR,
    ENOENT,
    EROFS,
)

import pytest

from tests.support.errno_pairs import (
    ACCESS_ACL,
    CREATE,
    FS_IOC_SETFLAGS,
    NAMED_ACL,
    RENAME_EXCHANGE,
    SPECIAL_TYPES,
    Case,
    Pair,
    cases,
    check,
    handle_of,
    ioctl,
    mknod,
    rename,
    touch_open,
)

pytestmark = pytest.mark.usefixtures("no_umask")


READ_ONLY = cases(
    Case("read", lambda d: (d / "file").read_bytes(), "b'content\\n'"),
    Case("open to write", lambda d: touch_open(d / "file", os.O_WRONLY), EROFS),
    Case("open to read and write", lambda d: touch_open(d / "file", os.O_RDWR), EROFS),
    Case("open to append", lambda d: touch_open(d / "file", os.O_WRONLY | os.O_APPEND), EROFS),
    Case("open to create", lambda d: touch_open(d / "file", CREATE), EROFS),
    Case("open a directory to write", lambda d: touch_open(d / "full", os.O_WRONLY), EISDIR),
    Case("open a fifo to read and write", lambda d: touch_open(d / "fifo", os.O_RDWR)),
    Case("truncate on opening", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_TRUNC), EROFS),
    Case("create", lambda d: touch_open(d / "new", CREATE), EROFS),
    Case("create exclusively", lambda d: touch_open(d / "new", CREATE | os.O_EXCL), EROFS),
    Case("create exclusively over a file", lambda d: touch_open(d / "file", CREATE | os.O_EXCL), EEXIST),
    Case("create nowhere", lambda d: touch_open(d / "missing/new", CREATE), ENOENT),
    Case("temporary file", lambda d: touch_open(d, os.O_TMPFILE | os.O_RDWR), EROFS),
    Case("mkdir", lambda d: os.mkdir(d / "new"), EROFS),
    Case("mkdir over a directory", lambda d: os.mkdir(d / "full"), EEXIST),
    *(Case(f"mknod of a {name}", mknod("new", kind), EROFS) for name, kind in SPECIAL_TYPES.items()),
    Case("symlink", lambda d: os.symlink("target", d / "new"), EROFS),
    Case("symlink over a file", lambda d: os.symlink("target", d / "file"), EEXIST),
    Case("link", lambda d: os.link(d / "file", d / "new"), EROFS),
    Case("link over a file", lambda d: os.link(d / "file", d / "other"), EEXIST),
    Case("unlink", lambda d: os.unlink(d / "file"), EROFS),
    Case("unlink what is missing", lambda d: os.unlink(d / "missing"), EROFS),
    Case("unlink a directory", lambda d: os.unlink(d / "full"), EROFS),
    Case("rmdir", lambda d: os.rmdir(d / "directory"), EROFS),
    Case("rmdir what is not empty", lambda d: os.rmdir(d / "full"), EROFS),
    Case("rename", lambda d: rename(d / "file", d / "new"), EROFS),
    Case("rename what is missing", lambda d: rename(d / "missing", d / "new"), EROFS),
    Case("exchange", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE), EROFS),
    Case("truncate", lambda d: os.truncate(d / "file", 0), EROFS),
    Case("truncate a directory", lambda d: os.truncate(d / "full", 0), EISDIR),
    Case("chmod", lambda d: os.chmod(d / "file", 0o600), EROFS),
    Case("chmod a handle", handle_of("file", os.O_RDONLY, lambda h: os.fchmod(h, 0o600)), EROFS),
    Case("chown", lambda d: os.chown(d / "file", 1, 1), EROFS),
    Case("utime", lambda d: os.utime(d / "file", (1, 1)), EROFS),
    Case("touch", lambda d: os.utime(d / "file"), EROFS),
    Case("setxattr", lambda d: os.setxattr(d / "file", "user.a", b""), EROFS),
    Case("removexattr", lambda d: os.removexattr(d / "file", "user.u"), EROFS),
    Case("removexattr of what is missing", lambda d: os.removexattr(d / "file", "user.a"), EROFS),
    Case("getxattr", lambda d: os.getxattr(d / "file", "user.u"), "b'value'"),
    Case("set an ACL", lambda d: os.setxattr(d / "file", ACCESS_ACL, NAMED_ACL), EROFS),
    Case("access", lambda d: os.access(d / "file", os.W_OK), "False"),
    Case("access to read", lambda d: os.access(d / "file", os.R_OK), "True"),
    Case("sync", handle_of("file", os.O_RDONLY, os.fsync)),
    Case("set flags", lambda d: ioctl(d / "file", FS_IOC_SETFLAGS), EROFS),
)


@pytest.mark.parametrize("case", READ_ONLY)
def test_read_only(read_only_pair: Pair, case: Case) -> None:
    check(read_only_pair, case, "tree")

"""Errnos of extended attributes and ACLs, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from errno import (
    E2BIG,
    EACCES,
    EEXIST,
    EINVAL,
    ENODATA,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
)
from pathlib import Path

import pytest

from tests.support.errno_pairs import (
    ACCESS_ACL,
    DEFAULT_ACL,
    DONE,
    MINIMAL_ACL,
    NAMED_ACL,
    NO_ID,
    OTHER,
    Case,
    Pair,
    acl,
    cases,
    check_in,
    libc,
    without_fast_path,
)

pytestmark = pytest.mark.usefixtures("no_umask")


def get_into(path: Path, name: str, size: int) -> int:
    return libc("getxattr", os.fsencode(path), name.encode(), ctypes.create_string_buffer(size), ctypes.c_size_t(size))


def list_into(path: Path, size: int) -> int:
    return libc("listxattr", os.fsencode(path), ctypes.create_string_buffer(size), ctypes.c_size_t(size))


def set_on_link(name: str) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "link", name, b"", follow_symlinks=False)


def set_on_file(name: str, value: bytes = b"", flags: int = 0) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "file", name, value, flags)


def set_by_default(value: bytes) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "full", DEFAULT_ACL, value)


def get_of_file(name: str) -> Callable[[Path], object]:
    return lambda d: os.getxattr(d / "file", name)


def remove_of_file(name: str) -> Callable[[Path], object]:
    return lambda d: os.removexattr(d / "file", name)


UNSUPPORTED = (
    "foo.bar",
    "user",
    "system.foo",
    "system.",
    "nodot",
    "User.a",
    "system.posix_acl_other",
    "btrfs.compression",
)
XATTRS = cases(
    Case("set", set_on_file("user.new", b"value")),
    Case("set nothing", set_on_file("user.new")),
    Case("set trusted", set_on_file("trusted.new", b"value")),
    Case("set security", set_on_file("security.new", b"value")),
    Case("create", set_on_file("user.new", b"value", os.XATTR_CREATE)),
    Case("create one that exists", set_on_file("user.u", b"new", os.XATTR_CREATE), EEXIST),
    Case("replace", set_on_file("user.u", b"new", os.XATTR_REPLACE)),
    Case("replace what is missing", set_on_file("user.new", b"value", os.XATTR_REPLACE), ENODATA),
    Case("create and replace", set_on_file("user.u", b"new", os.XATTR_CREATE | os.XATTR_REPLACE), EEXIST),
    Case("create and replace what is missing", set_on_file("user.new", b"", 3), ENODATA, ours=without_fast_path(DONE)),
    Case("unknown flag", set_on_file("user.u", b"new", 4), EINVAL),
    Case("get what is missing", lambda d: os.getxattr(d / "file", "user.new"), ENODATA),
    Case("get of what is missing", lambda d: os.getxattr(d / "missing", "user.new"), ENOENT),
    Case("get of a link", lambda d: os.getxattr(d / "link", "user.u", follow_symlinks=False), ENODATA),
    Case("get trusted of a link", lambda d: os.getxattr(d / "link", "trusted.t", follow_symlinks=False), ENODATA),
    Case("get of a fifo", lambda d: os.getxattr(d / "fifo", "user.u"), ENODATA),
    Case("get a missing ACL", lambda d: os.getxattr(d / "file", ACCESS_ACL), ENODATA),
    Case("get a missing default ACL", lambda d: os.getxattr(d / "full", DEFAULT_ACL), ENODATA),
    Case("get a default ACL of a file", lambda d: os.getxattr(d / "file", DEFAULT_ACL), ENODATA),
    Case("get an ACL of a link", lambda d: os.getxattr(d / "link", ACCESS_ACL, follow_symlinks=False), EOPNOTSUPP),
    Case("remove", lambda d: os.removexattr(d / "file", "user.u")),
    Case("remove what is missing", lambda d: os.removexattr(d / "file", "user.new"), ENODATA),
    Case("remove of what is missing", lambda d: os.removexattr(d / "missing", "user.new"), ENOENT),
    Case("remove of a fifo", lambda d: os.removexattr(d / "fifo", "user.u"), EPERM),
    Case("remove a missing ACL", lambda d: os.removexattr(d / "file", ACCESS_ACL)),
    Case("remove a missing default ACL", lambda d: os.removexattr(d / "full", DEFAULT_ACL)),
    Case("remove a default ACL of a file", lambda d: os.removexattr(d / "file", DEFAULT_ACL)),
    Case("list of what is missing", lambda d: os.listxattr(d / "missing"), ENOENT),
    Case("list of a fifo", lambda d: os.listxattr(d / "fifo"), "[]"),
    Case("set of a link", set_on_link("user.u"), EPERM),
    Case("set trusted of a link", set_on_link("trusted.t")),
    Case("set of a fifo", lambda d: os.setxattr(d / "fifo", "user.u", b""), EPERM),
    Case("set trusted of a fifo", lambda d: os.setxattr(d / "fifo", "trusted.t", b"")),
    Case("get into too little", lambda d: get_into(d / "file", "user.u", 4), ERANGE),
    Case("get into enough", lambda d: get_into(d / "file", "user.u", 5), "5"),
    Case("get into nothing", lambda d: get_into(d / "file", "user.u", 0), "5"),
    Case("list into too little", lambda d: list_into(d / "file", 6), ERANGE),
    Case("list into enough", lambda d: list_into(d / "file", 7), "7"),
    Case("set the longest name", set_on_file("user." + "n" * 250)),
    Case("set too long a name", set_on_file("user." + "n" * 251), ERANGE),
    Case("get too long a name", lambda d: os.getxattr(d / "file", "user." + "n" * 251), ERANGE),
    Case("remove too long a name", lambda d: os.removexattr(d / "file", "user." + "n" * 251), ERANGE),
    Case("set no name", set_on_file(""), ERANGE),
    *(
        Case(f"set only {prefix}", set_on_file(prefix, b"value"), EINVAL)
        for prefix in ("user.", "trusted.", "security.")
    ),
    Case("get only the prefix", lambda d: os.getxattr(d / "file", "user."), EINVAL),
    Case("set what fits no block", set_on_file("user.new", bytes(5000)), ENOSPC),
    Case("replace by what fits no block", set_on_file("user.u", bytes(5000)), ENOSPC),
    Case("set the largest value", set_on_file("user.new", bytes(65_536)), ENOSPC),
    Case("set too large a value", set_on_file("user.new", bytes(65_537)), E2BIG),
    *(Case(f"set {name}", set_on_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
    *(Case(f"get {name}", get_of_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
    *(Case(f"remove {name}", remove_of_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
)


def acl_of(users: int) -> bytes:
    """An ACL that names this many users."""
    named = ((0x02, 6, uid) for uid in range(users))
    return acl((0x01, 6, NO_ID), *named, (0x04, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID))


ACL_VALUES: dict[str, tuple[bytes, int | str]] = {
    "minimal": (MINIMAL_ACL, DONE),
    "named": (NAMED_ACL, DONE),
    "nothing": (b"", DONE),
    "no entries": (acl(), DONE),
    "a short one": (b"abc", EINVAL),
    "a torn one": (MINIMAL_ACL[:-1], EINVAL),
    "an unknown version": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID), version=1), EOPNOTSUPP),
    "no others": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID)), EINVAL),
    "no mask": (acl((0x01, 6, NO_ID), (0x02, 6, OTHER), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "unsorted": (acl((0x20, 4, NO_ID), (0x04, 4, NO_ID), (0x01, 6, NO_ID)), EINVAL),
    "two owners": (acl((0x01, 6, NO_ID), (0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "an unknown tag": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID), (0x40, 4, NO_ID)), EINVAL),
    "unknown permissions": (acl((0x01, 8, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "no id": (acl((1, 6, NO_ID), (2, 6, NO_ID), (4, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "too many": (acl_of(505), ENOSPC),
}  # fmt: skip
ACLS = cases(
    *(
        case
        for name, (value, expected) in ACL_VALUES.items()
        for case in (
            Case(f"set {name}", set_on_file(ACCESS_ACL, value), expected),
            Case(f"set by default {name}", set_by_default(value), expected),
        )
    ),
    Case("set by default on a file", set_on_file(DEFAULT_ACL, NAMED_ACL), EACCES),
    Case("set nothing by default on a file", set_on_file(DEFAULT_ACL, acl())),
    Case("set by default on a fifo", lambda d: os.setxattr(d / "fifo", DEFAULT_ACL, NAMED_ACL), EACCES),
    Case("set on a fifo", lambda d: os.setxattr(d / "fifo", ACCESS_ACL, NAMED_ACL)),
    Case("set on a link", lambda d: os.setxattr(d / "link", ACCESS_ACL, NAMED_ACL, follow_symlinks=False), EOPNOTSUPP),
    Case("set more than a page", set_on_file(ACCESS_ACL, acl_of(600)), ENOSPC, ours=E2BIG),
    Case("create anew", set_on_file(ACCESS_ACL, NAMED_ACL, os.XATTR_CREATE)),
    Case("replace what is missing", set_on_file(ACCESS_ACL, NAMED_ACL, os.XATTR_REPLACE)),
)


@pytest.mark.parametrize("case", XATTRS)
def test_xattrs(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


@pytest.mark.parametrize("case", ACLS)
def test_acls(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)

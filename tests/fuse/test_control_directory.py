"""``.mystfuse``, the control directory of a mount, is immutable."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.errno_pairs import CREATE, DEFAULT_ACL, NAMED_ACL, RENAME_EXCHANGE, Pair, outcome, rename, touch_open

pytestmark = pytest.mark.usefixtures("no_umask")


CONTROL = ".mystfuse"
IN_CONTROL: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda d, root: touch_open(d / "new", CREATE),
    "create exclusively": lambda d, root: touch_open(d / "new", CREATE | os.O_EXCL),
    "mkdir": lambda d, root: os.mkdir(d / "new"),
    "mkfifo": lambda d, root: os.mkfifo(d / "new"),
    "mknod": lambda d, root: os.mknod(d / "new", stat.S_IFCHR | 0o600),
    "symlink": lambda d, root: os.symlink("target", d / "new"),
    "link into": lambda d, root: os.link(root / "tree/file", d / "new"),
    "link out of": lambda d, root: os.link(d / "status.json", root / "new"),
    "unlink": lambda d, root: os.unlink(d / "status.json"),
    "unlink the image": lambda d, root: os.unlink(d / "image"),
    "rmdir": lambda d, root: os.rmdir(d),
    "rename in": lambda d, root: rename(d / "status.json", d / "new"),
    "rename over": lambda d, root: rename(d / "status.json", d / "image"),
    "rename into": lambda d, root: rename(root / "tree/file", d / "new"),
    "rename out of": lambda d, root: rename(d / "status.json", root / "new"),
    "rename it": lambda d, root: rename(d, root / "new"),
    "rename over it": lambda d, root: rename(root / "tree/directory", d),
    "exchange it": lambda d, root: rename(root / "tree/directory", d, RENAME_EXCHANGE),
    "exchange in it": lambda d, root: rename(root / "tree/file", d / "image", RENAME_EXCHANGE),
    "open to write": lambda d, root: touch_open(d / "status.json", os.O_WRONLY),
    "open to append": lambda d, root: touch_open(d / "image", os.O_RDWR | os.O_APPEND),
    "truncate on opening": lambda d, root: touch_open(d / "image", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda d, root: os.truncate(d / "image", 0),
    "chmod": lambda d, root: os.chmod(d / "status.json", 0o666),
    "chmod it": lambda d, root: os.chmod(d, 0o777),
    "chown": lambda d, root: os.chown(d / "image", 1, 1),
    "utime": lambda d, root: os.utime(d / "image", (1, 1)),
    "touch": lambda d, root: os.utime(d),
    "setxattr": lambda d, root: os.setxattr(d / "image", "user.a", b""),
    "setxattr of it": lambda d, root: os.setxattr(d, "trusted.a", b""),
    "removexattr": lambda d, root: os.removexattr(d / "image", "user.a"),
    "set an ACL": lambda d, root: os.setxattr(d, DEFAULT_ACL, NAMED_ACL),
}


@pytest.mark.parametrize("name", IN_CONTROL)
def test_control_directory(pair: Pair, name: str) -> None:
    """No operation changes its contents or the directory itself."""
    root = pair.ours
    assert outcome(partial(IN_CONTROL[name], root / CONTROL, root)) == "EPERM"
    assert sorted(os.listdir(root / CONTROL)) == ["base", "image", "metrics", "status.json", "touched", "written"]


def test_control_directory_read_only(read_only_pair: Pair) -> None:
    """The kernel first checks whether the mount is writable; the errnos of requests that reach us are the same."""
    root = read_only_pair.ours
    answers = {name: outcome(partial(call, root / CONTROL, root)) for name, call in IN_CONTROL.items()}
    assert set(answers.values()) == {"EROFS"}


def test_an_image_with_a_file_of_the_control_directorys_name(pair: Pair) -> None:
    for call in (os.mkdir, os.mkfifo, partial(os.symlink, "target")):
        assert outcome(partial(call, pair.ours / CONTROL)) == "EEXIST"

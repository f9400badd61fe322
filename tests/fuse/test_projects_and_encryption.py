"""Projects, and what is encrypted, on a mount."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import RENAME_EXCHANGE, libc, outcome
from tests.support.ext2_editor import debugfs, kernel_mount
from tests.support.mounts import HAS_FAST_PATH, assert_clean, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no ioctl")

FSGETXATTR, FSSETXATTR, PROJINHERIT = 0x801C581F, 0x401C5820, 0x200
ADD_KEY, SET_POLICY = 0xC0506617, 0x800C6613
AT_FDCWD = -100


@contextmanager
def pair_of(image: Path, directory: Path) -> Iterator[tuple[Path, Path]]:
    """The kernel's mount of a copy of the image, and ours."""
    peer = directory / "peer"
    shutil.copy(image, peer)
    with (
        kernel_mount(peer, directory / "kernel", "rw") as theirs,
        mounted(image, directory / "mount", "--insecure") as ours,
    ):
        yield theirs, ours


def both(sides: tuple[Path, Path], call: Callable[[Path], object]) -> str:
    """The outcome of a call, which both sides have to agree on."""
    theirs, ours = (outcome(partial(call, side)) for side in sides)
    assert ours == theirs
    return ours


def set_project(path: Path, project: int, xflags: int = 0) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, FSSETXATTR, struct.pack("<IIIII8x", xflags, 0, 0, project, 0))
    finally:
        os.close(handle)


def project_of(path: Path) -> tuple[int, int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        xflags, _, _, project, _ = struct.unpack("<IIIII8x", fcntl.ioctl(handle, FSGETXATTR, bytes(28)))
    finally:
        os.close(handle)
    return project, xflags & PROJINHERIT


def exchange(left: Path, right: Path) -> None:
    libc("renameat2", AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE)


def test_projects_are_inherited_and_kept_apart(tmp_path: Path) -> None:
    """This kernel's driver cannot write where projects are (it has no CONFIG_QFMT_V2): the answers are those of
    fs/ext4/namei.c and ioctl.c; e2fsck and debugfs see the ids."""
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-I", "256", image, "16M")
    debugfs(image, "feature project")
    with mounted(image, tmp_path / "mount", "--insecure") as root:
        for name in ("seven", "eight", "none"):
            (root / name).mkdir()
        (root / "file").write_bytes(b"f")
        set_project(root / "seven", 7, PROJINHERIT)
        set_project(root / "eight", 80_000, PROJINHERIT)
        for name in ("seven", "eight", "none"):
            (root / name / "sub").mkdir()
            (root / name / "file").touch()
        assert [project_of(root / name) for name in ("seven/sub", "seven/file", "eight/sub", "eight/file")] == [
            (7, PROJINHERIT), (7, 0), (80_000, PROJINHERIT), (80_000, 0),
        ]  # fmt: skip
        assert project_of(root / "none/sub") == project_of(root / "none/file") == project_of(root / "file") == (0, 0)
        for call in (
            partial(os.rename, root / "file", root / "seven/new"),
            partial(os.link, root / "file", root / "seven/new"),
            partial(os.rename, root / "eight/sub", root / "seven/new"),
            partial(exchange, root / "eight/sub", root / "seven/sub"),
            partial(exchange, root / "file", root / "seven/file"),
        ):
            assert outcome(call) == "EXDEV"
        (root / "seven/file").rename(root / "none/new")
        (root / "none/new").rename(root / "seven/sub/back")
        set_project(root / "file", 7)
        os.link(root / "file", root / "seven/linked")
        assert_clean(root, tmp_path)
        for name, project in (("seven/linked", 7), ("eight/file", 80_000), ("none", 0)):
            shown = run("debugfs", "-R", f"stat /{name}", tmp_path / "present").stdout
            assert f"Project: {project:>5}" in shown


def make_encrypted(root: Path) -> None:
    """A directory with a policy whose key the kernel has until it is unmounted; what is in it; and a file of it
    elsewhere."""
    handle = os.open(root, os.O_RDONLY)
    argument = bytearray(struct.pack("<II32sII32x", 2, 0, b"", 64, 0) + bytes(range(64)))
    fcntl.ioctl(handle, ADD_KEY, argument)
    os.close(handle)
    (root / "secret").mkdir()
    handle = os.open(root / "secret", os.O_RDONLY)
    fcntl.ioctl(handle, SET_POLICY, struct.pack("<BBBBB3x16s", 2, 1, 4, 3, 0, argument[8:24]))
    os.close(handle)
    for name in ("moved", "kept", "removed"):
        (root / "secret" / name).write_bytes(b"secret" * 2000)
    (root / "secret/sub").mkdir()
    for name in ("empty", "also empty"):
        (root / "secret" / name).mkdir()
        (root / "secret" / name).rename(root / name)
    for name in ("moved", "removed"):
        (root / "secret" / name).rename(root / name)
    (root / "plain").write_bytes(b"plain")


def test_what_is_encrypted_is_not_written_without_its_key(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "encrypt", "-I", "256", image, "16M")
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        make_encrypted(root)
    with pair_of(image, tmp_path) as sides:
        answers = [
            both(sides, lambda side: (side / "secret/new").touch()),
            both(sides, lambda side: (side / "secret/new").mkdir()),
            both(sides, lambda side: (side / "secret/new").symlink_to("target")),
            both(sides, lambda side: os.link(side / "plain", side / "secret/new")),
            both(sides, lambda side: os.rename(side / "plain", side / "secret/new")),
            both(sides, lambda side: os.truncate(side / "moved", 100)),
            both(sides, lambda side: (side / "moved").read_bytes()),
            both(sides, lambda side: os.close(os.open(side / "moved", os.O_WRONLY))),
            both(sides, lambda side: os.close(os.open(side / "secret", os.O_TMPFILE | os.O_RDWR))),
        ]
        assert set(answers) == {"ENOKEY"}
        assert both(sides, lambda side: os.chmod(side / "moved", 0o600)) == "done"
        assert both(sides, lambda side: os.setxattr(side / "moved", "user.x", b"v" * 200)) == "done"
        assert both(sides, lambda side: os.rename(side / "moved", side / "renamed")) == "done"
        assert both(sides, lambda side: os.link(side / "renamed", side / "linked")) == "done"
        assert both(sides, lambda side: os.unlink(side / "removed")) == "done"
        assert both(sides, lambda side: os.rmdir(side / "secret")) == "ENOTEMPTY"
        assert both(sides, lambda side: os.rmdir(side / "empty")) == "done"
        for side in sides:
            (side / "plain directory").mkdir()
        assert both(sides, lambda side: os.rename(side / "secret", side / "also empty")) == "done"
        assert both(sides, lambda side: os.rename(side / "also empty", side / "plain directory/moved")) == "done"
        assert both(sides, lambda side: os.rmdir(side / "plain directory/moved")) == "ENOTEMPTY"
        assert_clean(sides[1], tmp_path)

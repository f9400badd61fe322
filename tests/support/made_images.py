"""Images by ``mystfuse mkext2``, and the tools that check them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run

MIB = 1 << 20


def fssig(image: Path) -> dict[str, str]:
    """The lines of ``mystfuse fssig``."""
    result = in_process("fssig", image)
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines())


def make(directory: Path, image: Path, *options: str | Path, **kwargs: Any) -> dict[str, str]:
    """Run mkext2, which must succeed without output; returns the image's fssig."""
    arguments = ("mkext2", *options, directory, image)
    result = mystfuse(*arguments, **kwargs) if kwargs else in_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""
    return fssig(image)


def assert_refused(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Assert that the command failed with this status and one line on stderr with these words."""
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@contextlib.contextmanager
def loop_mounted(image: Path, mountpoint: Path) -> Iterator[Path]:
    """The kernel's own mount of an image."""
    mountpoint.mkdir(exist_ok=True)
    run("mount", "-t", "ext2", "-o", "loop,ro,noatime", image, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


def contents(root: Path, with_owners: bool = True) -> dict[str, dict[str, object]]:
    """Everything from ``root`` down that an image keeps, by path; without lost+found."""
    found: dict[str, dict[str, object]] = {}
    links: dict[tuple[int, int], list[str]] = {}
    paths = [os.fsencode(root)]
    for directory, subdirectories, files in os.walk(os.fsencode(root)):
        if directory == paths[0] and b"lost+found" in subdirectories:
            subdirectories.remove(b"lost+found")
        paths += [os.path.join(directory, name) for name in subdirectories + files]
    for path in paths:
        status = os.lstat(path)
        name = os.fsdecode(os.path.relpath(path, paths[0]))
        entry: dict[str, object] = {"mode": oct(status.st_mode), "mtime": int(status.st_mtime // 1)}
        if with_owners:
            entry |= {"uid": status.st_uid, "gid": status.st_gid}
            entry["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False)
                               for key in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
        if not stat.S_ISDIR(status.st_mode):
            entry["nlink"] = status.st_nlink
            links.setdefault((status.st_dev, status.st_ino), []).append(name)
        if stat.S_ISREG(status.st_mode):
            entry["size"] = status.st_size
            entry["sha256"] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            entry["rdev"] = status.st_rdev
        found[name] = entry
    for names in links.values():
        for name in names:
            found[name]["same file as"] = sorted(names)
    return found


def assert_clean(image: Path) -> None:
    result = run("e2fsck", "-fn", image, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def assert_tree_accepted(image: Path, fields: dict[str, str]) -> None:
    run("veritysetup", "verify", image, image, fields["root_hash"], f"--hash-offset={fields['hash_offset']}")

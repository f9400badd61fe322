"""Images by ``mystfuse mkext2``, and the tools that check them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run, wait_until

MIB = 1 << 20


def fssig(image: Path) -> dict[str, str]:
    """The lines of ``mystfuse fssig``."""
    result = in_process("fssig", image)
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines())


def make(directory: Path, image: Path, *options: str | Path, **kwargs: Any) -> dict[str, str]:
    """Run mkext2, which must succeed and say in two lines what it has made; returns the image's fssig."""
    arguments = ("mkext2", *options, directory, image)
    result = mystfuse(*arguments, **kwargs) if kwargs else in_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    where = Path(kwargs.get("cwd", "."), image)
    assert_told(result.stdout, where)
    return fssig(where)


def assert_told(said: str, image: Path) -> None:
    """Assert that a command says on two lines what it has made: the image's size and root hash, and how to mount it."""
    made, mount_it = said.splitlines()
    fields = fssig(image)
    assert made.startswith("made ") and f"root hash {fields['root_hash']}, " in made
    assert made.endswith("unsigned") == (fields["signer"] == "null")
    assert mount_it.startswith("mount it: mystfuse ") and " MOUNTPOINT --" in mount_it


def superblock_of(image: Path) -> Superblock:
    """The superblock of the file system at the beginning of a file."""
    with image.open("rb") as file:
        return Superblock.parse(os.pread(file.fileno(), SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET))


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
    run("mount", "-t", "ext4", "-o", "loop,ro,noatime", image, mountpoint)
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


def check_ended_mkext2(
    tmp_path: Path, fill: Callable[[Path], None], number: signal.Signals, *options: str | Path
) -> None:
    """Assert that mkext2, ended by a signal while it has a mount of its own, leaves nothing.

    Args:
        fill: puts enough files into the directory that making the image takes a second.
    """
    source, target, temporary = tmp_path / "source", tmp_path / "target", tmp_path / "temporary"
    for directory in source, target, temporary:
        directory.mkdir()
    fill(source)
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mkext2", *options, source, target / "x.img"],
        env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while str(temporary) not in Path("/proc/self/mountinfo").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    if number is not signal.SIGKILL:
        assert (process.returncode, stderr) == (1, b"mystfuse: interrupted\n")
    else:
        # The child cleans up after that.
        wait_until(lambda: not list(temporary.iterdir()))
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert list(target.iterdir()) == list(temporary.iterdir()) == []
    # Init, or who is told to, buries mke2fs when we are gone.
    wait_until(lambda: run("pgrep", "-f", str(source), check=False).stdout == "")

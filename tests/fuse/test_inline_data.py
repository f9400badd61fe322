"""Files, directories and links whose contents are in their inodes, changed through a mount: what programs see is what
they see on the kernel's own mount, from the C fast path and from Python."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.ext2_editor import kernel_mount
from tests.support.mounts import HAS_FAST_PATH, assert_clean, caches_kept, mounted

OPTIONS = [(), ("-o", "nofastpath")] if HAS_FAST_PATH else [()]


def populate(root: Path) -> None:
    for size in (0, 5, 60, 100, 200, 2000):
        (root / f"file {size}").write_bytes(bytes(range(200)) * 10 if size == 2000 else b"f" * size)
    for count in (0, 3, 8, 60):
        (root / f"directory {count}").mkdir()
        for number in range(count):
            (root / f"directory {count}/{number:02}").touch()
    (root / "directory 3/inner").mkdir()
    for length in (20, 59, 60, 400):
        (root / f"link {length}").symlink_to("t" * length)


def change(root: Path) -> None:
    """Contents grow out of the inode, shrink, are replaced and moved."""
    for size in (0, 5, 60, 100, 200):
        with (root / f"file {size}").open("r+b") as file:
            file.seek(max(size - 3, 0))
            file.write(b"more" * 10)
    with (root / "file 5").open("r+b") as file:
        file.truncate(3)
    with (root / "file 60").open("ab") as file:
        file.write(b"a" * 500)
    os.truncate(root / "file 100", 30)
    os.setxattr(root / "file 100", "user.much", b"v" * 700)
    os.setxattr(root / "file 200", "user.more", b"v" * 9000)
    with suppress(OSError):
        os.setxattr(root / "file 0", "user.too", b"v" * 70_000)
    shutil.copy(root / "file 200", root / "directory 3/copy")
    for number in range(6):
        (root / f"directory 0/new name {number}").write_bytes(b"n" * number * 30)
        (root / f"directory 8/{number + 1:02}").unlink()
    (root / "directory 8/00").rename(root / "directory 0/moved")
    (root / "directory 3/inner").rename(root / "directory 60/inner")
    (root / "directory 60/01").rename(root / "directory 60/a longer name")
    for number in range(30):
        (root / f"directory 3/grown {number}").mkdir()
        (root / f"directory 3/grown {number}").rmdir()
    (root / "directory 3/last").symlink_to("l" * 61)


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """What programs see below a directory."""
    found: dict[str, tuple[object, ...]] = {}
    for place, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(place) / name
            key = str(path.relative_to(root))
            if key.split("/")[0] in (".mystfuse", "lost+found"):
                continue
            known = path.lstat()
            content: object = None
            if stat.S_ISREG(known.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(known.st_mode):
                content = os.readlink(path)
            else:
                content = sorted(os.listdir(path)), os.stat(path / "..").st_ino == path.parent.stat().st_ino
            xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
                      for name in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
            found[key] = known.st_mode, known.st_nlink, known.st_size, known.st_blocks, content, xattrs
    return found


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inode_size", ["256", "1024"])
def test_a_changed_tree_is_the_kernels(inode_size: str, options: tuple[str, ...], tmp_path: Path) -> None:
    image, peer = tmp_path / "image", tmp_path / "peer"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "inline_data,ea_inode", "-I", inode_size, "-b", "1024", image, "16M")
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        populate(root)
    shutil.copy(image, peer)
    with (
        caches_kept(),
        kernel_mount(peer, tmp_path / "kernel", "rw,nodelalloc") as theirs,
        mounted(image, tmp_path / "mount", "--insecure", *options) as ours,
    ):
        assert seen(ours) == seen(theirs)
        for root in (theirs, ours):
            change(root)
        wanted = seen(theirs)
        assert wanted["directory 0"][2] != 1024 or wanted["directory 8"][2] != 1024, "directories are in their inodes"
        assert seen(ours) == wanted
        assert seen(ours) == wanted, "from what the kernel and the fast path remember"
        assert_clean(ours, tmp_path)

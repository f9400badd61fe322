"""An image with one file of every kind, its mount, and an image to damage."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import Editor, make_image
from tests.support.mounts import mounted


@pytest.fixture(scope="module")
def rich_image(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_tree`` and more: owners, devices, set-user-ID, odd times, closed directories, holes, capabilities."""
    root = tmp_path_factory.mktemp("rich") / "tree"
    run("cp", "-a", small_tree, root)
    (root / "setuid").write_bytes(b"program")
    os.chown(root / "setuid", 1234, 5678)
    (root / "setuid").chmod(0o6755)
    (root / "capable").write_bytes(b"program")
    run("setfattr", "-n", "security.capability", "-v", "0x0100000200200000000000000000000000000000", root / "capable")
    os.setxattr(root / "sub", b"trusted.secret", b"\0\xff=")
    os.setxattr(root / "sub", b"user.a=b%c", b"")
    os.setxattr(root / "link", b"trusted.of-link", b"l", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o700)
    for name, mode in (("fifo", 0o640), ("null", 0o666), ("disk", 0o660), ("socket", 0o700)):
        (root / name).chmod(mode)
    os.chown(root / "long-link", 77, 88, follow_symlinks=False)
    os.link(root / "null", root / "sub/hard-null")
    (root / "closed/inner").mkdir(parents=True)
    os.link(root / "hello.txt", root / "closed/inner/again")
    os.link(root / "long-link", root / "closed/hard-symlink", follow_symlinks=False)
    (root / "closed/inner").chmod(0)
    (root / "closed").chmod(0o500)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    with (root / "holes").open("wb") as file:
        for position in (0, 100_000, 9_000_000):
            file.seek(position)
            file.write(b"data" * 2000)
        file.truncate(30_000_000)
    for name, time_ns in (("empty", -5_000_000_000), ("sub", 4_000_000_000_000_000_000), ("fifo", 1), ("link", 7)):
        os.utime(root / name, ns=(time_ns, time_ns), follow_symlinks=False)
    image = root.with_name("image")
    assert mystfuse("mkext2", "--block-size=1024", root, image).returncode == 0
    return image


@pytest.fixture(scope="module")
def rich_mount(rich_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    options = ("-r", "--allow-other", "-o", "dev,suid")
    with mounted(rich_image, tmp_path_factory.mktemp("rich-mount") / "mount", *options) as mountpoint:
        yield mountpoint


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that a hostile image tries to write to; its contents must not change."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "passwd").write_text("root")
    return path


@pytest.fixture
def hostile(tmp_path: Path, victim: Path) -> Editor:
    """A file system to damage: directories d1 (with dfile), d2 (with inner), links to the victim, files."""
    source = tmp_path / "source"
    (source / "d1").mkdir(parents=True)
    (source / "d2/inner").mkdir(parents=True)
    (source / "d1/dfile").write_text("hostile")
    (source / "d2/inner/passwd").write_text("hostile")
    (source / "d2/passwd").write_text("hostile")
    (source / "link1").symlink_to(victim)
    (source / "link2").symlink_to("../victim")
    (source / "file1").write_text("hostile")
    (source / "file2").write_text("other")
    run("chattr", "-R", "-i", source, check=False)
    return Editor(make_image(tmp_path / "plain", size="1M", tree=source).read_bytes())

"""Trees to make images of, and a full disk."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.commands import run


@pytest.fixture(scope="module")
def rich_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_tree`` and everything else that root can put into a directory; the root directory has attributes of its
    own."""
    root = tmp_path_factory.mktemp("rich") / "tree"
    run("cp", "-a", small_tree, root)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "large device", stat.S_IFBLK | 0o660, os.makedev(300, 70_000))
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (root / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "setuid", 100_000, 70_000)
    os.chmod(root / "setuid", 0o6755)
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    os.setxattr(root / "fifo", "trusted.of-a-fifo", b"1")
    os.setxattr(root / "setuid", "user.long", b"v" * 250)
    os.setxattr(root / "setuid", "user.binary", bytes(range(256)))
    os.setxattr(root / "setuid", "user.empty", b"")
    os.setxattr(root / "sub", "security.made-up", b"2")
    (root / "old").write_text("before 1970")
    os.utime(root / "old", (-1e8, -1e8))
    os.utime(root / "link", (1_234_567_890, 1_234_567_890), follow_symlinks=False)
    names = root / "names"
    names.mkdir()
    for number in range(300):
        (names / f"{number:03} {'x' * (number % 200)}").write_text(str(number))
    (names / "line\nbreak").write_text("odd")
    (names / "-rf").write_text("odd")
    run("setfacl", "-m", "u:1234:rwx,g:4321:r,m:rwx", root)
    os.setxattr(root, "user.of-the-root", b"3")
    os.chown(root, 11, 12)
    os.chmod(root, 0o2750)
    os.utime(root, (1_400_000_000, 1_400_000_000))
    return root


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 files of a few bytes: 0.5 MB by du, 20 MB in blocks of 1 KiB, and 20,000 inodes."""
    root = tmp_path_factory.mktemp("tiny") / "tree"
    for directory in range(100):
        (root / str(directory)).mkdir(parents=True)
        for number in range(200):
            with (root / str(directory) / str(number)).open("w") as file:
                file.write(f"{directory} {number}\n")
    return root

"""Extracting in this process, and comparing trees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"
COPY = "--ignore=st_ino,st_ctime_ns,st_blocks,st_blksize,st_atime_ns"
FAILED, USAGE, NOT_TRUSTED, INTEGRITY, FORMAT = 1, 2, 3, 4, 6


def assert_same(left: Path, right: Path, ignore: str = "") -> None:
    """Assert that the trees are equal, except for values that a copy cannot keep: inode numbers, ctimes, sizes of
    directories, and atimes once it is read."""
    result = run(sys.executable, COMPARE, left, right, f"{COPY}{ignore}", check=False)
    # A directory's size depends on the file system.
    differences = [
        line
        for line in result.stdout.splitlines()[:-1]
        if not (": st_size:" in line and os.path.isdir(os.path.join(left, line.partition(": ")[0])))
    ]
    assert differences == [], "\n".join(differences)


def refused(status: int, *arguments: str | Path) -> str:
    """Run a command that must fail with this status and one line; returns that line."""
    result = in_process(*arguments)
    lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
    assert (result.returncode, len(lines)) == (status, 1), result.stderr
    return lines[0]


def root_entries(editor: Editor) -> dict[bytes, int]:
    names = (b"d1", b"d2", b"link1", b"link2", b"file1", b"file2")
    return {name: editor.find(ROOT, name)[1] for name in names}


def save(editor: Editor, tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.write_bytes(editor.data)
    return image


def archive(image: Path, *arguments: str) -> bytes:
    command = [sys.executable, "-m", "mystfuse", "tar", str(image), *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout

"""Where files of an image are, as debugfs knows it, and damaging that."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.support.commands import run


def block_of(image: Path, path: str, place: int = 0) -> int:
    """The number of a file's block."""
    return int(run("debugfs", "-R", f'bmap "{path}" {place}', image).stdout)


def inode_of(image: Path, path: str) -> int:
    """The number of a file's inode."""
    return int(re.search(r"Inode: (\d+)", run("debugfs", "-R", f'stat "{path}"', image).stdout)[1])  # type: ignore[index]


def damage(image: Path, target: Path, *offsets: int) -> Path:
    """A copy with a bit of each of these bytes flipped."""
    shutil.copyfile(image, target)
    with target.open("r+b") as file:
        for offset in offsets:
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), offset)
    return target

"""Threads that ask a mount for very many answers; see ``askers.c``."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.support.consistency.runs import compile_program

SOURCE = Path(__file__).parent / "askers.c"
FILES = 32
NAMES = 100
DISCONNECTED = 3
"""Their exit status when the mount's daemon has gone."""


def compile_askers(directory: Path) -> Path:
    """Compile the program into the directory."""
    return compile_program(directory / "askers", SOURCE)


def _content(number: int, size: int) -> bytes:
    return b"".join(struct.pack("=Q", (number + 1) << 40 | index) for index in range(size // 8))


def make_tree(directory: Path) -> None:
    """Make the files that they ask for: each word of a file's content says which it is."""
    directory.mkdir()
    directory.chmod(0o777)
    for number in range(FILES):
        path = directory / f"file{number}"
        path.write_bytes(_content(number, number * 20000 + 8 * number if number else 6 << 20))
        os.setxattr(path, "user.number", b"%d" % number)
        # A thread's own, to write to.
        (directory / f"own{number}").touch()
        (directory / f"own{number}").chmod(0o666)
    (directory / "full").mkdir()
    for number in range(NAMES):
        (directory / "full" / f"n{number}").touch()

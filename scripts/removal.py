"""Removes a directory with everything in it, but never through a mount, which may show another program's files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mounts_in(directory: str | os.PathLike[str]) -> list[str]:
    """The mountpoints that are ``directory`` or lie in it.

    From /proc/self/mountinfo: looking at a mount whose daemon hangs would hang us too.
    """
    top = os.path.realpath(directory)
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").split("\n")[:-1]:
        # Not splitlines(): a name may contain characters that end a line for Python alone. proc(5): blanks and
        # backslashes are octal numbers.
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        if path == top or path.startswith(f"{top.rstrip('/')}/"):
            found.append(path)
    return found


def remove_tree(directory: str | os.PathLike[str], ignore_errors: bool = False) -> None:
    """Remove a directory and everything in it.

    Args:
        ignore_errors: a missing directory is no error, and what fails to be removed stays. Mounts are an error.

    Raises:
        OSError: EBUSY where something is mounted on it or in it: nothing is removed then.
    """
    mounts = mounts_in(directory)
    if mounts:
        raise OSError(errno.EBUSY, "not removed, since this is mounted there", mounts[0])
    shutil.rmtree(directory, ignore_errors)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory for the time of the block, removed by ``remove_tree``."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield path
    finally:
        remove_tree(path)

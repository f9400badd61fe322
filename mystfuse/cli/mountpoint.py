"""Finding out what a mountpoint argument means, without touching what may be mounted there."""

from __future__ import annotations

import os

_MAX_LINKS = 40


def resolve_mountpoint(path: str) -> str:
    """The absolute path of a mountpoint, symbolic links resolved, as the kernel's mount table has it.

    readlink(2) on the mountpoint itself asks nothing of the file system that is mounted there, which may hang.

    Raises:
        OSError: a link in the path stopped being one while it was looked at.
    """
    for _ in range(_MAX_LINKS):
        path = os.path.abspath(path)
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return path

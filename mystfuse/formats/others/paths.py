"""Paths that name no regular file: directories, devices, pipes."""

from __future__ import annotations

import stat

from mystfuse.formats.others.kind import Kind

_DIRECTORY = Kind("directory", "a directory", "make an image of what is in it", ("mystfuse mkext2 {file} {image}",))


def kind_of_mode(mode: int) -> Kind | None:
    """What a path is by its file mode; None for what can hold an image: a regular file, a block device."""
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return None
    if stat.S_ISDIR(mode):
        return _DIRECTORY
    if stat.S_ISFIFO(mode):
        return Kind(
            "fifo",
            "a FIFO",
            "an image is read at any place: let what comes out of it go into a file",
            ("cat {file} > {new}",),
        )
    if stat.S_ISSOCK(mode):
        return Kind("socket", "a socket", "an image is a file or a block device")
    return Kind("device", "a character device", "an image is a file or a block device")

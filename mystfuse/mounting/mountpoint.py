"""Finding out what a mountpoint argument means, without touching what may be mounted there."""

from __future__ import annotations

import errno
import os

from mystfuse.errors import MountError
from mystfuse.system.output_paths import MAX_LINKS, LinkOfAnother, read_trusted_link


def resolve_mountpoint(path: str) -> str:
    """The absolute path of a mountpoint, symbolic links resolved, as the kernel's mount table has it.

    Nothing is asked of the file system that is mounted there, which may hang.

    Raises:
        MountError: we are root, and a link on the way is another user's, who could lead us elsewhere.
        OSError: there is no current directory, or too many links.
    """
    # Not asked for where it does not matter: it may be gone.
    start = "/" if path.startswith("/") else os.getcwd()
    pending = os.path.join(start, path).split("/")[::-1]
    resolved, links = "/", 0
    while pending:
        name = pending.pop()
        if name == "..":
            resolved = os.path.dirname(resolved)
        if name in ("", ".", ".."):
            continue
        here = os.path.join(resolved, name)
        try:
            target = read_trusted_link(here)
        except LinkOfAnother as error:
            raise MountError(f"{path}: {error.strerror}") from error
        if target is None:
            resolved = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            resolved = "/"
        pending += target.split("/")[::-1]
    return resolved

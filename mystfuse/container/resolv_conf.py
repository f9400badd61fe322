"""The host's /etc/resolv.conf, shown to a program with the host's network where the image has none."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from mystfuse.container.root_directory import Root

RESOLVER = "/etc/resolv.conf"


def open_resolver() -> int | None:
    """A descriptor (O_PATH) of the host's; None if it has none."""
    with suppress(OSError):
        fd = os.open(RESOLVER, os.O_PATH | os.O_CLOEXEC)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return fd
        os.close(fd)
    return None


def show_resolver(root: Root, resolver: int) -> None:
    """Show the host's file, whose descriptor is closed, in ``root``, unless the image has one of its own.

    Raises:
        OSError, MountError: then the program resolves no names.
    """
    try:
        if root.is_empty_or_absent(RESOLVER):
            # In images of systems with systemd-resolved it is a link into /run.
            root.remove_link(RESOLVER)
            root.bind(resolver, RESOLVER, read_only=True)
    finally:
        os.close(resolver)

"""A file system with one file, ``image``, that the kernel opens and stats without asking its server: when the server is
stopped, only reads hang, and a process that waits for one can be killed, as on a network file system.

Run as a program: ``python -m tests.support.quiet_storage CONTENT MOUNTPOINT``. It says ``ready``.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pyfuse3
import trio

from tests.support.one_file_storage import OneFileStorage


class QuietStorage(OneFileStorage):
    """The kernel asks about opening once (fs/fuse/file.c, no_open)."""

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


async def serve(content: str, mountpoint: str) -> None:
    pyfuse3.init(QuietStorage(Path(content).read_bytes()), mountpoint, {"fsname=quiet", "ro", "default_permissions"})
    try:
        print("ready", flush=True)
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, *sys.argv[1:])

"""A file system with one file, ``image``, that is opened and looked at without asking its server: stopped, it answers
everything but reads, and whoever waits for those can be killed, as with a network's file system.

Run as a program: ``python -m tests.support.quiet_storage CONTENT MOUNTPOINT``. It says ``ready``.
"""

from __future__ import annotations

import errno
import math
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

IMAGE_INO = 2


class QuietStorage(pyfuse3.Operations):
    """The kernel keeps attributes for ever, and asks about opening once (fs/fuse/file.c, no_open)."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFREG | 0o444 if inode == IMAGE_INO else stat.S_IFDIR | 0o755
        attributes.st_size = len(self._content)
        attributes.entry_timeout = attributes.attr_timeout = math.inf
        return attributes

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != b"image":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(IMAGE_INO, ctx)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


async def serve(content: str, mountpoint: str) -> None:
    pyfuse3.init(QuietStorage(Path(content).read_bytes()), mountpoint, {"fsname=quiet", "ro", "default_permissions"})
    try:
        print("ready", flush=True)
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, *sys.argv[1:])

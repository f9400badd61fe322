"""A FUSE file system with one file, ``image``: the base of storage that hangs or lies under an image."""

from __future__ import annotations

import errno
import math
import stat

import pyfuse3

IMAGE_INO = 2


class OneFileStorage(pyfuse3.Operations):
    """The kernel keeps names and attributes for ever."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFREG | 0o444 if inode == IMAGE_INO else stat.S_IFDIR | 0o755
        attributes.st_size = len(self.content)
        attributes.entry_timeout = attributes.attr_timeout = math.inf
        return attributes

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != b"image":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(IMAGE_INO, ctx)

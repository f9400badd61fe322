"""A file system that does nothing: the best that pyfuse3 allows, for comparison.

    python -m benchmarks.floor CONTENTS.json MOUNTPOINT

Same shape and same mount options as a mystfuse mount. It makes all attributes before mounting; reads give zeros, writes
are dropped, created files are counted (``f_files`` of statvfs) and listed in directories made since the mount.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from mystfuse.fuse import operations as ours
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.session import MAX_TASKS

CACHE_SECONDS = 86400
ZEROS = memoryview(mmap.mmap(-1, 1 << 20))
"""The most that the kernel asks for at once."""


def make_attributes(ino: int, mode: int, size: int) -> EntryAttributes:
    """Attributes that never expire; ``size`` in bytes."""
    attributes = EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = mode
    attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
    attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
    attributes.st_size = size
    attributes.st_blksize = 4096
    attributes.st_blocks = (size + 4095) // 4096 * 8
    attributes.entry_timeout = attributes.attr_timeout = CACHE_SECONDS
    return attributes


class Floor(pyfuse3.Operations):
    """Empty operations over a tree of given sizes.

    Args:
        sizes: bytes of each file, by path; directories are made for them.
    """

    supports_dot_lookup = True
    enable_writeback_cache = ours.Operations.enable_writeback_cache
    enable_acl = True

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self._attributes = {pyfuse3.ROOT_INODE: make_attributes(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, 4096)}
        self._names: dict[int, dict[bytes, EntryAttributes]] = {pyfuse3.ROOT_INODE: {}}
        self._next_ino = 11
        self._created = 0
        directories = {"": pyfuse3.ROOT_INODE}
        for path, size in sizes.items():
            parent = self._directory(os.path.dirname(path), directories)
            self._add(parent, os.path.basename(path).encode(), stat.S_IFREG | 0o644, size)
        self._first_made = self._next_ino
        self._listings = {ino: self._list(ino) for ino in self._names}
        self._absent = EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = CACHE_SECONDS

    def _directory(self, path: str, known: dict[str, int]) -> int:
        if path not in known:
            parent = self._directory(os.path.dirname(path), known)
            attributes = self._add(parent, os.path.basename(path).encode(), stat.S_IFDIR | 0o755, 4096)
            known[path] = attributes.st_ino
        return known[path]

    def _add(self, parent: int, name: bytes, mode: int, size: int) -> EntryAttributes:
        attributes = self._make(mode, size)
        self._names[parent][name] = attributes
        if stat.S_ISDIR(mode):
            self._names[attributes.st_ino] = {}
        return attributes

    def _make(self, mode: int, size: int) -> EntryAttributes:
        ino, self._next_ino = self._next_ino, self._next_ino + 1
        self._attributes[ino] = attributes = make_attributes(ino, mode, size)
        return attributes

    def _list(self, ino: int) -> list[tuple[bytes, EntryAttributes, int]]:
        return [(name, attributes, index) for index, (name, attributes) in enumerate(self._names[ino].items(), 1)]

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._names.get(parent_inode, {}).get(name, self._absent)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes[inode]

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        return self._attributes[inode]

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._created += 1
        attributes = self._add(parent_inode, name, mode, 0)
        return FileInfo(fh=attributes.st_ino, keep_cache=True), attributes

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | mode, 4096)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._names[parent_inode][name]

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._names[parent_inode][name]

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        rest = self._attributes[fh].st_size - off
        return ZEROS[: min(size, rest)] if rest > 0 else b""  # type: ignore[return-value]  # pyfuse3 takes any buffer

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        attributes = self._attributes[fh]
        attributes.st_size = max(attributes.st_size, off + len(buf))
        return len(buf)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if inode >= self._first_made:
            self._listings[inode] = self._list(inode)
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for name, attributes, next_id in itertools.islice(self._listings.get(fh, ()), start_id, None):
            if not pyfuse3.readdir_reply(token, name, attributes, next_id):
                return

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(pyfuse3.ENOATTR)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return []

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        data = StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 30
        data.f_files = self._created
        data.f_namemax = 255
        return data


def main(contents: str, mountpoint: str) -> None:
    """Serve until unmounted."""
    sizes: dict[str, int] = json.loads(Path(contents).read_text())
    options = MountOptions(mountpoint=mountpoint, fsname="floor").fuse_options() - {"subtype=mystfuse"}
    pyfuse3.init(Floor(sizes), mountpoint, options | {"subtype=floor"})
    try:
        trio.run(pyfuse3.main, 1, MAX_TASKS)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

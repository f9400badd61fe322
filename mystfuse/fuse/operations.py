"""pyfuse3's handlers: each FUSE request becomes a call to the volume. No file-system logic."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Sequence
from typing import Any

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

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_NAME_LEN, EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.ext2.xattr import split_name
from mystfuse.fuse.attributes import CACHE_SECONDS, absent
from mystfuse.fuse.control_directory import ControlSources
from mystfuse.fuse.control_directory_names import CONTROL_INO, CONTROL_NAME
from mystfuse.fuse.errnos import answers_errnos
from mystfuse.fuse.lookup_counts import LookupCounts
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.readdir import DirectoryReader, OpenDirectory
from mystfuse.fuse.requests import Requests, ext2_ino
from mystfuse.volume.volume import Volume

DIRECTORY_HANDLE = 1 << 62
"""Of a directory that the kernel lists without a handle; the inode's number is in it (fastpath/threads.c)."""


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    There is none for ``flush`` and ``fsync``, which would have nothing to write back: the kernel takes pyfuse3's ENOSYS
    for success, and does not ask again (docs/adr/0005).

    Args:
        status: gives the contents of ``.mystfuse/status.json``.
        on_init: called before INIT is answered.
        lookup_counts: shared with others who answer; its own if None.
        sources: of the control directory, besides the status.
    """

    enable_writeback_cache = False

    def __init__(
        self,
        volume: Volume,
        options: MountOptions,
        status: Callable[[], dict[str, Any]],
        groups_of: Callable[[int], frozenset[int]],
        on_init: Callable[[], None] = lambda: None,
        lookup_counts: LookupCounts | None = None,
        sources: ControlSources = ControlSources(),  # noqa: B008  # it has no state
    ) -> None:
        super().__init__()
        self._on_init = on_init
        self.enable_acl = options.enforces_acl
        self.supports_dot_lookup = options.handles
        self.ready = trio.Event()
        """Set while the kernel's INIT is answered."""
        self.requests = requests = Requests(volume, options, status, groups_of, lookup_counts, sources)
        """What it shares with ``DirectRequests``."""
        self._volume = volume
        self._options = options
        self._control, self._shown = requests.control, requests.shown
        self._lookup_counts = requests.lookup_counts
        self._directory_reader = DirectoryReader(volume, self._control, self._shown, self._lookup_counts)
        self._files, self._directories = requests.files, requests.directories

    @property
    def last_request(self) -> float:
        """When the latest request came, by the monotonic clock."""
        return self.requests.last_request

    @property
    def open_handles(self) -> int:
        """The number of open files and directories."""
        return len(self._files) + len(self._directories)

    def init(self) -> None:
        self._on_init()
        self.ready.set()

    @answers_errnos
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if len(name) > EXT2_NAME_LEN:
            raise FUSEError(errno.ENAMETOOLONG)
        if self._control:
            if parent_inode == pyfuse3.ROOT_INODE and name == CONTROL_NAME:
                self.requests.check_control(ctx.uid)
                return self._control.attributes(CONTROL_INO)
            if self._control.owns(parent_inode):
                self.requests.check_control(ctx.uid)
                return (await self._root() if name == b".." else self._control.lookup(parent_inode, name)) or absent(0)
        if name in (b".", b".."):
            return await self._lookup_handle(parent_inode, name)
        inode = await self._volume.lookup(ext2_ino(parent_inode), name)
        return absent(CACHE_SECONDS) if inode is None else self._entry(inode)

    async def _lookup_handle(self, number: int, name: bytes) -> EntryAttributes:
        """Answer for a file handle of NFS or open_by_handle_at(2): the kernel looks up ``.`` for an inode that it has
        forgotten, of any type, and ``..`` for the directory above a directory (fs/fuse/inode.c, fuse_get_dentry,
        fuse_get_parent). It compares the generations, and makes ESTALE of our ENOENT."""
        inode = None
        if number != EXT2_ROOT_INO:
            # The root, to which the kernel gives number 1.
            find = self._volume.find_inode if name == b"." else self._volume.find_parent
            inode = await find(ext2_ino(number))
        if inode is None:
            return absent(0)
        attributes = self._entry(inode)
        if inode.ino == EXT2_ROOT_INO:
            attributes.st_ino = pyfuse3.ROOT_INODE
        return attributes

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            ino = ext2_ino(number)
            if self._lookup_counts.forgotten(ino, count):
                self.requests.left(ino)
        await self.requests.release_unused()

    @answers_errnos
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if self._control and self._control.owns(inode):
            return self._control.attributes(inode)
        return self._shown.of(await self._volume.inode(ext2_ino(inode)))

    @answers_errnos
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._volume.target(ext2_ino(inode))

    @answers_errnos
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=self._shown.stored_uid(attr.st_uid) if fields.update_uid else None,
            gid=self._shown.stored_gid(attr.st_gid) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._shown.of(await self.requests.set_attributes(inode, changes, self._caller(ctx)))

    @answers_errnos
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, made = await self.requests.create(parent_inode, name, mode, flags, self._caller(ctx))
        return FileInfo(fh=handle, keep_cache=True), self._shown.of(made)

    @answers_errnos
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._shown.of(await self.requests.make(parent_inode, name, mode, self._caller(ctx), rdev))

    @answers_errnos
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._shown.of(await self.requests.make(parent_inode, name, mode, self._caller(ctx)))

    @answers_errnos
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._shown.of(await self.requests.make(parent_inode, name, mode, self._caller(ctx), target=target))

    @answers_errnos
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._shown.of(await self.requests.link(inode, new_parent_inode, new_name, self._caller(ctx)))

    @answers_errnos
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.requests.remove(parent_inode, name, is_rmdir=False)
        await self.requests.release_unused()

    @answers_errnos
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.requests.remove(parent_inode, name, is_rmdir=True)
        await self.requests.release_unused()

    @answers_errnos
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        caller = self._caller(ctx)
        await self.requests.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, caller)
        await self.requests.release_unused()

    @answers_errnos
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        is_control = self.requests.is_control(inode)
        handle = await self.requests.open(inode, flags, self._caller(ctx))
        return FileInfo(fh=handle, direct_io=is_control, keep_cache=True)

    @answers_errnos
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self.requests.read(fh, off, size)  # type: ignore[return-value]  # pyfuse3 takes any buffer

    @answers_errnos
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        # The kernel does not tell us who writes.
        return await self.requests.write(fh, off, buf)

    @answers_errnos
    async def release(self, fh: int) -> None:
        self.requests.close(fh)

    @answers_errnos
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if self._control and self._control.owns(inode):
            self.requests.check_control(ctx.uid)
            return self.requests.add(self._directories, OpenDirectory(inode))
        return self.requests.add(self._directories, OpenDirectory(ext2_ino(inode)))

    @answers_errnos
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        is_kept = bool(fh & DIRECTORY_HANDLE)
        directory = OpenDirectory(fh & ~DIRECTORY_HANDLE, is_kept) if is_kept else self._directories[fh]
        await self._directory_reader.reply(directory, start_id, token)

    @answers_errnos
    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    @answers_errnos
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        self.requests.check_xattr()
        split_name(name)
        value = (await self._xattrs(inode)).get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @answers_errnos
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        self.requests.check_xattr()
        names = await self._xattrs(inode)
        # Like the kernel, show trusted.* to root only (fs/ext4/xattr_trusted.c).
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]

    @answers_errnos
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        # pyfuse3 has looked at one of the flags itself.
        await self.requests.set_xattr(inode, name, value, 0, self._caller(ctx))

    @answers_errnos
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.requests.check_xattr()
        await self.requests.remove_xattr(inode, name, self._caller(ctx))

    @answers_errnos
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        # Those removed a moment ago count as free.
        await self.requests.release_unused()
        statistics = await self._volume.statistics()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = statistics.block_size
        data.f_blocks = statistics.blocks
        data.f_bfree = statistics.free_blocks
        data.f_bavail = statistics.available_blocks
        data.f_files = statistics.inodes
        data.f_ffree = data.f_favail = statistics.free_inodes
        data.f_namemax = EXT2_NAME_LEN
        return data

    async def _xattrs(self, inode: int) -> dict[bytes, bytes]:
        if self._control and self._control.owns(inode):
            return {}
        return await self._volume.xattrs(ext2_ino(inode))

    async def _root(self) -> EntryAttributes:
        attributes = self._shown.of(await self._volume.inode(EXT2_ROOT_INO))
        attributes.st_ino = pyfuse3.ROOT_INODE
        return attributes

    def _entry(self, inode: Inode) -> EntryAttributes:
        """Attributes for a reply that counts as a lookup of the inode."""
        self._lookup_counts.known(inode.ino)
        return self._shown.of(inode)

    def _caller(self, ctx: RequestContext) -> Caller:
        return self.requests.caller(ctx.uid, ctx.gid, ctx.pid)

"""pyfuse3's handlers: each FUSE request becomes a call to the volume. No file-system logic.

The kernel calls the root inode 1, EXT2 calls it 2; all other inode numbers are the same on both sides.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from mystfuse.fuse.attributes import CACHE_SECONDS, ShownAttributes, absent
from mystfuse.fuse.control_directory import ControlDirectory
from mystfuse.fuse.control_directory_names import CONTROL_INO, CONTROL_NAME, IMAGE_INO
from mystfuse.fuse.errnos import answers_errnos
from mystfuse.fuse.lookup_counts import LookupCounts
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.prefill import Prefill
from mystfuse.fuse.readdir import DirectoryReader, OpenDirectory
from mystfuse.volume.merged_image import MergedImage
from mystfuse.volume.read_ahead import Stream
from mystfuse.volume.volume import Volume

log = logging.getLogger(__name__)

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _OpenFile:
    ino: int
    caller: Caller
    """The user who opened it: the kernel does not tell us who writes."""
    stream: Stream
    is_direct: bool
    """Opened with O_DIRECT: a write must not be answered short, which the kernel would turn into EIO (fs/fuse/file.c,
    fuse_get_res_by_io)."""


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    There is none for ``flush`` and ``fsync``, which would have nothing to write back: the kernel takes pyfuse3's ENOSYS
    for success, and does not ask again (docs/adr/0005).

    Args:
        status: gives the contents of ``.mystfuse/status.json``.
        on_init: called before INIT is answered.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        volume: Volume,
        options: MountOptions,
        status: Callable[[], dict[str, Any]],
        groups_of: Callable[[int], frozenset[int]],
        on_init: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._on_init = on_init
        self.enable_acl = options.acl and options.xattr
        self.ready = trio.Event()
        """Set while the kernel's INIT is answered."""
        self.last_request = trio.current_time()
        self._volume = volume
        self._options = options
        self._control = ControlDirectory(status, volume.superblock.size, options.owner) if options.control else None
        self._shown = ShownAttributes(options, volume.superblock.block_size)
        self._groups_of = groups_of
        self._lookup_counts = LookupCounts()
        self._prefill = Prefill(volume, self._lookup_counts)
        self._directory_reader = DirectoryReader(volume, self._control, self._shown, self._lookup_counts)
        self._files: dict[int, _OpenFile | MergedImage | bytes] = {}
        """Open files by handle: of the file system, its merged image, or the contents of a control file."""
        self._directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1

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
                self._check_control(ctx)
                return self._control.attributes(CONTROL_INO)
            if self._control.owns(parent_inode):
                self._check_control(ctx)
                return (await self._root() if name == b".." else self._control.lookup(parent_inode, name)) or absent(0)
        if name in (b".", b".."):
            return await self._lookup_handle(parent_inode, name)
        inode = await self._volume.lookup(_ext2_ino(parent_inode), name)
        return absent(CACHE_SECONDS) if inode is None else self._entry(inode)

    async def _lookup_handle(self, number: int, name: bytes) -> EntryAttributes:
        """Answer for a file handle of NFS or open_by_handle_at(2): the kernel looks up ``.`` for an inode that it has
        forgotten, of any type, and ``..`` for the directory above a directory (fs/fuse/inode.c, fuse_get_dentry,
        fuse_get_parent). It compares the generations, and makes ESTALE of our ENOENT."""
        inode = None
        if number != EXT2_ROOT_INO:
            # The root, to which the kernel gives number 1.
            find = self._volume.find_inode if name == b"." else self._volume.find_parent
            inode = await find(_ext2_ino(number))
        if inode is None:
            return absent(0)
        attributes = self._entry(inode)
        if inode.ino == EXT2_ROOT_INO:
            attributes.st_ino = pyfuse3.ROOT_INODE
        return attributes

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            ino = _ext2_ino(number)
            if self._lookup_counts.forgotten(ino, count):
                self._prefill.forget(ino)
        await self._release_unused(*[_ext2_ino(number) for number, _ in inode_list])

    @answers_errnos
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if self._control and self._control.owns(inode):
            return self._control.attributes(inode)
        return self._shown.of(await self._volume.inode(_ext2_ino(inode)))

    @answers_errnos
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._volume.target(_ext2_ino(inode))

    @answers_errnos
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_ours(inode)
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=self._shown.stored_uid(attr.st_uid) if fields.update_uid else None,
            gid=self._shown.stored_gid(attr.st_gid) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._shown.of(await self._volume.set_attributes(_ext2_ino(inode), changes, self._caller(ctx)))

    @answers_errnos
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        caller = self._caller(ctx)
        inode = await self._make(parent_inode, name, mode, caller)
        # No await between the two: the kernel counts both or neither.
        return self._open_file(inode.ino, caller, flags), self._entry(inode)

    @answers_errnos
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._make(parent_inode, name, mode, self._caller(ctx), rdev))

    @answers_errnos
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._make(parent_inode, name, mode, self._caller(ctx)))

    @answers_errnos
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._entry(await self._make(parent_inode, name, mode, self._caller(ctx), target=target))

    @answers_errnos
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_ours(inode)
        self._check_name(new_parent_inode, new_name)
        parent = _ext2_ino(new_parent_inode)
        return self._entry(await self._volume.link(_ext2_ino(inode), parent, new_name, self._caller(ctx)))

    @answers_errnos
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._remove(parent_inode, name, is_rmdir=False)

    @answers_errnos
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._remove(parent_inode, name, is_rmdir=True)

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
        self._check_name(parent_inode_old, name_old)
        self._check_name(parent_inode_new, name_new)
        replaced = await self._volume.rename(
            _ext2_ino(parent_inode_old),
            name_old,
            _ext2_ino(parent_inode_new),
            name_new,
            flags,
            self._caller(ctx),
        )
        if replaced is not None:
            await self._release_unused(replaced.ino)

    @answers_errnos
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        is_writing = flags & os.O_ACCMODE != os.O_RDONLY
        if self._control and self._control.owns(inode):
            self._check_control(ctx)
            if is_writing or flags & os.O_TRUNC:
                raise FUSEError(errno.EPERM)
            content = await self._volume.open_image() if inode == IMAGE_INO else self._control.status()
            return FileInfo(fh=self._add(self._files, content), direct_io=True)
        caller = self._caller(ctx)
        ino = _ext2_ino(inode)
        if is_writing or flags & os.O_TRUNC:
            await self._volume.open_for_writing(ino, flags, caller)
        if not is_writing:
            self._prefill.fill(ino)
        return self._open_file(ino, caller, flags)

    @answers_errnos
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._files[fh]
        if isinstance(file, bytes):
            return file[off : off + size]
        if isinstance(file, MergedImage):
            return await file.read(off, size)  # type: ignore[return-value]  # pyfuse3 takes any buffer
        # The kernel reads ahead by more than a page, without saying so; when that fails, it asks for the needed pages
        # one by one (mm/filemap.c, filemap_update_page).
        is_ahead = size > PAGE_SIZE and not file.is_direct
        return await self._volume.read(file.ino, off, size, file.stream, is_ahead)  # type: ignore[return-value]  # pyfuse3 takes any buffer

    @answers_errnos
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._files[fh]
        assert isinstance(file, _OpenFile)
        return await self._volume.write(file.ino, off, buf, file.caller, file.is_direct)

    @answers_errnos
    async def release(self, fh: int) -> None:
        file = self._files.pop(fh)
        if isinstance(file, MergedImage):
            file.close()
        elif isinstance(file, _OpenFile):
            self._volume.close_stream(file.stream)
            self._lookup_counts.closed(file.ino)
            await self._release_unused(file.ino)

    @answers_errnos
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if self._control and self._control.owns(inode):
            self._check_control(ctx)
            return self._add(self._directories, OpenDirectory(inode))
        self._lookup_counts.opened(_ext2_ino(inode))
        return self._add(self._directories, OpenDirectory(_ext2_ino(inode)))

    @answers_errnos
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        await self._directory_reader.reply(self._directories[fh], start_id, token)

    @answers_errnos
    async def releasedir(self, fh: int) -> None:
        directory = self._directories.pop(fh)
        if not self._is_control(directory.ino):
            self._lookup_counts.closed(directory.ino)
            await self._release_unused(directory.ino)

    @answers_errnos
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        self._check_xattr()
        split_name(name)
        value = (await self._xattrs(inode)).get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @answers_errnos
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        self._check_xattr()
        names = await self._xattrs(inode)
        # Like the kernel, show trusted.* to root only (fs/ext4/xattr_trusted.c).
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]

    @answers_errnos
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._check_xattr()
        self._check_ours(inode)
        await self._volume.set_xattr(_ext2_ino(inode), name, value, self._caller(ctx))

    @answers_errnos
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_xattr()
        self._check_ours(inode)
        await self._volume.remove_xattr(_ext2_ino(inode), name, self._caller(ctx))

    @answers_errnos
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
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

    async def _make(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        self._check_name(parent, name)
        return await self._volume.create(_ext2_ino(parent), name, mode, caller, rdev, target)

    async def _remove(self, parent: int, name: bytes, is_rmdir: bool) -> None:
        self._check_name(parent, name)
        inode = await self._volume.remove(_ext2_ino(parent), name, is_rmdir)
        await self._release_unused(inode.ino)

    async def _release_unused(self, *inos: int) -> None:
        """Free the inodes without a name that the kernel neither knows nor has open."""
        unused = [ino for ino in inos if ino in self._volume.orphans and not self._lookup_counts.has(ino)]
        if unused:
            try:
                await self._volume.release(*unused)
            except Exception:
                log.exception("releasing inodes %s: internal error", unused)

    async def _xattrs(self, inode: int) -> dict[bytes, bytes]:
        if self._control and self._control.owns(inode):
            return {}
        return await self._volume.xattrs(_ext2_ino(inode))

    async def _root(self) -> EntryAttributes:
        attributes = self._shown.of(await self._volume.inode(EXT2_ROOT_INO))
        attributes.st_ino = pyfuse3.ROOT_INODE
        return attributes

    def _entry(self, inode: Inode) -> EntryAttributes:
        """Attributes for a reply that counts as a lookup of the inode."""
        self._lookup_counts.known(inode.ino)
        return self._shown.of(inode)

    def _caller(self, ctx: RequestContext) -> Caller:
        groups = functools.partial(self._groups_of, ctx.pid)
        return Caller(self._shown.stored_uid(ctx.uid), self._shown.stored_gid(ctx.gid), groups)

    def _open_file(self, ino: int, caller: Caller, flags: int) -> FileInfo:
        self._lookup_counts.opened(ino)
        if not caller.is_root:
            # The process that opened it may have ended by the time of a write.
            groups = caller.groups()
            caller = replace(caller, groups=lambda: groups)
        file = _OpenFile(ino, caller, Stream(), bool(flags & os.O_DIRECT))
        return FileInfo(fh=self._add(self._files, file), keep_cache=True)

    def _is_control(self, ino: int) -> bool:
        return self._control is not None and self._control.owns(ino)

    def _check_ours(self, ino: int) -> None:
        """Raise EPERM in the control directory, which is read-only."""
        if self._is_control(ino):
            raise FUSEError(errno.EPERM)

    def _check_name(self, parent: int, name: bytes) -> None:
        self._check_ours(parent)
        if len(name) > EXT2_NAME_LEN:
            raise FUSEError(errno.ENAMETOOLONG)
        if self._control and parent == pyfuse3.ROOT_INODE and name == CONTROL_NAME:
            raise FUSEError(errno.EPERM)

    def _check_xattr(self) -> None:
        if not self._options.xattr:
            raise FUSEError(errno.ENOSYS)

    def _check_control(self, ctx: RequestContext) -> None:
        if self._control and not self._control.may_use(ctx.uid):
            raise FUSEError(errno.EACCES)

    def _add(self, handles: dict[int, Any], value: Any) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        handles[handle] = value
        return handle


def _ext2_ino(inode: int) -> int:
    return EXT2_ROOT_INO if inode == pyfuse3.ROOT_INODE else inode

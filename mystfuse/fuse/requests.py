"""What all requests of a mount share, and those that change the file system: for ``Operations``, which pyfuse3 calls,
and for ``DirectRequests``.

Inode numbers are the kernel's unless ``ext2_ino`` has been applied: it calls the root inode 1, EXT2 calls it 2; all
others are the same on both sides.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyfuse3

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_NAME_LEN, EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.privileges import CAPABILITY, Loses
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.attributes import ShownAttributes
from mystfuse.fuse.control_directory import ControlDirectory, ControlSources
from mystfuse.fuse.control_directory_names import BASE_INO, CONTROL_NAME, IMAGE_INO, WRITTEN_INO
from mystfuse.fuse.lookup_counts import LookupCounts, OwnLookupCounts
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.readdir import OpenDirectory
from mystfuse.volume.base_image import BaseImage
from mystfuse.volume.file_reader import Reader
from mystfuse.volume.merged_image import MergedImage
from mystfuse.volume.volume import Volume
from mystfuse.volume.written_file import WrittenFile

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_MAX_READERS = 64

log = logging.getLogger(__name__)

_State = MergedImage | BaseImage | WrittenFile
"""A state of the file system, or a part of it, as one file."""


@dataclass(slots=True)
class OpenFile:
    """A handle of a file of the file system."""

    ino: int
    caller: Caller
    """The user who opened it."""
    reader: Reader
    is_direct: bool
    """Opened with O_DIRECT: a write must not be answered short, which the kernel would turn into EIO (fs/fuse/file.c,
    fuse_get_res_by_io)."""


class Requests:
    """The state of one mount's requests.

    Args:
        status: gives the contents of ``.mystfuse/status.json``.
        groups_of: returns the supplementary groups of a process.
        lookup_counts: shared with others who answer; its own if None.
        sources: of the control directory, besides the status.
    """

    def __init__(
        self,
        volume: Volume,
        options: MountOptions,
        status: Callable[[], dict[str, Any]],
        groups_of: Callable[[int], frozenset[int]],
        lookup_counts: LookupCounts | None = None,
        sources: ControlSources = ControlSources(),  # noqa: B008  # it has no state
    ) -> None:
        self.last_request = time.monotonic()
        """When the latest request came, by the monotonic clock."""
        self.volume = volume
        self.control: ControlDirectory | None = None
        if options.control:
            self.control = ControlDirectory(status, volume.superblock.size, options.owner, sources)
        self.shown = ShownAttributes(options, volume.superblock.block_size)
        self._has_xattr = options.xattr
        self.lookup_counts: LookupCounts = lookup_counts or OwnLookupCounts()
        self.files: dict[int, OpenFile | _State | bytes] = {}
        """Open files by handle: of the file system, one of its states, or the contents of a control file."""
        self.directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1
        self._groups_of = groups_of
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        """Of files that are read without a state of their own."""
        self.caller = functools.lru_cache(maxsize=64)(self._caller)
        self._has_lost_capability = 0
        """The inode from which ``security.capability`` was removed last, by that name."""
        self._left: list[int] = []
        """Orphans, which ``release_unused`` frees unless they are in use."""

    def _caller(self, uid: int, gid: int, pid: int) -> Caller:
        """The user whose process sends a request."""
        shown = self.shown
        return Caller(shown.stored_uid(uid), shown.stored_gid(gid), lambda: self._groups_of(pid))

    def is_control(self, ino: int) -> bool:
        """Whether an inode belongs to the control directory."""
        return self.control is not None and self.control.owns(ino)

    def control_file_size(self, handle: int) -> int | None:
        """Bytes of an open file of the control directory; None if the handle is of something else."""
        file = self.files.get(handle)
        return len(file) if isinstance(file, bytes) else file.size if isinstance(file, _State) else None

    def check_ours(self, ino: int) -> None:
        """Raise EPERM in the control directory, which is read-only."""
        if self.is_control(ino):
            raise OSError(errno.EPERM, "the control directory is read-only")

    def check_name(self, parent: int, name: bytes) -> None:
        """Raise EPERM or ENAMETOOLONG where nobody may make, rename or remove ``name``."""
        self.check_ours(parent)
        if len(name) > EXT2_NAME_LEN:
            raise OSError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")
        if self.control and parent == pyfuse3.ROOT_INODE and name == CONTROL_NAME:
            raise OSError(errno.EPERM, "the control directory cannot be changed")

    def check_control(self, uid: int) -> None:
        """Raise EACCES if user ``uid`` may not look into the control directory."""
        if self.control and not self.control.may_use(uid):
            raise OSError(errno.EACCES, f"the control directory is not for user {uid}")

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        flags: int,
        caller: Caller,
        umask: int = 0,
        names_writers: bool = False,
    ) -> tuple[int, Inode]:
        """Make and open a regular file; returns its handle and inode. See ``open`` for ``names_writers``."""
        inode = await self.make(parent, name, mode, caller, umask=umask)
        # No await between the two: the kernel counts both or neither.
        return self._open_file(inode.ino, caller, flags, names_writers), inode

    async def create_nameless(
        self, parent: int, mode: int, umask: int, flags: int, caller: Caller
    ) -> tuple[int, Inode]:
        """Make and open a regular file without a name; returns its handle and inode."""
        self.check_ours(parent)
        inode = self._known(await self.volume.create_nameless(ext2_ino(parent), mode, umask, caller))
        return self._open_file(inode.ino, caller, flags, names_writers=True), inode

    async def make(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b"", umask: int = 0
    ) -> Inode:
        """Make a file, directory, symbolic link or special file, and count that the kernel hears of it.

        Args:
            umask: permissions to take away where there is no default ACL; 0 if the kernel has taken them.
        """
        self.check_name(parent, name)
        return self._known(await self.volume.create(ext2_ino(parent), name, mode, caller, rdev, target, umask))

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        """Give an inode another name, and count that the kernel hears of it."""
        self.check_ours(ino)
        self.check_name(parent, name)
        return self._known(await self.volume.link(ext2_ino(ino), ext2_ino(parent), name, caller))

    def _known(self, inode: Inode) -> Inode:
        self.lookup_counts.known(inode.ino)
        return inode

    async def remove(self, parent: int, name: bytes, is_rmdir: bool) -> None:
        """Remove a name."""
        self.check_name(parent, name)
        self.left((await self.volume.remove(ext2_ino(parent), name, is_rmdir)).ino)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """Rename, as renameat2(2) with ``flags`` does."""
        self.check_name(parent, name)
        self.check_name(new_parent, new_name)
        replaced = await self.volume.rename(ext2_ino(parent), name, ext2_ino(new_parent), new_name, flags, caller)
        if replaced is not None:
            self.left(replaced.ino)

    async def set_attributes(
        self, ino: int, changes: AttributeChanges, caller: Caller, loses: Loses = Loses.BY_CALLER
    ) -> Inode:
        """Change mode, owner, times or size."""
        self.check_ours(ino)
        inode = await self.volume.set_attributes(ext2_ino(ino), changes, caller, loses)
        self._has_lost_capability = 0
        return inode

    async def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        """Set an extended attribute, as setxattr(2) with ``flags`` does."""
        self.check_ours(ino)
        self.check_xattr()
        await self.volume.set_xattr(ext2_ino(ino), name, value, caller, flags)

    def check_xattr(self) -> None:
        """Raise ENOSYS where the mount shows no extended attributes: the kernel does not ask again."""
        if not self._has_xattr:
            raise OSError(errno.ENOSYS, "the mount shows no extended attributes")

    async def remove_xattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute."""
        self.check_ours(ino)
        await self.volume.remove_xattr(ext2_ino(ino), name, caller)
        if name == CAPABILITY:
            self._has_lost_capability = ino

    def loses_by_nothing(self, ino: int, caller: Caller) -> Loses:
        """What a file loses by a request that changes no attribute, which the kernel sends for the privileges that we
        are to take (fs/fuse/dir.c, fuse_setattr): for chown(2) of neither owner; before a write by a caller without
        CAP_FSETID; and before any write, when it has itself removed the capabilities. For root that is not the same."""
        return Loses.CAPABILITIES if self._has_lost_capability == ino and caller.is_root else Loses.ALL

    async def open(
        self,
        ino: int,
        flags: int,
        caller: Caller,
        loses: Loses = Loses.BY_CALLER,
        names_writers: bool = False,
    ) -> int:
        """Open a file, as open(2) with ``flags`` does; returns its handle.

        Args:
            loses: the privileges that the file loses if it is truncated.
            names_writers: whether ``write`` will be told who writes.
        """
        is_changing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if self.control and self.control.owns(ino):
            self.check_control(caller.uid)
            if is_changing:
                self.check_ours(ino)
            return self.add(self.files, await self._open_control_file(ino))
        ino = ext2_ino(ino)
        if is_changing:
            await self.volume.open_for_writing(ino, flags, caller, loses)
        return self._open_file(ino, caller, flags, names_writers)

    async def _open_control_file(self, ino: int) -> _State | bytes:
        assert self.control is not None
        if ino == IMAGE_INO:
            return await self.volume.open_image()
        if ino == WRITTEN_INO:
            return await self.volume.open_written()
        if ino == BASE_INO:
            return self.volume.open_base()
        refresh = self.control.refresher(ino)
        if refresh is not None:
            self.volume.check_may_wait()
            await refresh()
        return self.control.contents(ino)

    def _open_file(self, ino: int, caller: Caller, flags: int, names_writers: bool) -> int:
        if not caller.is_root:
            # The process that opened it may have ended by the time of a write. Where writers have names, only pages
            # that were changed in a mapping are written in its name, and only reserved blocks matter.
            needs_groups = not names_writers or self.volume.superblock.s_def_resgid
            groups = caller.groups() if needs_groups else frozenset()
            caller = replace(caller, groups=lambda: groups)
        return self.add(self.files, OpenFile(ino, caller, Reader(), bool(flags & os.O_DIRECT)))

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """Read from an open file."""
        file = self.files[handle]
        if isinstance(file, bytes):
            return file[offset : offset + size]
        if isinstance(file, _State):
            return await file.read(offset, size)
        return await self._read(file.ino, offset, size, file.reader, file.is_direct)

    async def read_inode(self, ino: int, offset: int, size: int, is_direct: bool) -> bytes | memoryview:
        """Read from a file whose handle has no state.

        Args:
            is_direct: whether a program gets these bytes, and not the page cache.
        """
        reader = self._readers.pop(ino, None) or Reader()
        self._readers[ino] = reader
        if len(self._readers) > _MAX_READERS:
            self._readers.popitem(last=False)
        return await self._read(ext2_ino(ino), offset, size, reader, is_direct)

    async def _read(self, ino: int, offset: int, size: int, reader: Reader, is_direct: bool) -> bytes | memoryview:
        # The kernel reads ahead by more than a page, without saying so; when that fails, it asks for the needed pages
        # one by one (mm/filemap.c, filemap_update_page).
        return await self.volume.read(ino, offset, size, reader, is_ahead=size > PAGE_SIZE and not is_direct)

    async def write(
        self,
        handle: int,
        offset: int,
        data: bytes | memoryview,
        caller: Caller | None = None,
        loses: Loses = Loses.BY_CALLER,
    ) -> int:
        """Write to an open file; returns how many bytes were written.

        Args:
            caller: who writes; None for the user who opened it.
            loses: the privileges that the file loses.
        """
        file = self.files[handle]
        assert isinstance(file, OpenFile)
        return await self.volume.write(file.ino, offset, data, caller or file.caller, file.is_direct, loses)

    def close(self, handle: int) -> None:
        """The kernel has no use for a file's handle any more."""
        file = self.files.pop(handle)
        if isinstance(file, _State):
            file.close()

    def add(self, handles: dict[int, Any], value: Any) -> int:
        """Give something that has been opened a handle, among ``files`` or ``directories``."""
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        handles[handle] = value
        return handle

    def left(self, ino: int) -> None:
        """An inode has one use less: a name, or that the kernel knows it."""
        if ino in self.volume.orphans:
            self._left.append(ino)

    @property
    def has_unused(self) -> bool:
        """Whether ``release_unused`` may have something to do."""
        return bool(self._left)

    async def release_unused(self) -> None:
        """Free the inodes without a name that the kernel does not know."""
        left, self._left = self._left, []
        unused = [ino for ino in left if ino in self.volume.orphans and not self.lookup_counts.has(ino)]
        if unused:
            try:
                await self.volume.release(*unused)
            except Exception:
                log.exception("releasing inodes %s: internal error", unused)


def ext2_ino(ino: int) -> int:
    """The file system's number for an inode number of the kernel."""
    return EXT2_ROOT_INO if ino == pyfuse3.ROOT_INODE else ino

"""A file system on a device, with an overlay of written blocks: the asynchronous side, on which FUSE and the API stand.

Operations of the ext2 core go through a ``Runner``; file data goes beside it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from errno import ENOSPC, EROFS
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import CorruptFilesystem, FormatError, MystfuseError
from mystfuse.ext2 import link_and_unlink, write, xattr_changes
from mystfuse.ext2.block_map import Run, Stretch
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.caller import ROOT, Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.create import create, create_nameless
from mystfuse.ext2.directory import Entry, listing_size
from mystfuse.ext2.filesystem import FileSystem, Statistics
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.inode_flags import check_may_write
from mystfuse.ext2.privileges import Loses
from mystfuse.ext2.rename import DirectoryName, rename
from mystfuse.ext2.setattr import AttributeChanges, set_attributes
from mystfuse.ext2.superblock import Superblock
from mystfuse.overlay.encrypted_store import OverlayStore
from mystfuse.overlay.overlay import Overlay
from mystfuse.system.workers import Workers
from mystfuse.volume.base_image import BaseImage
from mystfuse.volume.damaged_paths import CACHE_BYTES, DamagedPaths
from mystfuse.volume.file_reader import FileReader, Reader
from mystfuse.volume.merged_image import MergedImage
from mystfuse.volume.orphan_list import free_orphans
from mystfuse.volume.recovery import recover
from mystfuse.volume.releases import Releases
from mystfuse.volume.runner import Runner
from mystfuse.volume.written_file import WrittenFile

log = logging.getLogger(__name__)

_LISTING_ATTEMPTS = 2
"""How often a listing during which something was committed is tried in two steps, before it is made in one."""
RECOVERY_BYTES = 1 << 30
"""What a journal may take for a read-only volume: mke2fs makes none that is longer, unless it is told to."""
_ANCESTORS_AT_ONCE = 100
"""Levels of directories after which other tasks run."""

P = ParamSpec("P")
T = TypeVar("T")


class Volume:
    """A file system on a device. Use ``Volume.open``.

    ``release`` must be called for every inode in ``orphans`` once it is not in use any more.
    """

    def __init__(
        self,
        superblock: Superblock,
        device: Device,
        overlay: Overlay | None,
        workers: Workers | None = None,
        io_timeout: float = math.inf,
        is_read_only: bool = False,
    ) -> None:
        self.superblock = superblock
        self.cache = BlockCache(device, superblock.block_size)
        self.written = overlay
        """What lies over the image: what has been written, or came from its journal. None if there is nothing."""
        self.overlay = None if is_read_only else overlay
        """The same; None for a read-only volume."""
        self.recovered_bytes = 0 if overlay is None else overlay.written
        """What recovery has written, in whole blocks."""
        self._device = device
        self._filesystem = FileSystem(superblock)
        self._runner = Runner(
            self._filesystem,
            self.cache,
            self.written,
            lambda: 0 if self.overlay is None else self.overlay.room,
            io_timeout,
        )
        self._io_timeout = io_timeout
        self._workers = workers or Workers(0)
        self._files = FileReader(self._filesystem, self._runner, device, self.written, self._workers)
        self._nameless: set[int] = set()
        """Orphans that have never had a name, and may get one."""
        self.changes_made = 0
        """Operations for callers until now that may have changed something; releases of removed files do not count."""
        self._moves = 0
        """Renames across directories until now."""
        self._releases = Releases(self._runner, self._filesystem.orphans)

    @classmethod
    async def open(
        cls,
        device: Device,
        overlay_limit: int | None = None,
        workers: Workers | None = None,
        store_file: int | None = None,
        io_timeout: float = math.inf,
    ) -> Volume:
        """Read the superblock, and replay the journal if it needs it: into the overlay, or up to 1 GiB of memory for a
        read-only volume.

        Args:
            overlay_limit: bytes of memory for written blocks; None for a read-only volume, which one with features that
                mystfuse can only read is in any case.
            workers: threads for long ranges; None for none.
            store_file: descriptor of a file for written blocks beyond that (``encrypted_store.open_store_file``);
                the volume's own from now on.
            io_timeout: seconds until waiting for that file's disk, or for other operations' storage, is an error.

        Raises:
            FormatError: not an EXT2 file system, one with unsupported features, or a corrupt one.
            IntegrityError, ImageReadError: as the device does.
            MystfuseError: there is no room for what the journal has.
        """
        if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            raise FormatError(f"{device.size} bytes are too few for an EXT2 file system")
        (data,) = await device.read([Extent(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)])
        superblock = Superblock.parse(data)
        superblock.check_fits(device.size)
        overlay = None
        if overlay_limit is not None and superblock.only_for_reading:
            features = ", ".join(superblock.only_for_reading)
            log.warning("the mount is read-only: mystfuse does not write to a file system that uses %s", features)
        elif overlay_limit is not None:
            store = None if store_file is None else OverlayStore(store_file, superblock.block_size)
            overlay = Overlay(superblock.block_size, overlay_limit, store, io_timeout)
        if superblock.needs_recovery:
            overlay = overlay or Overlay(superblock.block_size, RECOVERY_BYTES)
            superblock = await recover(device, superblock, overlay, io_timeout)
        if superblock.has_errors:
            log.warning("the file system is marked as having errors: run e2fsck on the image it was made from")
        is_read_only = overlay_limit is None or bool(superblock.only_for_reading)
        volume = cls(superblock, device, overlay, workers, io_timeout, is_read_only)
        if volume.overlay is not None:
            await free_orphans(volume._filesystem, volume._runner)
            volume.recovered_bytes = volume.overlay.written
        return volume

    @property
    def orphans(self) -> set[int]:
        """Inodes that have no name any more and wait for ``release``."""
        return self._filesystem.orphans

    @property
    def changes(self) -> int:
        """A number that changes whenever something has changed."""
        return self._runner.commits

    async def run(
        self, operation: Callable[Concatenate[FileSystem, Blocks, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation of the core that changes nothing, for which there is no method here.

        Raises:
            OSError, MystfuseError: as the operation does.
        """
        return await self._runner.run(partial(operation, self._filesystem), *args, **kwargs)

    async def inode(self, ino: int) -> Inode:
        """The inode with number ``ino``; raises CorruptFilesystem, IntegrityError or ImageReadError."""
        return await self._runner.run(self._filesystem.inode, ino)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode of ``name`` in directory ``parent``; None if there is no such name."""
        return await self._runner.run(self._filesystem.lookup, parent, name)

    async def find_inode(self, ino: int) -> Inode | None:
        """The inode with the number of a file handle; None if no file has that number."""
        return await self._runner.run(self._filesystem.find_inode, ino)

    async def find_parent(self, ino: int) -> Inode | None:
        """The directory above a directory with the number of a file handle; None if there is none (any more)."""
        return await self._runner.run(self._filesystem.find_parent, ino)

    async def dots(self, ino: int) -> tuple[int, int]:
        """Of a directory: (the inode number of the directory above, the offset at which its listing ends)."""

        def dots(blocks: Blocks) -> tuple[int, int]:
            directory = self._filesystem.inode(blocks, ino)
            return self._filesystem.parent(blocks, directory), listing_size(self.superblock, directory)

        return await self._runner.run(dots)

    async def entries(self, ino: int, offset: int, max_entries: int) -> tuple[list[tuple[Entry, Inode | None]], int]:
        """Entries of a directory from byte ``offset`` on, each with its inode, or None where reading it failed.

        Returns:
            The entries, and the offset to go on from: ``listing_size`` when there are no more.
        """
        for _ in range(_LISTING_ATTEMPTS):
            changes = self.changes
            # Two operations, so that misses of the inodes do not repeat the work for the entries.
            entries, next_offset = await self._runner.run(self._filesystem.entries, ino, offset, max_entries)
            inodes = await self._runner.run(self._filesystem.inodes, [entry.ino for entry in entries])
            if changes == self.changes:
                return list(zip(entries, inodes, strict=True)), next_offset
        return await self._runner.run(self._filesystem.listing, ino, offset, max_entries)

    async def listing_size(self, ino: int) -> int:
        """The offset at which the listing of a directory ends."""
        return listing_size(self.superblock, await self.inode(ino))

    async def missing_inode(self, ino: int) -> MystfuseError:
        """The error for which ``entries`` gave an entry without its inode."""
        try:
            await self.inode(ino)
        except MystfuseError as error:
            return error
        return CorruptFilesystem(f"an entry refers to inode {ino}, the root directory")

    async def target(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        filesystem = self._filesystem
        return await self._runner.run(lambda blocks: filesystem.target(blocks, filesystem.inode(blocks, ino)))

    async def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes of an inode by full name."""
        filesystem = self._filesystem
        return await self._runner.run(lambda blocks: filesystem.xattrs(blocks, filesystem.inode(blocks, ino)))

    async def statistics(self) -> Statistics:
        """What statfs(2) reports."""
        return await self._runner.run(self._filesystem.statistics)

    async def read(
        self, ino: int, offset: int, length: int, reader: Reader | None = None, is_ahead: bool = False
    ) -> bytes | memoryview:
        """Up to ``length`` bytes of a regular file from byte ``offset`` on; fewer only at its end.

        Args:
            reader: whose earlier reads failed or not.
            is_ahead: whether the ``reader`` may not need all of it, and reads the needed part again
                when this fails: damage is reported only then.

        Raises:
            IsADirectoryError: not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        return await self._files.read(ino, offset, length, reader, is_ahead)

    async def stretch(self, ino: int, offset: int) -> Stretch:
        """Whether a regular file has data or a hole at byte ``offset``, and its minimum length in bytes: 0 at its end.

        Raises:
            IsADirectoryError: not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        return await self._runner.run(self._stretch, ino, offset)

    async def file_runs(self, ino: int, first: int, count: int) -> list[Run]:
        """Where ``count`` blocks of a regular file are, from its block ``first`` on, none of them past its end; raises
        as ``stretch``."""
        return await self._runner.run(self._files.runs, ino, first, count)

    async def birth_time(self, ino: int) -> int | None:
        """When an inode was made, in nanoseconds since the epoch; None if it has no room to say so."""
        return await self._runner.run(self._filesystem.inode_table.birth_time, ino)

    def check_may_wait(self) -> None:
        """To be called before an await that waits, in what ``now`` may run; raises NotNow there."""
        self._runner.check_may_wait()

    def now(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, which calls methods of this class except ``read`` and ``release``, to its end without
        waiting for anything.

        Raises:
            NotNow: it would have to wait. Nothing has happened, or, of a long truncation, a part that does no harm to
                doing it again.
            OSError, MystfuseError: as the coroutine does.
        """
        return self._runner.now(work)

    async def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b"", umask: int = 0
    ) -> Inode:
        """Make a file, directory, symbolic link or special file; see ``ext2.create``."""
        return await self.change(0, caller, create, parent, name, mode, rdev, target, umask)

    async def create_nameless(self, parent: int, mode: int, umask: int, caller: Caller) -> Inode:
        """Make a regular file without a name; see ``ext2.create``. It is in ``orphans``."""
        inode = await self.change(0, caller, create_nameless, parent, mode, umask)
        self._nameless.add(inode.ino)
        return inode

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        """Give an inode another name, or its first; see ``ext2.link_and_unlink``."""
        inode = await self.change(0, caller, link_and_unlink.link, ino, parent, name, self._nameless)
        self._nameless.discard(ino)
        return inode

    async def remove(self, parent: int, name: bytes, is_rmdir: bool) -> Inode:
        """Remove a name; see ``ext2.link_and_unlink``. The inode may be in ``orphans`` then."""
        inode = await self.change(0, ROOT, link_and_unlink.remove, parent, name, is_rmdir)
        self._runner.names.forget_paths()
        return inode

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> Inode | None:
        """Rename; see ``ext2.rename``. The inode that was replaced may be in ``orphans`` then."""
        old, new = DirectoryName(old_parent, old_name), DirectoryName(new_parent, new_name)
        if old_parent == new_parent:
            replaced = await self.change(0, caller, rename, old, new, flags)
            self._runner.names.forget_paths()
            return replaced
        while True:
            moves = self._moves
            old = old._replace(ancestors=await self._ancestors(old_parent))
            new = new._replace(ancestors=await self._ancestors(new_parent))
            try:
                replaced = await self.change(0, caller, self._move, moves, old, new, flags)
            except _Moved:
                continue
            # Nothing has been awaited since the commit.
            self._moves += 1
            self._runner.names.forget_paths()
            return replaced

    def _move(self, change: Change, moves: int, old: DirectoryName, new: DirectoryName, flags: int) -> Inode | None:
        # The directories above a directory must not change between check and move. Not by a lock: while storage hangs
        # for one rename, others go on.
        if moves != self._moves:
            raise _Moved
        return rename(change, old, new, flags)

    async def write(
        self,
        ino: int,
        offset: int,
        data: bytes | memoryview,
        caller: Caller,
        whole: bool = False,
        loses: Loses = Loses.BY_CALLER,
    ) -> int:
        """Write to a regular file; see ``ext2.write.write``. Returns how many bytes were written.

        Args:
            whole: nothing is written where there is no room for all of it; with a store, for all of a piece of
                ``Overlay.most_at_once``.
            loses: the privileges that the file loses.
        """
        view = memoryview(data)
        step = None if self.overlay is None else self.overlay.most_at_once
        if step is None:
            return await self.change(ino, caller, write.write, ino, offset, view, whole, loses)
        if step < len(view):
            self._runner.check_may_wait()
        written, step = 0, min(step, len(view))
        while written < len(view):
            piece = view[written : written + step]
            try:
                count = await self.change(ino, caller, write.write, ino, offset + written, piece, whole, loses)
            except (MystfuseError, OSError) as error:
                if error.errno == ENOSPC and step > self.superblock.block_size and not whole:
                    # Blocks of a full store can be replaced little by little.
                    step = max(step // 2, self.superblock.block_size)
                    continue
                if whole or not written:
                    raise
                break
            written += count
            if count < len(piece):
                break
        return written

    async def set_attributes(
        self, ino: int, changes: AttributeChanges, caller: Caller, loses: Loses = Loses.BY_CALLER
    ) -> Inode:
        """Change mode, owner, times or size; see ``ext2.setattr``."""
        inode, is_done = await self.change(ino, caller, set_attributes, ino, changes, loses)
        while not is_done:
            self._runner.check_may_wait()
            await trio.lowlevel.checkpoint()
            rest = AttributeChanges(size=changes.size)
            inode, is_done = await self.change(ino, caller, set_attributes, ino, rest, loses)
        return inode

    async def open_for_writing(self, ino: int, flags: int, caller: Caller, loses: Loses = Loses.BY_CALLER) -> None:
        """Check that a file may be opened for writing or truncation, as ``flags`` of open(2) say; O_TRUNC truncates it,
        by which it ``loses`` privileges.

        Raises:
            OSError: EROFS; EPERM as ``check_may_write``.
        """
        if self.overlay is None:
            raise OSError(EROFS, "the volume is read-only")
        check_may_write(await self.inode(ino), flags)
        if flags & os.O_TRUNC:
            await self.set_attributes(ino, AttributeChanges(size=0), caller, loses)

    async def set_xattr(self, ino: int, name: bytes, value: bytes, caller: Caller, flags: int = 0) -> None:
        """Set an extended attribute; see ``ext2.xattr_changes.set_xattr``."""
        await self.change(0, caller, xattr_changes.set_xattr, ino, name, value, flags)

    async def remove_xattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute; see ``ext2.xattr_changes.remove_xattr``."""
        await self.change(0, caller, xattr_changes.remove_xattr, ino, name)

    async def release(self, *inos: int) -> None:
        """Free orphans that are not in use any more, and their blocks; see ``Releases.release``."""
        self._nameless.difference_update(inos)
        await self._releases.release(*inos)

    async def name_damaged(self) -> None:
        """Look for the paths of inodes that turn out to be damaged, and log them, until cancelled."""
        cache = BlockCache(self._device, self.superblock.block_size, CACHE_BYTES)
        runner = Runner(self._filesystem, cache, self.written, lambda: 0, self._io_timeout)
        await DamagedPaths(self._filesystem, runner, self._runner.names).run()

    async def open_image(self) -> MergedImage:
        """The whole file system in its present state, to be read as one file; see ``MergedImage``."""
        self._runner.check_may_wait()
        overlay = Overlay(self.superblock.block_size, 0) if self.written is None else self.written
        return await MergedImage.open(self._filesystem, overlay, self.cache, self._device, self._workers)

    async def open_written(self) -> WrittenFile:
        """What has been written until now, to be read as one file; see ``WrittenFile``. Raises as ``open_image``."""
        return await WrittenFile.of(await self.open_image(), self.superblock.block_size)

    def open_base(self) -> BaseImage:
        """The file system without what has been written, to be read as one file."""
        return BaseImage(self._device, self.superblock.size, self._workers, self._runner.names)

    async def change(
        self,
        ino: int,
        caller: Caller,
        operation: Callable[Concatenate[Change, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation of the core that changes something, perhaps the contents of inode ``ino``, for ``caller``.

        Raises:
            OSError, MystfuseError: as the operation does; EROFS.
        """
        if self.overlay is None:
            raise OSError(EROFS, "the volume is read-only")
        began: float | None = None
        while True:
            try:
                result = await self._runner.change(ino, caller, operation, *args, **kwargs)
                # It has happened: for want of memory it may go uncounted, but not fail.
                with suppress(MemoryError):
                    self.changes_made += 1
                return result
            except OSError as error:
                if error.errno != ENOSPC or not self._releases.may_free_more:
                    raise
                no_space = error
            self._runner.check_may_wait()
            if began is None:
                began = trio.current_time()
            if not await self._releases.wait_for_one(began):
                raise no_space

    async def _ancestors(self, ino: int) -> frozenset[int]:
        """The directories above directory ``ino``, itself included, up to the root."""
        found: set[int] = set()
        while ino not in found:
            found.add(ino)
            ino = await self._runner.run(self._parent_of, ino)
            if len(found) % _ANCESTORS_AT_ONCE == 0:
                self._runner.check_may_wait()
                await trio.lowlevel.checkpoint()
        return frozenset(found)

    def _parent_of(self, blocks: Blocks, ino: int) -> int:
        return self._filesystem.parent(blocks, self._filesystem.directory(blocks, ino))

    def _stretch(self, blocks: Blocks, ino: int, offset: int) -> Stretch:
        inode = self._filesystem.regular_file(blocks, ino)
        if offset >= inode.size:
            return Stretch(False, 0)
        first, within = divmod(offset, self.superblock.block_size)
        is_data, length = self._filesystem.map_stretch(blocks, inode, first)
        return Stretch(is_data, min(length * self.superblock.block_size - within, inode.size - offset))


class _Moved(Exception):
    """Directories have been moved since a rename checked the directories above them."""

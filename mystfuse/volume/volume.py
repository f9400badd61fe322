"""A file system on a device, with what has been written since: the asynchronous side. What FUSE and the API stand on.

Operations of the ext2 core go through a ``Runner``; file data goes beside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from errno import ENOSPC, EROFS
from itertools import groupby
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import trio

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.device import Batch, Device, Extent, read_now
from mystfuse.errors import CorruptFilesystem, FormatError, IntegrityError, MystfuseError, StorageTimeout
from mystfuse.ext2 import file_contents, link_and_unlink, orphans, xattr_changes
from mystfuse.ext2.block_map import Run, Stretch
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.caller import ROOT, Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.create import create
from mystfuse.ext2.directory import Entry
from mystfuse.ext2.filesystem import FileSystem, Statistics
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.rename import DirectoryName, rename
from mystfuse.ext2.setattr import AttributeChanges, set_attributes
from mystfuse.ext2.superblock import Superblock
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.store import OverlayStore
from mystfuse.system.workers import INLINE_BYTES, Workers
from mystfuse.volume.file_maps import FileMaps
from mystfuse.volume.merged_image import MergedImage
from mystfuse.volume.read_ahead import ReadAhead, Stream
from mystfuse.volume.runner import Runner

log = logging.getLogger(__name__)

_LISTING_ATTEMPTS = 2
"""Times that a listing during which something was committed is tried in two steps, before it is made in one."""
_READ_ATTEMPTS = 2
"""Times that a read whose blocks change under it is tried before writers of the file are held back."""
_ANCESTORS_AT_ONCE = 100
"""Directories above one another that are gone through before others get their turn."""
_RELEASE_PATIENCE = 0.05
"""Seconds that an operation that finds no space waits for removed files that are about to be released: the kernel tells
us a moment after close(2) or unlink(2) has returned."""
_LONG_RELEASE_PATIENCE = 5.0
"""Seconds while a release is under way: storage may hang for it."""

P = ParamSpec("P")
T = TypeVar("T")


class Volume:
    """A file system on a device. Use ``Volume.open``.

    ``release`` must be called for every inode in ``orphans`` when nobody uses it any more.
    """

    def __init__(
        self,
        superblock: Superblock,
        device: Device,
        overlay: Overlay | None,
        workers: Workers | None = None,
        io_timeout: float = math.inf,
    ) -> None:
        self.superblock = superblock
        self.cache = BlockCache(device, superblock.block_size)
        self.overlay = overlay
        """None when nothing can be written."""
        self._device = device
        self._filesystem = FileSystem(superblock)
        self._maps = FileMaps(self._filesystem)
        self._runner = Runner(
            self._filesystem,
            self.cache,
            self.overlay,
            lambda: 0 if self.overlay is None else self.overlay.room,
            io_timeout,
        )
        self._workers = workers or Workers()
        self._read_ahead = ReadAhead(self._begin, lambda: self.changes, self._workers)
        self._moves = 0
        """Renames across directories until now."""
        self._released = trio.Event()
        self._being_released: set[int] = set()
        """Orphans that nobody uses, and that are freed now or next."""
        self._deferred: dict[int, None] = {}
        """Orphans that nobody uses, and that could not be released; the one that was tried last comes last."""
        self._corrupt: set[int] = set()
        """Orphans that cannot be released, and that nobody tries again."""

    @classmethod
    async def open(
        cls,
        device: Device,
        overlay_limit: int | None = None,
        workers: Workers | None = None,
        store_file: int | None = None,
        io_timeout: float = math.inf,
    ) -> Volume:
        """Read the superblock.

        Args:
            overlay_limit: bytes that what is written may take up in memory; None for a read-only volume.
            workers: threads for what is long; own ones if None.
            store_file: descriptor of a file for what memory has no room for (``overlay_store.open_store_file``); the
                volume's own from now on.
            io_timeout: seconds until that file's disk not answering, or others who wait for storage, are an error.

        Raises:
            FormatError: not an EXT2 file system, one with unsupported features, or a corrupt one.
            IntegrityError, ImageReadError: as the device does.
        """
        if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            raise FormatError(f"{device.size} bytes are too few for an EXT2 file system")
        (data,) = await device.read([Extent(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)])
        superblock = Superblock.parse(data)
        if superblock.size > device.size:
            raise FormatError(
                f"the EXT2 file system has {superblock.size} bytes, but only {device.size} are there (truncated?)"
            )
        if superblock.has_errors:
            log.warning("the file system is marked as having errors: run e2fsck on the image it was made from")
        overlay = None
        if overlay_limit is not None:
            store = None if store_file is None else OverlayStore(store_file, superblock.block_size)
            overlay = Overlay(superblock.block_size, overlay_limit, store, io_timeout)
        return cls(superblock, device, overlay, workers, io_timeout)

    @property
    def orphans(self) -> set[int]:
        """Inodes that have no name any more and wait for ``release``."""
        return self._filesystem.orphans

    @property
    def changes(self) -> int:
        """A number that is another one whenever something has changed."""
        return self._runner.commits

    async def inode(self, ino: int) -> Inode:
        """The inode with number ``ino``; raises CorruptFilesystem, IntegrityError or ImageReadError."""
        return await self._runner.run(self._filesystem.inode, ino)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """What ``name`` in directory ``parent`` refers to; None if there is no such name."""
        return await self._runner.run(self._filesystem.lookup, parent, name)

    async def find_inode(self, ino: int) -> Inode | None:
        """The inode with the number of a file handle; None if no file has that number."""
        return await self._runner.run(self._filesystem.find_inode, ino)

    async def find_parent(self, ino: int) -> Inode | None:
        """The directory above a directory with the number of a file handle; None if there is none (any more)."""
        return await self._runner.run(self._filesystem.find_parent, ino)

    async def dots(self, ino: int) -> tuple[int, int]:
        """Of a directory: (the inode number of the directory above, its size in bytes)."""

        def dots(blocks: Blocks) -> tuple[int, int]:
            directory = self._filesystem.inode(blocks, ino)
            return self._filesystem.parent(blocks, directory), directory.size

        return await self._runner.run(dots)

    async def entries(self, ino: int, offset: int, max_entries: int) -> tuple[list[tuple[Entry, Inode | None]], int]:
        """Entries of a directory from byte ``offset`` on, each with its inode, or None where that cannot be had.

        Returns:
            The entries, and the offset to go on from: the directory's size when there are no more.
        """
        for _ in range(_LISTING_ATTEMPTS):
            changes = self.changes
            # Two operations, so that the entries are not gone through again for every miss of the inodes.
            entries, next_offset = await self._runner.run(self._filesystem.entries, ino, offset, max_entries)
            inodes = await self._runner.run(self._filesystem.inodes, [entry.ino for entry in entries])
            if changes == self.changes:
                return list(zip(entries, inodes, strict=True)), next_offset
        return await self._runner.run(self._filesystem.listing, ino, offset, max_entries)

    async def target(self, ino: int) -> bytes:
        """The target of a symbolic link."""

        def target(blocks: Blocks) -> bytes:
            return self._filesystem.target(blocks, self._filesystem.inode(blocks, ino))

        return await self._runner.run(target)

    async def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes of an inode by full name."""

        def xattrs(blocks: Blocks) -> dict[bytes, bytes]:
            return self._filesystem.xattrs(blocks, self._filesystem.inode(blocks, ino))

        return await self._runner.run(xattrs)

    async def statistics(self) -> Statistics:
        """What statfs(2) reports."""
        return await self._runner.run(self._filesystem.statistics)

    async def read(
        self, ino: int, offset: int, length: int, stream: Stream | None = None, is_ahead: bool = False
    ) -> bytes | memoryview:
        """Up to ``length`` bytes of a regular file from byte ``offset`` on; fewer only at its end.

        Args:
            stream: of a reader who may go on from there; see ``close_stream``.
            is_ahead: whether the reader (with a ``stream``) may not need all of it, and asks again for what they need
                when it fails: damage is told only then.

        Raises:
            IsADirectoryError: not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        if stream is not None:
            ahead = await self._read_ahead.read(stream, ino, offset, length)
            if ahead is not None:
                return ahead
        quietly = is_ahead and stream is not None and not stream.has_failed(offset, length)
        try:
            return await self._read(ino, offset, length, quietly)
        except IntegrityError:
            if quietly and stream is not None:
                stream.failed = range(offset, offset + length)
            raise

    async def _read(self, ino: int, offset: int, length: int, quietly: bool) -> bytes | memoryview:
        recalled: _Recalled = {}
        for _ in range(_READ_ATTEMPTS):
            data = await self._try_read(ino, offset, length, recalled, quietly)
            if data is not None:
                return data
        with self._runner.hold(ino):
            data = await self._try_read(ino, offset, length, recalled, quietly)
        if data is None:
            raise CorruptFilesystem(f"inode {ino}: its blocks change, and not by writes to it")
        return data

    def close_stream(self, stream: Stream) -> None:
        """The reader will not come back."""
        self._read_ahead.drop(stream)

    def _begin(self, ino: int, offset: int, length: int) -> _Piece | None:
        """Begin to fetch a range of a file, if nobody has to be waited for; else None. Whatever is wrong will be found
        again by who reads it."""
        try:
            segments = self._runner.run_now(self._locate, ino, offset, length)
            if segments is None or _tickets(segments):
                return None
            batch = self._device.begin([segment.extent for segment in segments if segment.content is None])
        except (MystfuseError, OSError):
            return None
        return None if batch is None else _Piece(segments, batch)

    def read_now(self, ino: int, longest: int) -> bytes | memoryview | None:
        """The whole of a regular file of up to ``longest`` bytes, if nobody has to be waited for; else None. Whatever
        is wrong with it will be found again by who reads it."""

        def locate(blocks: Blocks) -> list[_Segment] | None:
            if self._maps.as_of(self.changes).inode(blocks, ino).size > longest:
                return None
            return self._locate(blocks, ino, 0, longest)

        try:
            segments = self._runner.run_now(locate)
            if segments is None or _tickets(segments):
                return None
            fetched = read_now(self._device, [segment.extent for segment in segments if segment.content is None])
        except (MystfuseError, OSError):
            return None
        return None if fetched is None else _join(segments, fetched)

    async def stretch(self, ino: int, offset: int) -> Stretch:
        """Whether a regular file has data or a hole at byte ``offset``, and for how many bytes at least that goes on:
        0 at its end.

        Raises:
            IsADirectoryError: not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        return await self._runner.run(self._stretch, ino, offset)

    async def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        """Make a file, directory, symbolic link or special file; see ``ext2.create``."""
        return await self._change(0, caller, create, parent, name, mode, rdev, target)

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        """Give an inode another name; see ``ext2.link_and_unlink``."""
        return await self._change(0, caller, link_and_unlink.link, ino, parent, name)

    async def remove(self, parent: int, name: bytes, is_rmdir: bool) -> Inode:
        """Remove a name; see ``ext2.link_and_unlink``. The inode may be in ``orphans`` then."""
        return await self._change(0, ROOT, link_and_unlink.remove, parent, name, is_rmdir)

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> Inode | None:
        """Rename; see ``ext2.rename``. The inode that was replaced may be in ``orphans`` then."""
        old, new = DirectoryName(old_parent, old_name), DirectoryName(new_parent, new_name)
        if old_parent == new_parent:
            return await self._change(0, caller, rename, old, new, flags)
        while True:
            moves = self._moves
            old = old._replace(ancestors=await self._ancestors(old_parent))
            new = new._replace(ancestors=await self._ancestors(new_parent))
            try:
                replaced = await self._change(0, caller, self._move, moves, old, new, flags)
            except _Moved:
                continue
            # Nothing has been awaited since the commit.
            self._moves += 1
            return replaced

    def _move(self, change: Change, moves: int, old: DirectoryName, new: DirectoryName, flags: int) -> Inode | None:
        # What is above a directory must stay so between looking and moving. Not by a lock: while storage hangs for one,
        # others go on.
        if moves != self._moves:
            raise _Moved
        return rename(change, old, new, flags)

    async def write(self, ino: int, offset: int, data: bytes, caller: Caller, whole: bool = False) -> int:
        """Write to a regular file; see ``ext2.file_contents.write``. Returns how many bytes were written.

        Args:
            whole: nothing is written where there is no room for all of it; with a store, for all of a piece of
                ``Overlay.most_at_once``.
        """
        view = memoryview(data)
        step = None if self.overlay is None else self.overlay.most_at_once
        if step is None:
            return await self._change(ino, caller, file_contents.write, ino, offset, view, whole)
        written, step = 0, min(step, len(view))
        while written < len(view):
            piece = view[written : written + step]
            try:
                count = await self._change(ino, caller, file_contents.write, ino, offset + written, piece, whole)
            except (MystfuseError, OSError) as error:
                if error.errno == ENOSPC and step > self.superblock.block_size and not whole:
                    # Little by little, what is in a full store can be replaced.
                    step = max(step // 2, self.superblock.block_size)
                    continue
                if whole or not written:
                    raise
                break
            written += count
            if count < len(piece):
                break
        return written

    async def set_attributes(self, ino: int, changes: AttributeChanges, caller: Caller) -> Inode:
        """Change mode, owner, times or size; see ``ext2.setattr``."""
        inode, is_done = await self._change(ino, caller, set_attributes, ino, changes)
        while not is_done:
            await trio.lowlevel.checkpoint()
            rest = AttributeChanges(size=changes.size)
            inode, is_done = await self._change(ino, caller, set_attributes, ino, rest)
        return inode

    async def set_xattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an extended attribute; see ``ext2.xattr_changes.set_xattr``."""
        await self._change(0, caller, xattr_changes.set_xattr, ino, name, value)

    async def remove_xattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute; see ``ext2.xattr_changes.remove_xattr``."""
        await self._change(0, caller, xattr_changes.remove_xattr, ino, name)

    async def release(self, *inos: int) -> None:
        """Free orphans that nobody uses any more, and all they hold.

        What cannot be freed now, for want of a block of the image, of memory or of room in the overlay, is tried again
        when another inode has been freed: what stood in its way may be gone. The first one that fails again ends that,
        so a release fails twice at most, however many are waiting. When storage does not answer for one, the rest waits
        untried: each would take as long.
        """
        is_new = {ino: ino not in self._deferred for ino in inos if ino not in self._being_released}
        self._being_released |= is_new.keys()
        self._corrupt -= is_new.keys()
        for ino in is_new:
            self._deferred.pop(ino, None)
        try:
            for ino in is_new:
                is_free = await self._release(ino, is_new[ino])
                while is_free and self._deferred:
                    await trio.lowlevel.checkpoint()
                    is_free = await self._release_deferred()
        except StorageTimeout:
            pass
        finally:
            rest = [ino for ino in is_new if ino in self._being_released]
            self._deferred.update(dict.fromkeys(rest))
            self._being_released.difference_update(rest)
            self._tell_released()

    async def _release_deferred(self) -> bool:
        """Try one of the orphans again that could not be freed; False if it, or none, is free."""
        ino = next(iter(self._deferred), None)
        if ino is None:
            return False
        self._being_released.add(ino)
        del self._deferred[ino]
        return await self._release(ino, is_new=False)

    async def _release(self, ino: int, is_new: bool) -> bool:
        """Free an orphan of those being released; False if it is not free.

        Raises:
            StorageTimeout: it is deferred, as others should be.
        """
        try:
            while not await self._runner.change(ino, ROOT, orphans.release, ino):
                self._tell_released()
                await trio.lowlevel.checkpoint()
            return True
        except CorruptFilesystem as error:
            log.warning("removed inode %d cannot be freed: %s", ino, error)
            self._corrupt.add(ino)
            return False
        except (MystfuseError, OSError, MemoryError) as error:
            if is_new:
                log.warning("removed inode %d cannot be freed yet: %s", ino, error or "no memory left")
            self._deferred[ino] = None
            if isinstance(error, StorageTimeout):
                raise
            return False
        finally:
            self._being_released.remove(ino)
            self._tell_released()

    def _tell_released(self) -> None:
        self._released.set()
        self._released = trio.Event()

    async def open_image(self) -> MergedImage:
        """The whole file system as it is now, to be read as one file; see ``MergedImage``."""
        overlay = Overlay(self.superblock.block_size, 0) if self.overlay is None else self.overlay
        return await MergedImage.open(self._filesystem, overlay, self.cache, self._device)

    async def _change(
        self,
        ino: int,
        caller: Caller,
        operation: Callable[Concatenate[Change, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation that changes something, the contents of inode ``ino`` perhaps."""
        if self.overlay is None:
            raise OSError(EROFS, "the volume is read-only")
        began: float | None = None
        while True:
            try:
                return await self._runner.change(ino, caller, operation, *args, **kwargs)
            except OSError as error:
                # Nothing is to be expected of those that could not be released.
                if error.errno != ENOSPC or len(self.orphans) <= len(self._deferred) + len(self._corrupt):
                    raise
                no_space = error
            if began is None:
                began = trio.current_time()
            # A release that is under way gives something back with every step.
            patience = _LONG_RELEASE_PATIENCE if self._being_released else _RELEASE_PATIENCE
            released = self._released
            with trio.move_on_at(began + patience) as waiting:
                await released.wait()
            if waiting.cancelled_caught:
                raise no_space

    async def _ancestors(self, ino: int) -> frozenset[int]:
        """The directories that directory ``ino`` is in, itself included, up to the root."""
        found: set[int] = set()
        while ino not in found:
            found.add(ino)
            ino = await self._runner.run(self._parent_of, ino)
            if len(found) % _ANCESTORS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return frozenset(found)

    def _parent_of(self, blocks: Blocks, ino: int) -> int:
        return self._filesystem.parent(blocks, self._filesystem.directory(blocks, ino))

    async def _try_read(
        self, ino: int, offset: int, length: int, recalled: _Recalled, quietly: bool
    ) -> bytes | memoryview | None:
        """Read a range of a file; None if its blocks have become others while they were fetched.

        Args:
            recalled: blocks that have been fetched from the store; more are added.
            quietly: see ``Device.read``.
        """
        segments = await self._runner.run(self._locate, ino, offset, length, quietly)
        wanted = [segment.extent for segment in segments if segment.content is None]
        fetched: list[memoryview] = []
        if not wanted:
            return _join(segments, fetched)
        changes = self.changes
        tickets = _tickets(segments)
        if tickets:
            wanted = [segment.extent for segment in segments if segment.is_in_image]
        if wanted:
            batch = self._device.begin(wanted)
            if batch is None:
                fetched = await self._device.read(wanted, quietly)
            else:
                if length > INLINE_BYTES:
                    await self._workers.run(batch.run)
                else:
                    batch.run()
                at_once = batch.result()
                if at_once is None:
                    # Not its buffers as well, for as long as storage takes.
                    del batch
                    at_once = await self._device.read(wanted, quietly)
                fetched = at_once
        await self._recall(tickets, recalled)
        there, parts = wanted, fetched
        while changes != self.changes:
            segments = await self._runner.run(self._locate, ino, offset, length, quietly)
            changes = self.changes
            now_wanted = [segment.extent for segment in segments if segment.is_in_image]
            found = [_find_part(extent, there, parts) for extent in now_wanted]
            fetched = [part for part in found if part is not None]
            if len(fetched) < len(now_wanted):
                return None
            # They may have gone to the store meanwhile, which is no change: each does so once.
            tickets = _tickets(segments)
            await self._recall(tickets, recalled)
        if tickets:
            if not recalled.keys() >= set(tickets):
                return None
            segments = [_with_recalled(segment, recalled) for segment in segments]
        return _join(segments, fetched)

    async def _recall(self, tickets: list[int], recalled: _Recalled) -> None:
        missing = [ticket for ticket in tickets if ticket not in recalled]
        if missing:
            assert self.overlay is not None
            recalled.update(await self.overlay.recall(missing))

    def _locate(self, blocks: Blocks, ino: int, offset: int, length: int, quietly: bool = False) -> list[_Segment]:
        """Where a range of a file is, and a copy of what of it has been written, as of now."""
        if quietly:
            with blocks.speculating():
                return self._locate(blocks, ino, offset, length)
        maps = self._maps.as_of(self.changes)
        inode = maps.inode(blocks, ino)
        block_size = self.superblock.block_size
        stop = min(offset + length, inode.size)
        if stop <= offset:
            return []
        first, last = offset // block_size, (stop - 1) // block_size
        segments: list[_Segment] = []
        end = first * block_size
        for run in maps.runs(blocks, inode, first, last + 1 - first):
            for piece, content, tickets in self._split_run(run):
                start, end = end, end + piece.length * block_size
                low, high = max(start, offset), min(end, stop)
                if content is not None and high - low < len(content):
                    content = content[low - start : high - start]
                extent = Extent(piece.physical * block_size + low - start, high - low)
                segments.append(_Segment(extent, content, tickets))
        return segments

    def _stretch(self, blocks: Blocks, ino: int, offset: int) -> Stretch:
        inode = self._filesystem.regular_file(blocks, ino)
        if offset >= inode.size:
            return Stretch(False, 0)
        first, within = divmod(offset, self.superblock.block_size)
        is_data, length = self._filesystem.map_stretch(blocks, inode, first)
        return Stretch(is_data, min(length * self.superblock.block_size - within, inode.size - offset))

    def _split_run(self, run: Run) -> list[tuple[Run, bytes | None, list[int]]]:
        """A run of blocks in pieces that are wholly written, with what was written or its tickets, or wholly as in the
        image."""
        if not run.physical:
            return [(run, bytes(run.length * self.superblock.block_size), [])]
        overlay = self.overlay
        numbers = range(run.physical, run.physical + run.length)
        if overlay is None or not overlay.blocks or not any(number in overlay for number in numbers):
            return [(run, None, [])]
        pieces: list[tuple[Run, bytes | None, list[int]]] = []
        for is_written, group in groupby(numbers, overlay.__contains__):
            members = list(group)
            if not is_written:
                pieces.append((Run(members[0], len(members)), None, []))
                continue
            first = members[0]
            for is_ticket, some in groupby((overlay.get(number) or 0 for number in members), _is_ticket):
                contents = list(some)
                piece = Run(first, len(contents))
                first += len(contents)
                if is_ticket:
                    pieces.append((piece, None, [ticket for ticket in contents if isinstance(ticket, int)]))
                else:
                    pieces.append((piece, b"".join(part for part in contents if not isinstance(part, int)), []))
        return pieces


class _Moved(Exception):
    """Directories have been moved since somebody looked at what is above them."""


class _Segment(NamedTuple):
    """A part of a file: in the image, at ``extent``, in memory, or in the overlay's store."""

    extent: Extent
    content: bytes | None
    tickets: Sequence[int] = ()
    """Of its blocks, if they are in the store."""

    @property
    def is_in_image(self) -> bool:
        return self.content is None and not self.tickets


_Recalled = dict[int, bytes | MystfuseError]
"""By ticket, what came from the overlay's store."""


def _is_ticket(block: bytes | int) -> bool:
    return isinstance(block, int)


def _tickets(segments: list[_Segment]) -> list[int]:
    return [ticket for segment in segments for ticket in segment.tickets]


def _with_recalled(segment: _Segment, recalled: _Recalled) -> _Segment:
    """A segment with what came from the store.

    Raises:
        MystfuseError: a block of it cannot be had.
    """
    if not segment.tickets:
        return segment
    blocks: list[bytes] = []
    for ticket in segment.tickets:
        block = recalled[ticket]
        if isinstance(block, MystfuseError):
            raise block
        blocks.append(block)
    content = b"".join(blocks)
    start = segment.extent.offset % len(blocks[0])
    return segment._replace(content=content[start : start + segment.extent.length], tickets=())


class _Piece:
    """A range of a file on its way; see ``read_ahead.Piece``."""

    def __init__(self, segments: list[_Segment], batch: Batch) -> None:
        self.length = sum([segment.extent.length for segment in segments])
        self.run = batch.run
        self._segments = segments
        self._batch = batch
        self._parts: list[bytes | memoryview] | None = None

    def read(self, start: int, end: int) -> bytes | memoryview | None:
        if self._parts is None:
            fetched = self._batch.result()
            if fetched is None:
                return None
            pieces = iter(fetched)
            self._parts = [next(pieces) if segment.content is None else segment.content for segment in self._segments]
        found: list[bytes | memoryview] = []
        position = 0
        for part in self._parts:
            low, high = max(start - position, 0), min(end - position, len(part))
            if low < high:
                found.append(memoryview(part)[low:high])
            position += len(part)
        return found[0] if len(found) == 1 else b"".join(found)


def _join(segments: list[_Segment], fetched: list[memoryview]) -> bytes | memoryview:
    """The contents of segments: what was fetched, and what was in memory."""
    pieces = iter(fetched)
    parts = [next(pieces) if segment.content is None else segment.content for segment in segments]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _find_part(extent: Extent, wanted: list[Extent], fetched: list[memoryview]) -> memoryview | None:
    """The bytes of an extent, if they are among those that were fetched."""
    for other, data in zip(wanted, fetched, strict=True):
        if other.offset <= extent.offset and extent.end <= other.end:
            start = extent.offset - other.offset
            return data[start : start + extent.length]
    return None

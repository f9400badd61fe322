"""Runs operations of the ext2 core: fetches the blocks they miss, runs them again, commits what they change."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.errors import CorruptFilesystem, ImageReadError, IntegrityError, StorageTimeout
from mystfuse.ext2.blocks import Blocks, BlocksMissing, Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.overlay.space import OverlayBusy, OverlayFull
from mystfuse.volume.damage_names import DamageNames

MAX_RUNS = 40
"""How often an operation may miss blocks and be run again. A rename can meet five inodes, each with its descriptor and
table block, three levels of indirection and a block of its own, and the bitmaps; a lookup needs a third of that."""
MAX_PINNED_BYTES = 64 << 20
FEW_PINNED_BYTES = 4 << 20
"""Bytes that an operation may pin beside any number of others."""
MAX_LARGE = 8
"""Operations at once that pin more."""

P = ParamSpec("P")
T = TypeVar("T")


class NotNow(Exception):
    """Raised inside ``Runner.now`` where an operation would have to wait."""


class Runner:
    """Runs operations over the image's blocks and those written since.

    Args:
        filesystem: the operations' caches.
        room: returns how many blocks of data may still be written.
        io_timeout: seconds that an operation that needs many blocks waits for others that do, at most.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        cache: BlockCache,
        written: Overlay | Snapshot | None,
        room: Callable[[], int],
        io_timeout: float = math.inf,
    ) -> None:
        self.names = DamageNames(filesystem)
        """Reports damage with what it belongs to."""
        self.commits = 0
        """Transactions that changed something."""
        self._filesystem = filesystem
        self._cache = cache
        self._written = written
        self._room = room
        self._large = trio.CapacityLimiter(MAX_LARGE)
        self._io_timeout = io_timeout
        self._held: dict[int, tuple[int, trio.Event]] = {}
        """Held inodes: the number of readers, and an event for when there is none any more."""
        self._may_wait = True

    def now(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end without waiting for anything.

        Args:
            work: awaits nothing that waits, but behind ``check_may_wait``.

        Raises:
            NotNow: it would have to wait, for storage, for room or for another task; it has ended there.
        """
        self._may_wait = False
        try:
            work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self._may_wait = True
        work.close()
        raise RuntimeError(f"{work!r} has waited")

    def check_may_wait(self) -> None:
        """To be called before each await that waits. Raises NotNow inside ``now``."""
        if not self._may_wait:
            raise NotNow

    @contextmanager
    def hold(self, ino: int) -> Iterator[None]:
        """Make changes of the contents of inode ``ino`` wait until the block ends. Several readers may hold it."""
        holders, freed = self._held.get(ino) or (0, trio.Event())
        self._held[ino] = holders + 1, freed
        try:
            yield
        finally:
            holders, freed = self._held.pop(ino)
            if holders > 1:
                self._held[ino] = holders - 1, freed
            else:
                freed.set()

    def is_held(self, ino: int) -> bool:
        """Whether a reader holds an inode, so that changes of its contents wait."""
        return ino in self._held

    def blocks(self) -> Blocks:
        """The blocks in memory, for one run of an operation that changes nothing."""
        return Blocks(self._cache.get, self._written)

    async def run(self, operation: Callable[Concatenate[Blocks, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes nothing. There is no await between its end and the return.

        Raises:
            OSError, MystfuseError: as the operation does.
        """
        blocks = self.blocks()
        misses: _Misses | None = None
        try:
            while True:
                try:
                    return operation(blocks, *args, **kwargs)
                except BlocksMissing as error:
                    missing = error
                misses = misses or _Misses(self, blocks)
                blocks.restart()
                await misses.fetch(missing)
        finally:
            if misses is not None:
                misses.close()

    async def change(
        self,
        ino: int,
        caller: Caller,
        operation: Callable[Concatenate[Change, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation that changes something, and commit its changes: all of them or none.

        Args:
            ino: the inode whose contents it changes, 0 for none; it waits while a reader holds it.
            caller: the user on whose behalf it runs.

        Cancellation, like any error, comes before the commit or not at all.

        Raises:
            OSError: as the operation does; ENOSPC when the overlay is full.
            MystfuseError: as the operation does.
        """
        assert self._written is not None
        cache = self._cache
        transaction = Transaction(cache.block_size, cache.get, self._written, self._room)
        change = Change(self._filesystem, transaction, caller, time.time_ns())
        misses: _Misses | None = None
        budget: int | None = None
        try:
            while True:
                while ino in self._held:
                    self.check_may_wait()
                    await self._held[ino][1].wait()
                wait: Awaitable[None] | None = None
                try:
                    result = operation(change, *args, **kwargs)
                    transaction.seal()
                    self._commit(transaction)
                    return result
                except BlocksMissing as missing:
                    misses = misses or _Misses(self, transaction)
                    wait = misses.fetch(missing)
                except OverlayBusy as busy:
                    self.check_may_wait()
                    wait = self._written.make_room(busy)
                except OverlayFull as error:
                    budget = _smaller_budget(transaction, error)
                try:
                    if wait is not None:
                        await wait
                except OverlayFull as error:
                    budget = _smaller_budget(transaction, error)
                transaction.restart(budget)
        finally:
            if misses is not None:
                misses.close()

    def _commit(self, transaction: Transaction) -> None:
        """Commit an operation's changes, and update the caches: all of it, or nothing and an error. The memory that
        orphans need is taken before; caches are dropped if there is none to update it.

        Raises:
            OverlayFull, OverlayBusy, OSError, MemoryError: as the store of written blocks does.
        """
        assert self._written is not None
        commits, orphans = self.commits + 1, self._filesystem.orphans
        new_orphans = transaction.orphaned - orphans
        try:
            orphans |= new_orphans
            self._written.commit(transaction.changed, transaction.freed, transaction.gives_back, transaction.runs)
        except BaseException:
            orphans -= new_orphans
            raise
        # From here on nothing may fail.
        if transaction.changed or transaction.freed or transaction.runs:
            self.commits = commits
        orphans -= transaction.released
        try:
            for action in transaction.on_commit:
                action()
        except MemoryError:
            self._filesystem.forget_all()


def _smaller_budget(transaction: Transaction, error: OverlayFull) -> int:
    """The budget of the next run: how much space metadata takes shows only when there is too little for all of it."""
    budget = transaction.spent - error.missing
    if not transaction.is_divisible or budget <= 0:
        raise error
    return budget


class _Misses:
    """Fetches what one operation misses, for a bounded number of runs. ``close`` it with the operation."""

    def __init__(self, runner: Runner, blocks: Blocks) -> None:
        self._runner = runner
        self._cache = runner._cache
        self._written = runner._written
        self._blocks = blocks
        self._is_large = False
        self._runs = 0

    def close(self) -> None:
        """The operation has ended."""
        if self._is_large:
            self._runner._large.release_on_behalf_of(self)

    async def fetch(self, missing: BlocksMissing) -> None:
        """Fetch and pin the blocks that the operation missed.

        Raises:
            StorageTimeout: storage does not answer.
            CorruptFilesystem: the operation misses block after block, or needs too many: a broken file system leads it.
        """
        blocks = self._blocks
        count = len(blocks.pinned) + len(blocks.recalled) + len(missing.numbers) + len(missing.ahead)
        if count * self._cache.block_size > FEW_PINNED_BYTES and not self._is_large:
            # No operation that holds an inode waits here: the map of a read is small in any image.
            self._runner.check_may_wait()
            try:
                with trio.fail_after(self._runner._io_timeout):
                    await self._runner._large.acquire_on_behalf_of(self)
            except trio.TooSlowError:
                raise StorageTimeout("other operations that need many blocks wait for storage, which hangs") from None
            self._is_large = True
        if not self.fetch_now(missing):
            self._runner.check_may_wait()
            wanted, versions = self._split(missing.numbers | missing.ahead)
            if versions and self._written is not None:
                blocks.recalled.update(await self._written.recall(versions))
            if wanted:
                await self._fetch(wanted & missing.numbers, wanted, missing)
        elif missing.progress:
            # Long work: let other tasks run.
            self._runner.check_may_wait()
            await trio.lowlevel.checkpoint()
        self._check_pinned()

    def fetch_now(self, missing: BlocksMissing) -> bool:
        """Fetch and pin the blocks that the operation missed, if that needs no waiting; False if it does, or if one of
        them is damaged or unreadable.

        Raises:
            CorruptFilesystem: the operation misses block after block, or needs too many: a broken file system leads it.
        """
        blocks = self._blocks
        if missing.progress:
            blocks.pinned.clear()
            blocks.damaged.clear()
            blocks.suspect.clear()
            blocks.recalled.clear()
            self._runs = 0
        self._runs += 1
        wanted, versions = self._split(missing.numbers | missing.ahead)
        is_known = not (
            blocks.pinned.keys().isdisjoint(wanted & missing.numbers) and blocks.recalled.keys().isdisjoint(versions)
        )
        if is_known:
            raise RuntimeError(f"an operation missed {sorted(missing.numbers)[:4]} again: it cannot end")
        if self._runs > MAX_RUNS:
            raise CorruptFilesystem(
                f"block {min(missing.numbers)} is one of too many that lead an operation from one to the next"
            )
        if versions and self._written is not None:
            recalled = self._written.recall_now(versions)
            if recalled is None:
                return False
            blocks.recalled.update(recalled)
        try:
            fetched = self._cache.fetch_now(wanted) if wanted else {}
        except ImageReadError:
            return False
        blocks.pinned.update(fetched or {})
        self._check_pinned()
        return fetched is not None

    def _split(self, numbers: frozenset[int]) -> tuple[frozenset[int], list[int]]:
        """Of the missing blocks: those of the image, and the versions of those in the overlay's store."""
        get = self._written.get if self._written else lambda number: None
        written = {number: block for number in numbers if (block := get(number)) is not None}
        return numbers - written.keys(), [block for block in written.values() if isinstance(block, int)]

    def _check_pinned(self) -> None:
        count = len(self._blocks.pinned) + len(self._blocks.recalled)
        if count * self._cache.block_size > MAX_PINNED_BYTES:
            raise CorruptFilesystem(f"an operation needs over {MAX_PINNED_BYTES} bytes of metadata")

    async def _fetch(self, needed: frozenset[int], wanted: frozenset[int], missing: BlocksMissing) -> None:
        """Fetch ``needed`` blocks, and if possible all ``wanted`` ones. A damaged block must not fail those fetched
        with it: then each needed one is fetched by itself, and its error is kept."""
        blocks, quietly = self._blocks, missing.speculative
        if quietly or len(wanted) > 1:
            try:
                blocks.pinned.update(await self._cache.fetch(wanted, quietly=True))
                return
            except StorageTimeout:
                raise
            except (IntegrityError, ImageReadError) as error:
                if quietly and len(wanted) == 1:
                    blocks.suspect.update(dict.fromkeys(wanted, error))
                    return
        for number in sorted(needed):
            try:
                blocks.pinned.update(await self._cache.fetch([number], quietly=True))
            except StorageTimeout:
                raise
            except (IntegrityError, ImageReadError) as error:
                if not quietly and isinstance(error, DamagedBlocks):
                    self._runner.names.report_block(error, number, missing.owner)
                (blocks.suspect if quietly else blocks.damaged)[number] = error

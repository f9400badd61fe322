"""Runs operations of the ext2 core: fetches the blocks they miss, runs them again, commits what they change."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import trio

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.overlay import OverlayFull
from mystfuse.errors import ImageReadError, IntegrityError, StorageTimeout
from mystfuse.ext2.blocks import Blocks, BlocksMissing, Transaction

MAX_RUNS = 40
"""How often an operation may miss blocks and be run again. A rename can meet five inodes, each with its descriptor and
table block, three levels of indirection and a block of its own, and the bitmaps; a look-up needs a third of that."""
MAX_PINNED_BYTES = 64 << 20

P = ParamSpec("P")
T = TypeVar("T")


class WrittenStore(Protocol):
    """Where written blocks are: an ``Overlay`` or a ``Snapshot`` of one."""

    def get(self, number: int) -> bytes | None: ...

    def holds(self, number: int) -> bool: ...

    def commit(
        self,
        changed: Mapping[int, bytes | bytearray | memoryview],
        freed: Collection[int],
        use_reserve: bool,
        runs: Collection[tuple[int, memoryview]] = (),
    ) -> None: ...


class Runner:
    """Runs operations over the image's blocks and those written since.

    Args:
        room: how many blocks of data may still be written.
    """

    def __init__(self, cache: BlockCache, written: WrittenStore | None, room: Callable[[], int]) -> None:
        self.commits = 0
        """Transactions that changed something."""
        self._cache = cache
        self._written = written
        self._room = room
        self._held: dict[int, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, ino: int) -> AsyncIterator[None]:
        """Let nobody change the contents of inode ``ino`` for the time of the block."""
        while ino in self._held:
            await self._held[ino].wait()
        self._held[ino] = trio.Event()
        try:
            yield
        finally:
            self._held.pop(ino).set()

    def blocks(self) -> Blocks:
        """What is in memory, for one run of an operation that changes nothing."""
        return Blocks(self._cache.get) if self._written is None else Blocks(self._cache.get, self._written.get)

    async def run(self, operation: Callable[Concatenate[Blocks, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes nothing. It comes to its end, and this returns, without an await between.

        Raises:
            OSError, MystfuseError: as the operation does.
        """
        blocks = self.blocks()
        misses: _Misses | None = None
        while True:
            try:
                return operation(blocks, *args, **kwargs)
            except BlocksMissing as error:
                missing = error
            misses = misses or _Misses(self._cache, blocks)
            blocks.restart()
            await misses.fetch(missing)

    def run_now(self, operation: Callable[Concatenate[Blocks, P], T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The same, if all blocks can be had without waiting for storage; else None.

        Raises:
            OSError, MystfuseError: as the operation does.
        """
        blocks = self.blocks()
        misses = _Misses(self._cache, blocks)
        while True:
            try:
                return operation(blocks, *args, **kwargs)
            except BlocksMissing as error:
                missing = error
            blocks.restart()
            if not misses.fetch_now(missing):
                return None

    async def change(
        self,
        ino: int,
        operation: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation that changes something, and commit what it changed: all of it or nothing.

        Args:
            ino: whose contents it changes, 0 for nobody's; it waits while somebody holds them.

        Cancellation, like any error, comes before the commit or not at all.

        Raises:
            OSError: as the operation does; ENOSPC when the overlay is full.
            MystfuseError: as the operation does.
        """
        assert self._written is not None
        cache = self._cache
        transaction = Transaction(cache.block_size, cache.get, self._written, self._room, time.time_ns())
        misses: _Misses | None = None
        budget: int | None = None
        while True:
            while ino in self._held:
                await self._held[ino].wait()
            transaction.restart(budget)
            try:
                result = operation(transaction, *args, **kwargs)
            except BlocksMissing as error:
                missing = error
            else:
                try:
                    self._written.commit(
                        transaction.changed, transaction.freed, transaction.gives_back, transaction.runs
                    )
                except OverlayFull as error:
                    # What the metadata takes up is known only now.
                    budget = transaction.spent - error.missing
                    if not transaction.is_divisible or budget <= 0:
                        raise
                    continue
                if transaction.changed or transaction.freed or transaction.runs:
                    self.commits += 1
                for action in transaction.on_commit:
                    action()
                return result
            misses = misses or _Misses(cache, transaction)
            await misses.fetch(missing)


class _Misses:
    """Fetches what one operation misses, and sees to it that this ends."""

    def __init__(self, cache: BlockCache, blocks: Blocks) -> None:
        self._cache = cache
        self._blocks = blocks
        self._runs = 0

    async def fetch(self, missing: BlocksMissing) -> None:
        """Fetch and pin the blocks that the operation missed.

        Raises:
            StorageTimeout: storage does not answer.
            RuntimeError: the operation would never end.
        """
        if not self.fetch_now(missing):
            await self._fetch(missing.numbers | missing.ahead)
        elif missing.progress:
            # Something long: others get their turn.
            await trio.lowlevel.checkpoint()
        self._check_pinned()

    def fetch_now(self, missing: BlocksMissing) -> bool:
        """Fetch and pin the blocks that the operation missed, if that needs no waiting; False if it does, or one of
        them cannot be had.

        Raises:
            RuntimeError: the operation would never end.
        """
        blocks = self._blocks
        if missing.progress:
            blocks.pinned.clear()
            blocks.damaged.clear()
            self._runs = 0
        self._runs += 1
        if self._runs > MAX_RUNS or not missing.numbers.isdisjoint(blocks.pinned):
            raise RuntimeError(f"an operation missed {sorted(missing.numbers)[:4]} in run {self._runs}: it cannot end")
        try:
            fetched = self._cache.fetch_now(missing.numbers | missing.ahead)
        except (IntegrityError, ImageReadError):
            return False
        blocks.pinned.update(fetched or {})
        self._check_pinned()
        return fetched is not None

    def _check_pinned(self) -> None:
        if len(self._blocks.pinned) * self._cache.block_size > MAX_PINNED_BYTES:
            raise RuntimeError(f"an operation needs over {MAX_PINNED_BYTES} bytes of blocks")

    async def _fetch(self, wanted: frozenset[int]) -> None:
        """A damaged block must not fail what is fetched along with it: then each is fetched by itself, and those that
        cannot be had are noted in ``blocks.damaged``."""
        try:
            self._blocks.pinned.update(await self._cache.fetch(wanted))
        except StorageTimeout:
            raise
        except (IntegrityError, ImageReadError) as error:
            if len(wanted) == 1:
                self._blocks.damaged.update(dict.fromkeys(wanted, error))
                return
            for number in wanted:
                await self._fetch(frozenset([number]))

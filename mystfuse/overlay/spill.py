"""Memory for written blocks that spills to an ``OverlayStore``: what has not been used for long goes there.

Blocks go to the disk ahead of need, in batches, one batch at a time in a thread; the event loop never waits for it.
A block is named by a handle and is in memory or, from some moment on, in the store, until it is freed: whoever changes
one that is in the store puts a new one in its place. So a handle and the counter that it was sealed with, together a
*ticket*, stand for the same bytes for ever, and what was fetched for a ticket can never be out of date.
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from errno import EAGAIN, EIO, ENOMEM, ENOSPC
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import outcome
import trio

from mystfuse.errors import ImageReadError, MystfuseError, StorageTimeout
from mystfuse.overlay.arena import Arenas
from mystfuse.overlay.store import FULL, TAG_SIZE, OverlayStore, Sealed, Slots
from mystfuse.system.threads import call_in_thread, start_in_thread
from mystfuse.system.workers import INLINE_BYTES

log = logging.getLogger(__name__)

ENTRY = 128
"""Bytes that the overlay's own tables cost for a block in use."""
_HANDLE = 64
"""Bytes that our tables cost for a handle, in use or not."""
_BATCH = 1 << 20
"""Bytes that are written to the store together."""
_MOST_LOW_WATER = 16 << 20
_RECALLED = 4 << 20
"""Bytes of metadata blocks from the store that are kept."""
_PUNCHED = 8 << 20
"""Bytes: with so much of the disk held by nothing, it is given back."""
_MOST_PUNCHED = 4096
"""Slots that are given back to the disk together."""
_THREADS = 8
"""Reads of the store under way at once."""
_RETRY = 1.0
"""Seconds until a store that was full, or failed, is tried again."""
_SILENCE = 60.0
"""Seconds between two messages that the store cannot be written."""
_QUEUED, _TOUCHED = 1, 2
_HANDLE_BITS = 32
_FREE = -1
"""Where a handle is: its slot in memory; this; or -2 minus its slot in the store."""

Content = bytes | bytearray | memoryview


class OverlayFull(OSError):
    """The limit would be exceeded, by ``missing`` blocks."""

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(ENOSPC, message)
        self.missing = missing


class OverlayBusy(Exception):
    """There will be room when more has been written to the store; ``SpillingArenas.make_room`` waits for that."""

    def __init__(self, new: int, in_memory: int, use_reserve: bool) -> None:
        super().__init__(f"{in_memory} blocks of memory are needed")
        self.new = new
        self.in_memory = in_memory
        self.use_reserve = use_reserve


def _nobody_gives_up() -> bool:
    return False


def _nothing_to_finish(result: outcome.Outcome[Any]) -> None:
    return None


class _Batch(NamedTuple):
    """Blocks on their way to the store."""

    handles: list[int]
    slots: list[int]
    first_counter: int


class SpillingArenas:
    """What ``Arenas`` is, for more than fits memory. Not for more than one thread, which is trio's.

    Args:
        limit: bytes of memory that blocks and tables may take up.
        io_timeout: seconds until a disk that does not answer is an error.
    """

    def __init__(self, block_size: int, limit: int, store: OverlayStore, io_timeout: float = math.inf) -> None:
        self.used = 0
        """Blocks, wherever they are."""
        self.is_unsure = False
        """Whether something failed in the middle of a change: ``recover`` is to be called before the next one."""
        self.limit = limit
        self._block_size = block_size
        self._store = store
        self._io_timeout = io_timeout
        self._floor = min(max(limit // 8, 64 * block_size), limit // 2)
        """Bytes that tables never take up: blocks that change have to be in memory."""
        self._reserve = min(max(limit // 32, 16 * block_size), limit // 8)
        """Bytes that are kept for operations that free more than they take."""
        self._low_water = min(self._floor // 2, _MOST_LOW_WATER)
        """Bytes: with less memory left than this, blocks go to the store."""
        self._batch_blocks = max(min(_BATCH, limit // 16) // block_size, 1)
        self._memory = Arenas(block_size)
        self._slots = Slots()
        self._where = array("q")
        self._counters = array("Q")
        self._tags = bytearray()
        self._flags = bytearray()
        self._free = array("q")
        """Handles that are not in use."""
        self._queue: deque[int] = deque()
        """Handles in memory, those that go to the store first in front; and some that are not there any more."""
        self._next_counter = 1
        self._in_flight: dict[int, _Batch] = {}
        """Handles on their way that have neither been changed nor freed since."""
        self._has_work = False
        self._working_on: Sequence[int] = ()
        """Slots of the store that the thread at work has taken."""
        self._work_began = 0.0
        self._give_up: Callable[[], bool] = _nobody_gives_up
        """Of the thread at work: see ``start_in_thread``."""
        self._finish: Callable[[outcome.Outcome[Any]], None] = _nothing_to_finish
        self._changed = trio.Event()
        self._failure: OSError | None = None
        """Why the last batch could not be written."""
        self._retry_at = 0.0
        self._silent_until = 0.0
        self._is_punching = False
        self._punch_at = 0.0
        self._punched = 0
        """Slots that are taken only until their disk space has been given back."""
        self._disk_free = store.free_blocks()
        self._disk_asked = time.monotonic()
        self._recalled: OrderedDict[int, bytes] = OrderedDict()
        self._threads = trio.CapacityLimiter(_THREADS)

    @property
    def memory_used(self) -> int:
        """Bytes, tables included."""
        return self._tables() + self._memory.used * self._block_size

    @property
    def store_used(self) -> int:
        """Bytes in the store."""
        return (self._slots.used - self._punched) * self._block_size

    @property
    def room(self) -> int:
        """How many more blocks can be taken, as far as is known, besides those of the reserve."""
        self._ask_disk()
        is_full = self._failure is not None and self._failure.errno in FULL and time.monotonic() < self._retry_at
        disk = self._slots.dirty + (0 if is_full else self._disk_free)
        left = self.limit - self._reserve - self._tables()
        size, cost = self._block_size, self._block_size + ENTRY + _HANDLE
        fit = (left - self._memory.used * size + disk * size) // cost
        return max(min((left - self._floor) // (ENTRY + _HANDLE), fit), 0)

    @property
    def most_at_once(self) -> int:
        """Bytes of data that one operation may write: there is always memory for so much, and what goes with it."""
        return max(self._floor // 2 // self._block_size, 1) * self._block_size

    def check(self, new: int, in_memory: int, use_reserve: bool) -> None:
        """See that ``new`` more blocks can be taken, and ``in_memory`` stored.

        Raises:
            OverlayFull: they cannot.
            OverlayBusy: not yet.
        """
        limit = self.limit if use_reserve else self.limit - self._reserve
        tables, size = self._tables(new, in_memory), self._block_size
        if (excess := tables + self._floor - limit) > 0 and new > 0:
            raise self._full(-(-excess // (ENTRY + _HANDLE)))
        if tables + (self._memory.used + in_memory) * size > limit:
            if (excess := tables + in_memory * size - limit) > 0:
                raise self._full(-(-excess // size))
            raise OverlayBusy(new, in_memory, use_reserve)

    def store(self, content: Content) -> int:
        """Take a handle for a block; returns it.

        Raises:
            OSError: ENOSPC, the system has no memory left; nothing has been taken.
            MemoryError: the same, perhaps half-way: ``recover`` is to be called.
        """
        slot = self._memory.store(content)
        (handle,) = self._take_handles(1)
        self._put(handle, slot)
        return handle

    def store_run(self, content: memoryview) -> list[int]:
        """Take handles for several blocks: all of it or nothing. Returns them, in order; raises as ``store``."""
        slots = self._memory.store_run(content)
        handles = self._take_handles(len(slots))
        put = self._put
        for handle, slot in zip(handles, slots, strict=True):
            put(handle, slot)
        return handles

    def overwrite(self, handle: int, content: Content) -> None:
        """Change a block that is in memory."""
        self._in_flight.pop(handle, None)
        self._flags[handle] |= _TOUCHED
        self._memory.overwrite(self._where[handle], content)

    def is_stored(self, handle: int) -> bool:
        """Whether the block is in the store, and cannot be overwritten."""
        return self._where[handle] < 0

    def load(self, handle: int) -> bytes | int:
        """A copy of a block that is in memory; else its ticket."""
        where = self._where[handle]
        if where >= 0:
            self._flags[handle] |= _TOUCHED
            return self._memory.load(where)
        ticket = self._counters[handle] << _HANDLE_BITS | handle
        block = self._recalled.get(ticket)
        if block is None:
            return ticket
        self._recalled.move_to_end(ticket)
        return block

    def free(self, handles: Iterable[int]) -> None:
        """Give handles back."""
        in_memory: list[int] = []
        in_store: list[int] = []
        for handle in handles:
            where = self._where[handle]
            if where >= 0:
                in_memory.append(where)
                self._in_flight.pop(handle, None)
            else:
                in_store.append(-2 - where)
            self._where[handle] = _FREE
            self._flags[handle] &= ~_TOUCHED
            self._free.append(handle)
            self.used -= 1
        self._memory.free(in_memory)
        self._slots.give_back(in_store)
        if not self.used:
            # Tables never give back what they were once as large as.
            self._where, self._counters, self._free = array("q"), array("Q"), array("q")
            self._tags, self._flags = bytearray(), bytearray()
            self._queue.clear()
        if in_store:
            if self._failure is not None:
                # There is room again, where these were.
                self._slots.may_grow, self._retry_at = False, 0.0
            self._give_back_to_disk()

    def recover(self, handles: Iterable[int]) -> None:
        """Have exactly these handles in use, each of which may come more than once: an error in the middle of a change
        has left tables that may say otherwise.

        Raises:
            MemoryError: to be called again.
        """
        where = self._where
        in_use = bytearray(len(where))
        for handle in handles:
            in_use[handle] = 1
        used = in_use.count(1)
        free = array("q", (handle for handle, is_used in enumerate(in_use) if not is_used))
        queue = deque(handle for handle, place in enumerate(where) if in_use[handle] and place >= 0)
        flags = bytearray(len(self._flags))
        for handle in queue:
            flags[handle] = _QUEUED
        in_flight: dict[int, _Batch] = {}
        if self._has_work:
            in_flight = {handle: batch for handle, batch in self._in_flight.items() if in_use[handle]}
        else:
            self._working_on, self._punched = (), 0
        self._memory.recover(where[handle] for handle in queue)
        stored = (-2 - place for handle, place in enumerate(where) if in_use[handle] and place < _FREE)
        self._slots.recover(chain(stored, self._working_on))
        for handle in free:
            where[handle] = _FREE
        self._free, self._queue, self._flags, self._in_flight, self.used = free, queue, flags, in_flight, used
        self.is_unsure = False

    def write_back(self) -> None:
        """Begin to write to the store, if memory is getting short. To be called when something has been stored. Never
        fails: what does is for who needs the room."""
        try:
            if self._is_short() and not self._has_work:
                self._begin()
        except MemoryError:
            # Tried again before long.
            return

    async def make_room(self, busy: OverlayBusy) -> None:
        """Wait until what was refused for want of memory may be tried again.

        Raises:
            OverlayFull: the store is full.
            StorageTimeout: the disk does not answer.
            ImageReadError: the store cannot be written.
        """
        while True:
            try:
                self.check(busy.new, busy.in_memory, busy.use_reserve)
            except OverlayBusy:
                pass
            else:
                # Others go on as well.
                await trio.lowlevel.checkpoint()
                return
            if not self._has_work and not self._begin():
                if self._failure is not None and self._failure.errno not in FULL:
                    raise ImageReadError(f"overlay store: writing: {self._failure.strerror}")
                limit = self.limit if busy.use_reserve else self.limit - self._reserve
                used = self._tables(busy.new, busy.in_memory) + (self._memory.used + busy.in_memory) * self._block_size
                raise self._full(max(-(-(used - limit) // self._block_size), 1))
            with trio.move_on_at(self._work_began + self._io_timeout) as waiting:
                await self._changed.wait()
            if waiting.cancelled_caught:
                if self._give_up():
                    # It has never begun: others can.
                    self._finish(outcome.Error(OSError(EAGAIN, "no thread has begun")))
                raise StorageTimeout(f"overlay store: no answer from the disk within {self._io_timeout:g} s")

    def recall_now(self, tickets: Iterable[int]) -> dict[int, bytes | MystfuseError] | None:
        """What ``recall`` returns, if that can be had without waiting for the disk; else None."""
        wanted = self._wanted(tickets)
        if len(wanted) * self._block_size > INLINE_BYTES:
            return None
        blocks = self._store.read(list(wanted.values()), can_wait=False)
        return None if blocks is None else self._sift(wanted, blocks)

    async def recall(self, tickets: Iterable[int]) -> dict[int, bytes | MystfuseError]:
        """Blocks from the store by their tickets, or for each what is wrong with it. What has been changed or freed
        meanwhile may be missing.

        Raises:
            StorageTimeout: the disk does not answer.
            ImageReadError: there is no thread to wait for it.
        """
        tickets = list(tickets)
        found = self.recall_now(tickets)
        if found is not None:
            return found
        wanted = self._wanted(tickets)
        # Threads that hang count as long as they do.
        reading = object()
        try:
            with trio.fail_after(self._io_timeout):
                await self._threads.acquire_on_behalf_of(reading)
                blocks = await call_in_thread(
                    partial(self._store.read, list(wanted.values())),
                    on_end=partial(self._threads.release_on_behalf_of, reading),
                )
        except trio.TooSlowError:
            raise StorageTimeout(f"overlay store: no answer from the disk within {self._io_timeout:g} s") from None
        except RuntimeError as error:
            raise ImageReadError(f"overlay store: reading: {error}") from None
        assert blocks is not None
        return self._sift(wanted, blocks)

    def remember(self, recalled: dict[int, bytes | MystfuseError]) -> None:
        """Keep blocks in memory that are likely to be asked for again."""
        self._recalled.update((ticket, block) for ticket, block in recalled.items() if isinstance(block, bytes))
        while len(self._recalled) * self._block_size > max(_RECALLED, 16 * self._block_size):
            self._recalled.popitem(last=False)

    def _wanted(self, tickets: Iterable[int]) -> dict[int, Sealed]:
        wanted: dict[int, Sealed] = {}
        for ticket in tickets:
            if self._is_current(ticket):
                handle = ticket & (1 << _HANDLE_BITS) - 1
                tag = bytes(self._tags[handle * TAG_SIZE : (handle + 1) * TAG_SIZE])
                wanted[ticket] = Sealed(-2 - self._where[handle], ticket >> _HANDLE_BITS, tag)
        return wanted

    def _sift(self, wanted: dict[int, Sealed], blocks: list[bytes | MystfuseError]) -> dict[int, bytes | MystfuseError]:
        """Errors count only for blocks that are still where they were read: the slot may be another's by now."""
        found = dict(zip(wanted, blocks, strict=True))
        for ticket, block in list(found.items()):
            if isinstance(block, MystfuseError):
                if self._is_current(ticket):
                    log.error("%s", block)
                else:
                    del found[ticket]
        return found

    def _is_current(self, ticket: int) -> bool:
        handle = ticket & (1 << _HANDLE_BITS) - 1
        return (
            handle < len(self._where)
            and self._where[handle] < _FREE
            and self._counters[handle] == ticket >> _HANDLE_BITS
        )

    def _is_in_memory(self, handle: int) -> bool:
        return handle < len(self._where) and self._where[handle] >= 0

    def _tables(self, new: int = 0, handles: int = 0) -> int:
        """Bytes that tables take up with ``new`` more blocks, when ``handles`` are taken before others are freed."""
        return (self.used + new) * ENTRY + max(self.used + handles, len(self._where)) * _HANDLE

    def _full(self, missing: int) -> OverlayFull:
        return OverlayFull(
            f"the overlay is full ({self.memory_used} of {self.limit} bytes, {self.store_used} in the store)", missing
        )

    def _take_handles(self, count: int) -> list[int]:
        again = min(count, len(self._free))
        handles: list[int] = self._free[len(self._free) - again :].tolist()
        if (more := count - again) > 0:
            first, end = len(self._where), len(self._where) + more
            handles += range(first, end)
            # To the length they need, however far they grew before there was no memory; the one that counts comes last.
            self._counters.frombytes(bytes(8 * max(end - len(self._counters), 0)))
            self._tags += bytes(max(TAG_SIZE * end - len(self._tags), 0))
            self._flags += bytes(max(end - len(self._flags), 0))
            self._where.frombytes(bytes(8 * more))
        del self._free[len(self._free) - again :]
        self.used += count
        return handles

    def _put(self, handle: int, slot: int) -> None:
        self._where[handle] = slot
        if not self._flags[handle] & _QUEUED:
            self._flags[handle] |= _QUEUED
            self._queue.append(handle)

    def _is_short(self) -> bool:
        return self.limit - self._reserve - self.memory_used < self._low_water

    def _begin(self) -> bool:
        """Begin to write a batch to the store; False if that cannot be.

        Raises:
            MemoryError: perhaps half-way: ``recover`` is to be called.
        """
        if time.monotonic() < self._retry_at or self.is_unsure:
            return False
        self.is_unsure = True
        has_begun = self._begin_batch()
        self.is_unsure = False
        return has_begun

    def _begin_batch(self) -> bool:
        self._slots.may_grow = True if self._failure is None else self._slots.may_grow
        handles = self._choose()
        if not handles:
            return False
        slots = self._slots.take(len(handles))
        self._requeue(handles[len(slots) :])
        del handles[len(slots) :]
        if not slots:
            self._failed(OSError(ENOSPC, "no slot is left"))
            return False
        try:
            # Copies: they may change while the thread is at work.
            blocks = [self._memory.load(self._where[handle]) for handle in handles]
        except MemoryError:
            self._slots.give_back(slots, is_clean=True)
            self._requeue(handles)
            self._failed(OSError(ENOMEM, "no memory left"))
            return False
        batch = _Batch(handles, slots, self._next_counter)
        # Used up even if the batch fails: a nonce never comes again.
        self._next_counter += len(handles)
        self._in_flight.update(dict.fromkeys(handles, batch))
        store = self._store

        def write() -> tuple[list[bytes], int | None]:
            tags = store.write(batch.slots, batch.first_counter, blocks)
            with suppress(OSError):
                return tags, store.free_blocks()
            return tags, None

        self._working_on = slots
        self._start(write, lambda result: self._written(batch, result))
        return True

    def _choose(self) -> list[int]:
        """What goes to the store next: blocks that have been in memory for long, those used meanwhile last."""
        chosen: list[int] = []
        queue, where, flags, most = self._queue, self._where, self._flags, self._batch_blocks
        chances = 8 * most
        while queue and len(chosen) < most:
            handle = queue.popleft()
            chances -= 1
            if where[handle] < 0 or handle in self._in_flight:
                flags[handle] = 0
            elif flags[handle] & _TOUCHED and chances > 0:
                flags[handle] = _QUEUED
                queue.append(handle)
            else:
                flags[handle] = 0
                chosen.append(handle)
        return chosen

    def _requeue(self, handles: list[int]) -> None:
        for handle in reversed(handles):
            if not self._flags[handle] & _QUEUED:
                self._flags[handle] |= _QUEUED
                self._queue.appendleft(handle)

    def _written(self, batch: _Batch, result: outcome.Outcome[tuple[list[bytes], int | None]]) -> None:
        try:
            tags, disk_free = result.unwrap()
        except (OSError, MemoryError) as error:
            self._slots.give_back(batch.slots, is_clean=True)
            for handle in batch.handles:
                if self._in_flight.get(handle) is batch:
                    del self._in_flight[handle]
            # Those that were changed on their way, too.
            self._requeue([handle for handle in batch.handles if self._is_in_memory(handle)])
            self._failed(error if isinstance(error, OSError) else OSError(ENOMEM, "no memory left"))
            return
        self._failure = None
        if disk_free is not None:
            self._disk_free, self._disk_asked = disk_free, time.monotonic()
        in_memory: list[int] = []
        unused: list[int] = []
        counter = batch.first_counter
        for handle, slot, tag in zip(batch.handles, batch.slots, tags, strict=True):
            if self._in_flight.get(handle) is batch:
                del self._in_flight[handle]
                in_memory.append(self._where[handle])
                self._counters[handle] = counter
                self._tags[handle * TAG_SIZE : (handle + 1) * TAG_SIZE] = tag
                # Last: from here on the block is there, and nowhere else.
                self._where[handle] = -2 - slot
            else:
                unused.append(slot)
                # Changed on its way, not freed: it goes another time.
                if self._is_in_memory(handle):
                    self._requeue([handle])
            counter += 1
        self._memory.free(in_memory)
        self._slots.give_back(unused)

    def _failed(self, error: OSError) -> None:
        """Nothing is lost: the blocks are still in memory."""
        now = time.monotonic()
        if now > self._silent_until:
            self._silent_until = now + _SILENCE
            log.warning("overlay store: writing: %s", error.strerror)
        is_growth = self._slots.may_grow
        self._failure = error
        if error.errno in FULL and is_growth:
            # What has been given back may have room yet.
            self._slots.may_grow = False
            if self._slots.dirty:
                return
        self._slots.may_grow = True
        self._retry_at = now + _RETRY

    def _give_back_to_disk(self) -> None:
        # Once begun, to the end.
        self._is_punching = self._slots.dirty >= (1 if self._is_punching else _PUNCHED // self._block_size)
        if self._has_work or self._is_short() or not self._is_punching or time.monotonic() < self._punch_at:
            return
        slots = self._slots.take_dirty(_MOST_PUNCHED)
        self._working_on = slots
        self._punched = len(slots)
        store = self._store

        def end(result: outcome.Outcome[None]) -> None:
            self._punched = 0
            is_done = isinstance(result, outcome.Value)
            self._slots.give_back(slots, is_clean=is_done)
            if is_done:
                self._ask_disk(at_once=True)
            else:
                self._punch_at = time.monotonic() + _RETRY

        self._start(lambda: store.punch(slots), end)

    def _ask_disk(self, at_once: bool = False) -> None:
        """Have it found out how much room the disk has, if that is long ago."""
        now = time.monotonic()
        if self._has_work or (not at_once and now < self._disk_asked + _RETRY):
            return
        self._disk_asked = now

        def end(result: outcome.Outcome[int]) -> None:
            with suppress(OSError):
                self._disk_free = result.unwrap()

        self._start(self._store.free_blocks, end)

    def _start(self, work: Callable[[], object], end: Callable[[outcome.Outcome[Any]], None]) -> None:
        """Call ``work`` in a thread, and ``end`` on this one. Whatever is wrong is for ``end``: who calls this may be
        in the middle of a commit."""

        def finish(result: outcome.Outcome[Any]) -> None:
            if self._finish is not finish:
                # A thread that had no memory left while it said that it has ended may say so again.
                return
            self._has_work, self._working_on = False, ()
            self._give_up, self._finish = _nobody_gives_up, _nothing_to_finish
            is_sure, self.is_unsure = not self.is_unsure, True
            try:
                end(result)
                self.is_unsure = not is_sure
            except MemoryError:
                self._failed(OSError(ENOMEM, "no memory left"))
            except Exception as error:
                log.exception("overlay store: internal error")
                self._failed(OSError(EIO, str(error)))
            self._changed.set()
            self._changed = trio.Event()
            self.write_back()
            try:
                self._give_back_to_disk()
            except MemoryError:
                self.is_unsure = True
                self._failed(OSError(ENOMEM, "no memory left"))

        failure = outcome.Error(OSError(EAGAIN, "no thread can be started"))
        self._has_work, self._work_began, self._finish = True, trio.current_time(), finish
        try:
            self._give_up = start_in_thread(work, finish)
        except (RuntimeError, MemoryError):
            try:
                trio.lowlevel.current_trio_token().run_sync_soon(finish, failure)
            except MemoryError:
                self._has_work, self._working_on, self._finish = False, (), _nothing_to_finish
                raise

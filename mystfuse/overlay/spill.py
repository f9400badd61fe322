"""Moves written blocks that have not been used for long from memory to an ``OverlayStore``, and fetches them back.

Blocks go to the disk ahead of need, one batch at a time in a thread; the event loop never waits for it. A block in the
store is never changed there. So its place and the counter that it was sealed with, together its *version*, stand for
the same bytes for ever, and the bytes of a version are never out of date.
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack
from errno import EAGAIN, EIO, ENOMEM, ENOSPC
from functools import partial
from itertools import count, repeat
from typing import Any, NamedTuple, TypeVar

import outcome
import trio

from mystfuse.errors import ImageReadError, MystfuseError, StorageTimeout
from mystfuse.overlay.arena import TOUCHED, Arenas
from mystfuse.overlay.encrypted_store import FULL, TAG_SIZE, OverlayStore, Sealed
from mystfuse.overlay.slots import USED, Slots
from mystfuse.system.threads import call_in_thread, start_in_thread
from mystfuse.system.workers import INLINE_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

PLACE = 32
"""Bytes that our tables cost for a place in the store, in use or not."""
_BATCH = 1 << 20
"""Bytes that are written to the store together."""
_LOOSE = 8 << 20
"""Bytes: when free places hold this much of the disk, they are given back."""
_THREADS = 8
"""Reads of the store under way at once."""
_RETRY = 1.0
"""Seconds until a store that was full, or failed, is tried again."""
_SILENCE = 60.0
"""Seconds between two messages that writing to the store fails."""
_IN_FLIGHT = TOUCHED + 1
"""State of a slot in memory: it is on its way to the store, and has not been changed since."""
_WRITTEN = USED + 1
"""State of a place in the store: the tables have it."""
_PLACE_BITS = 32

Table = dict[int, int] | dict[int, int | None]
"""The places of blocks by their numbers: a slot in memory; or the complement of a place in the store."""


def _never_given_up() -> bool:
    return False


class _Batch(NamedTuple):
    """Blocks on their way to the store."""

    slots: list[int]
    places: list[int]
    first_counter: int


class Spill:
    """For trio's thread alone.

    Args:
        batch: the maximum of bytes that are written together.
        tables: all tables that name slots.
        is_short: whether memory is getting short.
        moving: see ``Space.moving``.
        io_timeout: seconds until a disk that does not answer is an error.
    """

    def __init__(
        self,
        arenas: Arenas,
        store: OverlayStore,
        batch: int,
        tables: Callable[[], Collection[Table]],
        is_short: Callable[[], bool],
        moving: Callable[[Sequence[int]], AbstractContextManager[None]],
        io_timeout: float = math.inf,
    ) -> None:
        self.slots = Slots()
        """Places in the store."""
        self.failure: OSError | None = None
        """Why writing the last batch failed."""
        self._arenas = arenas
        self._store = store
        self._tables = tables
        self._is_short = is_short
        self._moving = moving
        self._io_timeout = io_timeout
        self._batch_blocks = max(min(_BATCH, batch) // store.block_size, 1)
        self._numbers = array("Q")
        """The numbers of the blocks in memory, by their slots."""
        self._counters = array("Q")
        self._tags = bytearray()
        self._next_counter = 1
        self._hand = 0
        """The slot in memory to consider next for the store."""
        self._end = 0
        """Places below this have been written, and hold disk space."""
        self._disk_free = store.free_blocks()
        """The number of further blocks for which the disk had room at the last write."""
        self._loose = 0
        """Places that have been freed since disk space was last given back."""
        self._may_grow = True
        """False when the disk is full: then only places are taken that have been written before."""
        self._retry_at = self._silent_until = 0.0
        self._on_end: Callable[[outcome.Outcome[Any]], None] | None = None
        """Called when the thread at work has ended."""
        self._began = 0.0
        """When that thread was started."""
        self._give_up = _never_given_up
        """Gives up waiting for that thread: see ``start_in_thread``."""
        self._has_ended = trio.Event()
        self._readers = trio.CapacityLimiter(_THREADS)

    @property
    def is_at_work(self) -> bool:
        """Whether a thread writes to the store."""
        return self._on_end is not None

    @property
    def room(self) -> int:
        """The number of further blocks for the store, as far as is known."""
        disk_free = self._disk_free
        if self.failure is not None and self.failure.errno in FULL:
            # The disk may have room again later. Only a write can tell, and without room there is none.
            disk_free = 0 if time.monotonic() < self._retry_at else max(disk_free, self._arenas.used)
        return max(self._end - self.slots.used, 0) + disk_free

    def note(self, slots: Mapping[int, int]) -> None:
        """Record the numbers of these blocks by their slots in memory."""
        if (missing := self._arenas.slots.size - len(self._numbers)) > 0:
            self._numbers.extend(repeat(0, missing))
        for number, slot in slots.items():
            self._numbers[slot] = number

    def version(self, place: int) -> int:
        """The version by which ``recall`` fetches the block."""
        return self._counters[place] << _PLACE_BITS | place

    def go_on(self) -> None:
        """Begin to write to the store if memory is getting short, or to give disk space back. Never fails: the
        error is for the operation that needs the room."""
        try:
            if self._on_end is None and not (self._is_short() and self._begin_batch()):
                self._give_back_to_disk()
        except (MemoryError, RuntimeError):
            # Tried again before long.
            return

    async def wait(self) -> bool:
        """Wait until more has been written to the store; False if it is full.

        Raises:
            StorageTimeout: the disk does not answer.
            ImageReadError: writing to the store failed.
        """
        if self._on_end is None and not self._begin_batch():
            if self.failure is not None and self.failure.errno not in FULL:
                raise ImageReadError(f"overlay store: writing: {self.failure.strerror}")
            return False
        assert self._on_end is not None
        with trio.move_on_at(self._began + self._io_timeout) as waiting:
            await self._has_ended.wait()
        if waiting.cancelled_caught:
            if self._give_up():
                # It has never begun: other threads may.
                self._on_end(outcome.Error(OSError(EAGAIN, "no thread has begun")))
            raise self._timeout()
        return True

    def recall_now(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError] | None:
        """The result of ``recall``, if it needs no waiting for the disk; else None. Never blocks."""
        wanted = self._wanted(versions)
        if len(wanted) * self._store.block_size > INLINE_BYTES:
            return None
        blocks = self._store.read(list(wanted.values()), can_wait=False)
        return None if blocks is None else self._sift(wanted, blocks)

    async def recall(self, versions: Iterable[int]) -> dict[int, bytes | MystfuseError]:
        """Blocks from the store by their versions, or for each its error. Blocks that were changed or freed meanwhile
        may be missing.

        Raises:
            StorageTimeout: the disk does not answer.
            ImageReadError: no thread starts to wait for it.
        """
        versions = list(versions)
        found = self.recall_now(versions)
        if found is not None:
            return found
        wanted = self._wanted(versions)
        # Threads that hang count as long as they do.
        reading = object()
        try:
            with trio.fail_after(self._io_timeout):
                await self._readers.acquire_on_behalf_of(reading)
                blocks = await call_in_thread(
                    partial(self._store.read, list(wanted.values())),
                    on_end=partial(self._readers.release_on_behalf_of, reading),
                )
        except trio.TooSlowError:
            raise self._timeout() from None
        except RuntimeError as error:
            raise ImageReadError(f"overlay store: reading: {error}") from None
        assert blocks is not None
        return self._sift(wanted, blocks)

    def _wanted(self, versions: Iterable[int]) -> dict[int, Sealed]:
        wanted: dict[int, Sealed] = {}
        for version in versions:
            if self._is_current(version):
                place = version & (1 << _PLACE_BITS) - 1
                tag = bytes(self._tags[place * TAG_SIZE : (place + 1) * TAG_SIZE])
                wanted[version] = Sealed(place, version >> _PLACE_BITS, tag)
        return wanted

    def _sift(self, wanted: dict[int, Sealed], blocks: list[bytes | MystfuseError]) -> dict[int, bytes | MystfuseError]:
        """Errors count only for blocks that are still where they were read: another block may have the place by now."""
        found = dict(zip(wanted, blocks, strict=True))
        for version, block in list(found.items()):
            if isinstance(block, MystfuseError):
                if self._is_current(version):
                    log.error("%s", block)
                else:
                    del found[version]
        return found

    def _is_current(self, version: int) -> bool:
        place = version & (1 << _PLACE_BITS) - 1
        return (
            place < self.slots.size
            and self.slots.states[place] == _WRITTEN
            and self._counters[place] == version >> _PLACE_BITS
        )

    def _timeout(self) -> StorageTimeout:
        return StorageTimeout(f"overlay store: no answer from the disk within {self._io_timeout:g} s")

    def freed(self, places: Sized) -> None:
        """This many places are free again. Never fails."""
        if self.failure is not None:
            # There is room where these were.
            self._may_grow, self._retry_at = False, 0.0
        try:
            self._loose += len(places)
        except MemoryError:
            return

    def _begin_batch(self) -> bool:
        """Begin to write blocks to the store; False if it cannot begin now.

        Raises:
            MemoryError: nothing has been begun.
        """
        if time.monotonic() < self._retry_at:
            return False
        slots = self._choose()
        if not slots:
            return False
        places = self._take(len(slots))
        if not places:
            self._failed(OSError(ENOSPC, "no room in the file that it has"))
            return False
        try:
            del slots[len(places) :]
            # Copies: they may change while the thread is at work.
            blocks = [self._arenas.load(slot) for slot in slots]
            batch = _Batch(slots, places, self._next_counter)
            # Used up even if the batch fails: a nonce never comes again.
            self._next_counter += len(slots)
            self._start(partial(self._write, batch, blocks), partial(self._enter, batch))
        except (MemoryError, RuntimeError) as error:
            self.slots.free(places, self.slots.used - len(places))
            if isinstance(error, MemoryError):
                raise
            self._failed(OSError(EAGAIN, "no thread can be started"))
            return False
        states = self._arenas.slots.states
        for slot in slots:
            states[slot] = _IN_FLIGHT
        return True

    def _choose(self) -> list[int]:
        """The next slots in memory that were not used since the last round (the CLOCK algorithm)."""
        for _ in range(2):
            hand, most = self._hand, self._batch_blocks
            chosen = self._sweep(hand, self._arenas.slots.size, most)
            if len(chosen) < most:
                chosen += self._sweep(0, hand, most - len(chosen))
            if chosen:
                return chosen
        return []

    def _sweep(self, start: int, end: int, most: int) -> list[int]:
        states, chosen = self._arenas.slots.states, list[int]()
        while start < end and len(chosen) < most:
            found = states.find(USED, start, end)
            stop = end if found < 0 else found
            # A second chance for used ones.
            states[start:stop] = states[start:stop].replace(b"\2", b"\1")
            if found >= 0:
                chosen.append(found)
            self._hand = start = stop + 1
        return chosen

    def _take(self, count: int) -> list[int]:
        """Places in the store; fewer or none while the disk is full."""
        slots = self.slots
        self._loose = max(self._loose - count, 0)
        if not self._may_grow:
            return slots.take(count, self._end)
        if (missing := count - (slots.size - slots.used)) > 0:
            end = slots.size + missing
            # To the length they need, however far they grew before memory was short.
            self._counters.frombytes(bytes(8 * max(end - len(self._counters), 0)))
            self._tags += bytes(max(TAG_SIZE * end - len(self._tags), 0))
            slots.grow(missing)
        return slots.take(count)

    def _write(self, batch: _Batch, blocks: list[bytes]) -> tuple[list[bytes], int]:
        """In the thread."""
        return self._store.write(batch.places, batch.first_counter, blocks), self._store.free_blocks()

    def _enter(self, batch: _Batch, result: outcome.Outcome[tuple[list[bytes], int]]) -> None:
        """Enter blocks into the tables as being in the store, if they have not changed on their way."""
        memory, store = self._arenas.slots, self.slots
        with ExitStack() as moving:
            try:
                tables = self._tables()
                tags, disk_free = result.unwrap()
                moves: list[tuple[dict[int, Any], int, int]] = []
                moved: list[int] = []
                written: list[int] = []
                counters = count(batch.first_counter)
                for slot, place, tag, counter in zip(batch.slots, batch.places, tags, counters, strict=False):
                    if memory.states[slot] != _IN_FLIGHT:
                        continue
                    moved.append(slot)
                    written.append(place)
                    self._counters[place] = counter
                    self._tags[place * TAG_SIZE : (place + 1) * TAG_SIZE] = tag
                    number = self._numbers[slot]
                    for table in tables:
                        if table.get(number) == slot:
                            moves.append((table, number, ~place))
                unused = list(set(batch.places).difference(written))
                entering, entries = iter(written), iter(moves)
                freeing, left = iter(moved), memory.used - len(moved)
                returning, places_left = iter(unused), store.used - len(unused)
                moving.enter_context(self._moving([number for _, number, _ in moves]))
                self._end = max(self._end, batch.places[-1] + 1)
            except Exception:
                # Nothing is lost: the blocks are still in memory.
                for slot in batch.slots:
                    if memory.states[slot] == _IN_FLIGHT:
                        memory.states[slot] = USED
                store.free(batch.places, store.used - len(batch.places))
                raise
            # Nothing from here on takes memory, so nothing fails.
            for place in entering:
                store.states[place] = _WRITTEN
            for table, number, there in entries:
                table[number] = there
            memory.free(freeing, left)
            self._disk_free, self.failure, self._may_grow = disk_free, None, True
            store.free(returning, places_left)
            self._arenas.give_back(moved)

    def _failed(self, error: OSError) -> None:
        now = time.monotonic()
        if now > self._silent_until:
            self._silent_until = now + _SILENCE
            log.warning("overlay store: writing: %s", error.strerror)
        self.failure = error
        if error.errno in FULL and self._may_grow:
            # Freed places may have room now.
            self._may_grow = False
        else:
            self._may_grow, self._retry_at = True, now + _RETRY

    def _give_back_to_disk(self) -> None:
        slots = self.slots
        # Where nothing is in use there is nothing to wait for, even after a failure.
        least = max(_LOOSE // self._store.block_size, slots.size // 8)
        if not slots.size or (slots.used and (self._loose < least or time.monotonic() < self._retry_at)):
            return
        slots.shrink()
        end = slots.size
        del self._counters[end:], self._tags[end * TAG_SIZE :]

        def note_end(result: outcome.Outcome[int]) -> None:
            self._disk_free = result.unwrap()

        self._start(partial(self._store.give_back, end, slots.free_runs()), note_end)
        self._loose, self._end = 0, min(self._end, end)

    def _start(self, work: Callable[[], T], end: Callable[[outcome.Outcome[T]], None]) -> None:
        """Call ``work`` in a thread, and ``end`` on this one.

        Raises:
            MemoryError, RuntimeError: no thread can be started.
        """
        has_ended = trio.Event()

        def on_end(result: outcome.Outcome[T]) -> None:
            self._on_end = None
            try:
                end(result)
            except OSError as error:
                self._failed(error)
            except MemoryError:
                self._failed(OSError(ENOMEM, "no memory left"))
            except Exception as error:
                log.exception("overlay store: internal error")
                self._failed(OSError(EIO, str(error)))
            has_ended.set()
            self.go_on()

        # Before the thread begins: from then on nothing may fail, or a second one would write to the same places.
        self._on_end, self._has_ended, self._began = on_end, has_ended, trio.current_time()
        try:
            self._give_up = start_in_thread(work, on_end)
        except (MemoryError, RuntimeError):
            self._on_end = None
            raise

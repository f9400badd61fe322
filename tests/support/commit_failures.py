"""Lets the n-th allocation of Python, or the n-th block that is stored, fail; looks into the tables of an overlay."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mystfuse.overlay.arena import Arenas
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.spill import SpillingArenas


class Failure:
    """One failure, of the n-th thing that can fail; ``has_come`` says whether so many have been met."""

    has_come = False


Failing = Callable[[int], "contextmanager[Failure]"]


@contextmanager
def failing_allocation(number: int) -> Iterator[Failure]:
    """No memory for one of Python's allocations, objects and their parts alike, in the time of the block."""
    testcapi = pytest.importorskip("_testcapi", reason="this Python was installed without its own tests' module")
    failure = Failure()
    testcapi.set_nomemory(number, number + 1)
    try:
        yield failure
    finally:
        try:
            failure.has_come = True
            # If it has not come yet, it comes now.
            for _ in range(number + 1):
                bytearray(1000)
        except MemoryError:
            failure.has_come = False
        finally:
            testcapi.remove_mem_hooks()


@contextmanager
def failing_store(number: int) -> Iterator[Failure]:
    """The system has no memory for one of the blocks that are stored."""
    failure = Failure()
    left = number
    store, store_in_arena = Arenas.store, Arenas._store_in_arena

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            failure.has_come = True
            raise OSError(errno.ENOSPC, "injected")

    def failing(self: Arenas, content: bytes | bytearray | memoryview) -> int:
        count()
        return store(self, content)

    def failing_in_arena(self: Arenas, content: memoryview) -> list[int]:
        count()
        return store_in_arena(self, content[: 2 * self._block_size])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arenas, "store", failing)
        patch.setattr(Arenas, "_store_in_arena", failing_in_arena)
        yield failure


def audit(overlay: Overlay) -> None:
    """What is in use is what the tables say: nothing is lost, and nothing is used twice."""
    overlay._recover()
    in_use = list(overlay._slots.values())
    for snapshot in overlay._snapshots:
        in_use += [slot for table in snapshot.tables for slot in table.values() if slot is not None]
    # Snapshots may share the version of a block that is neither's alone.
    own = set(in_use)
    assert len(overlay._slots) == len(set(overlay._slots.values()))
    arenas = overlay._arenas
    assert arenas.used == len(own)
    if isinstance(arenas, SpillingArenas):
        _audit_spilling(arenas, own)
    else:
        _audit_arenas(arenas, own)


def _audit_spilling(arenas: SpillingArenas, handles: set[int]) -> None:
    where = arenas._where
    assert sorted(arenas._free) == [handle for handle in range(len(where)) if handle not in handles]
    _audit_arenas(arenas._memory, {where[handle] for handle in handles if where[handle] >= 0})
    stored = {-2 - where[handle] for handle in handles if where[handle] < 0}
    working = set(arenas._working_on)
    assert not stored & working
    states = arenas._slots._states
    assert [slot for slot, state in enumerate(states) if state == 1] == sorted(stored | working)
    assert arenas._slots.used == len(stored) + len(working) and arenas._slots.dirty == states.count(2)
    queued = set(arenas._queue)
    assert all(handle in queued for handle in handles if where[handle] >= 0 and handle not in arenas._in_flight)


def _audit_arenas(arenas: Arenas, slots: set[int]) -> None:
    per_arena, per_page = arenas._slots, arenas._slots_per_page
    assert arenas.used == len(slots)
    for arena, free in arenas._free.items():
        used = {slot % per_arena for slot in slots if slot // per_arena == arena}
        assert len(free) == len(set(free)) and set(free) == set(range(per_arena)) - used
        counts = Counter(index // per_page for index in used)
        assert {page: count for page, count in enumerate(arenas._used_in_page[arena]) if count} == counts
        assert (arena in arenas._with_room) == bool(free)
    assert arenas._arenas.keys() == arenas._free.keys() == arenas._used_in_page.keys()
    assert {slot // per_arena for slot in slots} <= arenas._arenas.keys()

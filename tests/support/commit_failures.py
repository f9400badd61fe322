"""Makes the n-th allocation of Python, or the n-th stored block, fail; checks the tables of an overlay."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mystfuse.overlay.arena import Arenas
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.slots import FREE, Slots


class Failure:
    """One failure, of the n-th step that can fail; ``has_come`` says whether there were so many."""

    has_come = False


Failing = Callable[[int], "contextmanager[Failure]"]


@contextmanager
def failing_allocation(number: int) -> Iterator[Failure]:
    """In the block, one of Python's allocations fails: of an object or of a part of one."""
    if sys.version_info >= (3, 12):
        pytest.skip("this Python itself crashes where an allocation fails in a list comprehension")
    testcapi = pytest.importorskip("_testcapi", reason="this Python was installed without its own tests' module")
    failure = Failure()
    testcapi.set_nomemory(number, number + 1)
    try:
        yield failure
    finally:
        try:
            failure.has_come = True
            # If it has not come yet, let it come now.
            for _ in range(number + 1):
                bytearray(1000)
        except MemoryError:
            failure.has_come = False
        finally:
            testcapi.remove_mem_hooks()


@contextmanager
def failing_store(number: int) -> Iterator[Failure]:
    """The system has no memory for one of the stored blocks."""
    failure = Failure()
    left = number

    def failing(fill: Callable[..., None]) -> Callable[..., None]:
        def fill_or_fail(*arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                failure.has_come = True
                raise OSError(errno.ENOSPC, "injected")
            fill(*arguments)

        return fill_or_fail

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fill", "fill_run"):
            patch.setattr(Arenas, name, failing(getattr(Arenas, name)))
        yield failure


def audit(overlay: Overlay) -> None:
    """Assert that the tables account for every slot in use: none is lost, and none is used twice."""
    overlay._forget_closed()
    in_use = [slot for table in overlay.tables() for slot in table.values() if slot is not None]
    # Snapshots may share a version of a block with each other.
    own = set(in_use)
    assert len(overlay._slots) == len(set(overlay._slots.values()))
    arenas, spill = overlay._arenas, overlay._spill
    _audit_slots(arenas.slots, {slot for slot in own if slot >= 0})
    assert {slot // arenas._per_arena for slot in own if slot >= 0} <= arenas._arenas.keys()
    if spill is None:
        assert all(slot >= 0 for slot in own)
    elif not spill.is_at_work:
        _audit_slots(spill.slots, {~slot for slot in own if slot < 0})


def _audit_slots(slots: Slots, in_use: set[int]) -> None:
    assert slots.used == len(in_use)
    assert {slot for slot, state in enumerate(slots.states) if state != FREE} == in_use
    free = set(range(slots.size)) - in_use
    assert slots._lowest <= min(free, default=slots.size)

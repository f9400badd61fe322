"""A few threads for fetching, checking and decrypting long ranges, beside the event loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

from mystfuse.system.pool import Pool
from mystfuse.system.threads import deferred

INLINE_BYTES = 256 << 10
"""This many bytes are checked and decrypted on the event loop's thread: passing them to another costs more."""

_PROCESSORS_NEEDED = 4
"""With fewer, readers, the kernel and the event loop keep them busy: a thread more only takes turns with them.
Two hardware threads of one core, which is what many virtual machines have, compute a fifth more than one."""
_MAX_THREADS = 4

T = TypeVar("T")


class Workers(Pool):
    """A pool beside the event loop. Its threads begin with it: later there may be no memory for them.

    Leaner than ``trio.to_thread``: handing something over takes about a tenth of a millisecond, not three.

    Args:
        threads: how many; by default as many as there are processors to spare, perhaps none.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is None:
            processors = len(os.sched_getaffinity(0))
            threads = min(processors // 2, _MAX_THREADS) if processors >= _PROCESSORS_NEEDED else 0
        super().__init__(threads)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of ``work`` in a thread, if there are any. A cancellation waits for its end, and
        leaves the result to the caller."""
        if not self.threads:
            return work()
        task = trio.lowlevel.current_task()

        def deliver(result: outcome.Outcome[T]) -> None:
            trio.lowlevel.reschedule(task, result)

        self.put(deferred(work, deliver))
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result

"""A few threads for checking and decrypting what is long, beside the event loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import outcome
import trio

MAX_THREADS = 4


class Workers:
    """Threads, started when there is work, that end when this object does.

    Leaner than ``trio.to_thread``, which takes longer to hand over 128 KiB than it takes to check them.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0

    async def run(self, work: Callable[[], None]) -> None:
        """Call ``work`` in a thread. A cancellation waits until it has come to its end, and is then forgotten."""
        job = _Job(work, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token())
        if self._threads < min(os.cpu_count() or 1, MAX_THREADS):
            self._threads += 1
            threading.Thread(target=_serve, args=(self._queue,), name="mystfuse worker", daemon=True).start()
        self._queue.put(job)
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    def close(self) -> None:
        """End the threads, each when it is done with what it does."""
        for _ in range(self._threads):
            self._queue.put(None)


class _Job:
    def __init__(self, work: Callable[[], None], task: trio.lowlevel.Task, token: trio.lowlevel.TrioToken) -> None:
        self._work = work
        self._task = task
        self._token = token

    def run(self) -> None:
        result = outcome.capture(self._work)
        self._token.run_sync_soon(trio.lowlevel.reschedule, self._task, result)


def _serve(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        job.run()
        # Not kept until the next one comes: it holds buffers.
        del job

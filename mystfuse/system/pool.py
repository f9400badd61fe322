"""Work on many pieces by all processors, results in the order of the pieces."""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread, local
from typing import TypeVar

JOBS_A_WORKER = 3
"""Jobs begun or waiting, for each worker: enough that none waits for us."""
_GRACE = 1.0
"""Seconds that workers are waited for when they are left early."""

Result = TypeVar("Result")
_Queue = SimpleQueue[tuple["Future[Result]", Callable[[], Result]] | None]


class ReadBuffer:
    """Memory to read into, for each thread its own, used again and again: fresh memory costs as much as reading.

    It is whole pages: to 16 bytes behind a page's start, where malloc puts what is large, AMD's Zen 3 copies at a fifth
    of its speed (1.6 instead of 8 GB/s from the page cache).
    """

    def __init__(self) -> None:
        self._local = local()

    def view(self, size: int) -> memoryview:
        """So many bytes, with something in them, until this thread asks again."""
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = mmap.mmap(-1, size)
        return memoryview(buffer)[:size]


def run_in_order(jobs: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Run jobs in threads, as many at once as there are processors, and yield what they return, in their order.

    What a job raises is raised in its turn. ``jobs`` is iterated as results are taken: at most JOBS_A_WORKER for each
    processor are ahead of them. When the iteration is left early, jobs that have begun are waited for only a moment:
    unlike those of concurrent.futures these threads do not hold up the end of the process, so that ^C ends it even if a
    read never returns.
    """
    count = len(os.sched_getaffinity(0))
    queue: _Queue[Result] = SimpleQueue()
    ahead: deque[Future[Result]] = deque()
    workers = [Thread(target=_work, args=(queue,), name="mystfuse-worker", daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        for job in jobs:
            future: Future[Result] = Future()
            ahead.append(future)
            queue.put((future, job))
            if len(ahead) >= JOBS_A_WORKER * count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        with suppress(Empty):
            while True:
                queue.get_nowait()
        for _ in workers:
            queue.put(None)
        deadline = time.monotonic() + _GRACE
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(deadline - time.monotonic(), 0))


def _work(queue: _Queue[Result]) -> None:
    while (item := queue.get()) is not None:
        future, job = item
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
        # Nothing of it must stay while the next one is waited for.
        del item, future, job

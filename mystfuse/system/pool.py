"""Threads that take work from one queue; and work on many pieces by all processors, results in the order of pieces.

``_thread`` begins them: ``threading.Thread.start``, on which trio.to_thread and concurrent.futures stand, waits
for ever for a thread that has no memory left to begin (seen with Python 3.11 under RLIMIT_AS).
"""

from __future__ import annotations

import _thread
import math
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import local
from typing import TypeVar

JOBS_A_WORKER = 3
"""Jobs begun or waiting, for each worker: enough that none waits for us."""
_GRACE = 1.0
"""Seconds to wait for workers when their results are not needed."""
_BEGINNING = 1.0
"""Seconds that a thread of a pool gets to begin."""

Result = TypeVar("Result")


def begin_thread(serve: Callable[[], object]) -> Callable[[], bool]:
    """Call ``serve`` in a thread, which nothing waits for when the process ends.

    Returns:
        To be called to give up waiting: True if the thread had not begun; then it never calls ``serve``.

    Raises:
        RuntimeError, MemoryError: no thread can be started.
    """
    undecided = [None]

    def give_up() -> bool:
        # The first one decides: the thread that begins, or the caller that gives up. Takes no memory.
        try:
            undecided.pop()
        except IndexError:
            return False
        return True

    def begin() -> None:
        if give_up():
            serve()

    _thread.start_new_thread(begin, ())
    return give_up


class Pool:
    """Threads that take calls from one queue. A call must not raise.

    Args:
        threads: how many; there are fewer, or none, where memory or a limit on processes allows no more.
    """

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._ended: list[_thread.LockType] = []
        """A lock for each thread, free when it has ended."""
        while len(self._ended) < threads and self._add_thread():
            pass

    @property
    def threads(self) -> int:
        """How many there are."""
        return len(self._ended)

    def put(self, call: Callable[[], object]) -> None:
        """Have a thread make a call."""
        self._queue.put(call)

    def close(self, patience: float = math.inf, drop: bool = False) -> None:
        """End the threads, and wait for that.

        Args:
            patience: seconds; those that have not ended by then are left behind.
            drop: whether calls that have not begun are left out.
        """
        with suppress(Empty):
            while drop:
                self._queue.get_nowait()
        for _ in self._ended:
            self._queue.put(None)
        deadline = time.monotonic() + patience
        while self._ended:
            left = deadline - time.monotonic()
            self._ended.pop().acquire(timeout=-1 if left == math.inf else max(left, 0))

    def _add_thread(self) -> bool:
        begun, ended = _thread.allocate_lock(), _thread.allocate_lock()
        begun.acquire()
        ended.acquire()

        def serve() -> None:
            begun.release()
            try:
                while (call := self._queue.get()) is not None:
                    call()
                    # Not kept until the next one comes: it holds buffers.
                    del call
            finally:
                ended.release()

        try:
            give_up = begin_thread(serve)
        except (RuntimeError, MemoryError):
            return False
        if not begun.acquire(timeout=_BEGINNING) and give_up():
            return False
        self._ended.append(ended)
        return True


class ReadBuffer:
    """Memory to read into, for each thread its own, used again and again: fresh memory costs as much as reading.

    It is whole pages: to 16 bytes behind a page's start, where malloc puts large blocks, AMD's Zen 3 copies at a fifth
    of its speed (1.6 instead of 8 GB/s from the page cache).
    """

    def __init__(self) -> None:
        self._local = local()

    def view(self, size: int) -> memoryview:
        """This many bytes with any contents, until this thread asks again."""
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = mmap.mmap(-1, size)
        return memoryview(buffer)[:size]


def run_in_order(jobs: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Run jobs in threads, as many at once as there are processors, and yield their results, in order.

    A job's error is raised in its turn. ``jobs`` is iterated as results are taken: at most JOBS_A_WORKER for each
    thread are ahead of them. When the iteration is left early, jobs that have begun are waited for only a moment:
    unlike those of concurrent.futures these threads do not hold up the end of the process, so that ^C ends it even if a
    read never returns.

    Raises:
        RuntimeError: no thread can be started.
    """
    pool = Pool(len(os.sched_getaffinity(0)))
    ahead: deque[Future[Result]] = deque()
    try:
        if not pool.threads:
            # As Python words it: ``errors.explain`` knows it by that.
            raise RuntimeError("can't start new thread")
        for job in jobs:
            future: Future[Result] = Future()
            ahead.append(future)
            pool.put(partial(_fulfil, future, job))
            if len(ahead) >= JOBS_A_WORKER * pool.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.close(_GRACE, drop=True)


def _fulfil(future: Future[Result], job: Callable[[], Result]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)

"""A few threads for fetching, checking and decrypting what is long, beside the event loop."""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import outcome
import trio

from mystfuse.system.threads import carry_out

INLINE_BYTES = 256 << 10
"""So many are checked and decrypted on the event loop's thread: handing them over costs more than it saves."""

_PROCESSORS_NEEDED = 4
"""With fewer, those who read, the kernel and the event loop keep them busy: a thread more only takes turns with them.
Two hardware threads of one core, which is what many virtual machines have, compute a fifth more than one."""
_MAX_THREADS = 4

_BEGINNING = 1.0
"""Seconds that the event loop waits for a thread to begin, once: ``threading.Thread.start`` waits for ever for one that
has no memory left to."""

T = TypeVar("T")
_Work = tuple[Callable[[], Any], Callable[[outcome.Outcome[Any]], object], trio.lowlevel.TrioToken]


class Workers:
    """Threads, started when there is work.

    Leaner than ``trio.to_thread``: handing something over takes about a tenth of a millisecond, not three.

    Args:
        threads: how many; by default as many as there are processors to spare, perhaps none.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is None:
            processors = len(os.sched_getaffinity(0))
            threads = min(processors // 2, _MAX_THREADS) if processors >= _PROCESSORS_NEEDED else 0
        self.threads = threads
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._started: list[_Thread] = []

    def submit(self, work: Callable[[], None], on_end: Callable[[], object]) -> None:
        """Call ``work`` in a thread, and ``on_end`` on this one when it has come to its end, however that was."""
        self._hand_over(work, lambda _: on_end())

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns in a thread, if there are any. A cancellation waits until it has come to its
        end, and is then forgotten."""
        if not self.threads:
            return work()
        task = trio.lowlevel.current_task()
        self._hand_over(work, lambda result: trio.lowlevel.reschedule(task, result))
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result

    def close(self) -> None:
        """End the threads, each when it is done with what was handed over, and wait for them."""
        for _ in self._started:
            self._queue.put(None)
        while self._started:
            self._started.pop().join()

    def _hand_over(self, work: Callable[[], Any], on_end: Callable[[outcome.Outcome[Any]], object]) -> None:
        if len(self._started) < self.threads:
            thread = _Thread(self._queue)
            if thread.start():
                self._started.append(thread)
            else:
                # No memory for it, or a limit on processes: what there is has to do.
                self.threads = len(self._started)
        token = trio.lowlevel.current_trio_token()
        if self._started:
            self._queue.put((work, on_end, token))
        else:
            token.run_sync_soon(on_end, outcome.capture(work))


class _Thread:
    """One thread that serves the queue."""

    def __init__(self, queue: SimpleQueue[_Work | None]) -> None:
        self._queue = queue
        self._ticket = [None]
        # Locks, free once that is so: no memory is needed to say it.
        self._begun = _thread.allocate_lock()
        self._ended = _thread.allocate_lock()

    def start(self) -> bool:
        """Whether it serves; if not, it never will."""
        self._begun.acquire()
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._serve, ())
        except (RuntimeError, MemoryError):
            return False
        return self._begun.acquire(timeout=_BEGINNING) or not self._take_ticket()

    def join(self) -> None:
        """Wait until it serves no more."""
        self._ended.acquire()

    def _take_ticket(self) -> bool:
        """For the thread that begins, or the caller who gives up before: true for the first."""
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True

    def _serve(self) -> None:
        if not self._take_ticket():
            return
        self._begun.release()
        try:
            while (item := self._queue.get()) is not None:
                work, on_end, token = item
                carry_out(work, on_end, token)
                # Not kept until the next one comes: it holds buffers.
                del item, work, on_end
        finally:
            self._ended.release()

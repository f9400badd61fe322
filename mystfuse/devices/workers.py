"""A few threads for fetching, checking and decrypting what is long, beside the event loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import outcome
import trio

from mystfuse.devices.threads import carry_out

INLINE_BYTES = 256 << 10
"""So many are checked and decrypted on the event loop's thread: handing them over costs more than it saves."""

_PROCESSORS_NEEDED = 4
"""With fewer, those who read, the kernel and the event loop keep them busy: a thread more only takes turns with them.
Two hardware threads of one core, which is what many virtual machines have, compute a fifth more than one."""
_MAX_THREADS = 4

_Work = tuple[Callable[[], None], Callable[[outcome.Outcome[None]], object], trio.lowlevel.TrioToken]


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
        self._started: list[threading.Thread] = []

    def submit(self, work: Callable[[], None], on_end: Callable[[], object]) -> None:
        """Call ``work`` in a thread, and ``on_end`` on this one when it has come to its end, however that was."""
        self._hand_over(work, lambda _: on_end())

    async def run(self, work: Callable[[], None]) -> None:
        """Call ``work`` in a thread, if there are any. A cancellation waits until it has come to its end, and is then
        forgotten."""
        if not self.threads:
            work()
            return
        task = trio.lowlevel.current_task()
        self._hand_over(work, lambda result: trio.lowlevel.reschedule(task, result))
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    def close(self) -> None:
        """End the threads, each when it is done with what was handed over, and wait for them."""
        for _ in self._started:
            self._queue.put(None)
        while self._started:
            self._started.pop().join()

    def _hand_over(self, work: Callable[[], None], on_end: Callable[[outcome.Outcome[None]], object]) -> None:
        if len(self._started) < self.threads:
            thread = threading.Thread(target=_serve, args=(self._queue,), name="mystfuse worker", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No memory for it, or a limit on processes: what there is has to do.
                self.threads = len(self._started)
            else:
                self._started.append(thread)
        token = trio.lowlevel.current_trio_token()
        if self._started:
            self._queue.put((work, on_end, token))
        else:
            token.run_sync_soon(on_end, outcome.capture(work))


def _serve(queue: SimpleQueue[_Work | None]) -> None:
    while (item := queue.get()) is not None:
        work, on_end, token = item
        carry_out(work, on_end, token)
        # Not kept until the next one comes: it holds buffers.
        del item, work, on_end

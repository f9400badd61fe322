"""One call in a thread of its own, whose caller on the event loop may give up waiting: a thread that never begins, or
never ends, costs only its caller's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import outcome
import trio

from mystfuse.system.pool import begin_thread

T = TypeVar("T")


def start_in_thread(work: Callable[[], T], on_end: Callable[[outcome.Outcome[T]], object]) -> Callable[[], bool]:
    """Call ``work`` in a thread, and ``on_end`` with its outcome on the event loop's thread. Nothing waits for
    the thread when the loop ends.

    Returns:
        To be called to give up waiting: True if the thread had not begun; then it never calls anything.

    Raises:
        RuntimeError, MemoryError: no thread can be started.
    """
    return begin_thread(deferred(work, on_end))


def deferred(work: Callable[[], T], on_end: Callable[[outcome.Outcome[T]], object]) -> Callable[[], None]:
    """A call in another thread: it runs ``work``, and lets ``on_end`` run on this one, the event loop's."""
    waiting = [on_end]

    def end(result: outcome.Outcome[T]) -> None:
        # A thread without memory for reporting its end may report it twice.
        if waiting:
            waiting.pop()(result)

    return partial(_carry_out, work, end, trio.lowlevel.current_trio_token())


def _carry_out(
    work: Callable[[], T], on_end: Callable[[outcome.Outcome[T]], object], token: trio.lowlevel.TrioToken
) -> None:
    """Call ``work``, and ``on_end`` with its outcome on the event loop's thread, if the loop has not ended. Want of
    memory delays that, and does not prevent it: no caller must wait for a thread that has ended."""
    result: outcome.Outcome[T] | None
    try:
        result = outcome.capture(work)
    except MemoryError:
        # Not even for its outcome.
        result = None
    while True:
        try:
            if result is None:
                result = outcome.Error(MemoryError())
            token.run_sync_soon(on_end, result)
        except MemoryError:
            time.sleep(0.1)
        except trio.RunFinishedError:
            return
        else:
            return


async def call_in_thread(work: Callable[[], T], on_end: Callable[[], object] = lambda: None) -> T:
    """Return the result of ``work`` in a thread. A cancellation does not wait for it.

    Args:
        on_end: called once, on the event loop's thread, when the thread has come to its end, or will do nothing any
            more; that may be long after a cancellation.

    Raises:
        RuntimeError, MemoryError: no thread can be started.
    """
    task = trio.lowlevel.current_task()
    is_awaited = True

    def deliver(result: outcome.Outcome[T]) -> None:
        on_end()
        if is_awaited:
            trio.lowlevel.reschedule(task, result)

    try:
        give_up = start_in_thread(work, deliver)
    except BaseException:
        on_end()
        raise

    def abort(_: object) -> trio.lowlevel.Abort:
        nonlocal is_awaited
        is_awaited = False
        if give_up():
            on_end()
        return trio.lowlevel.Abort.SUCCEEDED

    result: T = await trio.lowlevel.wait_task_rescheduled(abort)
    return result

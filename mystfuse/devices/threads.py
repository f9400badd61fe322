"""One call in a thread of its own, whose caller may give up waiting."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")


async def call_in_thread(work: Callable[[], T], on_end: Callable[[], object] = lambda: None) -> T:
    """Return what ``work`` returns in a thread. A cancellation does not wait for it.

    ``trio.to_thread`` stands on ``threading.Thread.start``, which waits for ever, and the event loop with it, for a
    thread that has no memory left to begin (seen with Python 3.11 under RLIMIT_AS). Here a thread that never begins
    costs only its caller's time.

    Args:
        on_end: called once, on the event loop's thread, when the thread has come to its end, or will do nothing any
            more; that may be long after a cancellation.

    Raises:
        RuntimeError: no thread can be started.
    """
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
    ticket = [None]
    is_awaited = True

    def serve() -> None:
        try:
            # Whoever takes it decides: the thread that begins, or the caller who gives up before.
            ticket.pop()
        except IndexError:
            return
        result = outcome.capture(work)
        while True:
            try:
                token.run_sync_soon(deliver, result)
            except MemoryError:
                time.sleep(0.1)
            except trio.RunFinishedError:
                return
            else:
                return

    def deliver(result: outcome.Outcome[T]) -> None:
        on_end()
        if is_awaited:
            trio.lowlevel.reschedule(task, result)

    def give_up(_: object) -> trio.lowlevel.Abort:
        nonlocal is_awaited
        is_awaited = False
        try:
            ticket.pop()
        except IndexError:
            pass
        else:
            on_end()
        return trio.lowlevel.Abort.SUCCEEDED

    try:
        _thread.start_new_thread(serve, ())
    except BaseException:
        on_end()
        raise
    result: T = await trio.lowlevel.wait_task_rescheduled(give_up)
    return result

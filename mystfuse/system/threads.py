"""One call in a thread of its own, whose caller may give up waiting.

``trio.to_thread`` and trio's cache of threads stand on ``threading.Thread.start``, which waits for ever, and the event
loop with it, for a thread that has no memory left to begin (seen with Python 3.11 under RLIMIT_AS). Here a thread that
never begins costs only its caller's time.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")


def start_in_thread(work: Callable[[], T], on_end: Callable[[outcome.Outcome[T]], object]) -> Callable[[], bool]:
    """Call ``work`` in a thread, and ``on_end`` with what came of it on this one, the event loop's. Nothing waits for
    the thread when the loop ends.

    Returns:
        To be called by who gives up waiting: True if the thread had not begun; then it never calls anything.

    Raises:
        RuntimeError, MemoryError: no thread can be started.
    """
    token = trio.lowlevel.current_trio_token()
    ticket = [None]

    def serve() -> None:
        try:
            # Whoever takes it decides: the thread that begins, or the caller who gives up before.
            ticket.pop()
        except IndexError:
            return
        carry_out(work, on_end, token)

    def give_up() -> bool:
        try:
            ticket.pop()
        except IndexError:
            return False
        return True

    _thread.start_new_thread(serve, ())
    return give_up


def carry_out(
    work: Callable[[], T], on_end: Callable[[outcome.Outcome[T]], object], token: trio.lowlevel.TrioToken
) -> None:
    """Call ``work``, and ``on_end`` with what came of it on the event loop's thread, if the loop has not ended. Want of
    memory delays that, and does not prevent it: nobody must wait for a thread that has ended."""
    result: outcome.Outcome[T] | None
    try:
        result = outcome.capture(work)
    except MemoryError:
        # Not even for what came of it.
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
    """Return what ``work`` returns in a thread. A cancellation does not wait for it.

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

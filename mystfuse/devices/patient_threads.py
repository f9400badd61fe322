"""Calls that may wait for storage, from an event loop: each in a thread that is left behind when its time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from mystfuse.devices.patience import timed_out
from mystfuse.system.threads import call_in_thread

T = TypeVar("T")


async def call_patiently(work: Callable[[], T], name: str, io_timeout: float) -> T:
    """What ``work`` returns, in a thread, which a cancellation leaves behind.

    Args:
        name: what it waits for, for messages.
        io_timeout: seconds that it may take.

    Raises:
        StorageTimeout: it has taken longer.
    """
    try:
        with trio.fail_after(io_timeout):
            return await call_in_thread(work)
    except trio.TooSlowError:
        raise timed_out(name, io_timeout) from None

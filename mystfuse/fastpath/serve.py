"""The task that takes the requests which the C threads leave to Python, past libfuse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mystfuse.fastpath.fast_path import FastPath
from mystfuse.fuse.direct_requests import DirectRequests
from mystfuse.fuse.requests import Requests

_WAIT = 200
"""Microseconds to wait for the next request outside of trio, which takes as long to wake up."""
_AT_ONCE = 64
"""Requests after which other tasks run."""
_LONGEST = 0.005
"""Seconds after which they do."""


async def serve(fast_path: FastPath, requests: Requests, on_end: Callable[[], None]) -> None:
    """Answer requests until the mount has ended.

    Args:
        on_end: called when the kernel has ended the mount.
    """
    direct = DirectRequests(requests, fast_path.reply)
    async with trio.open_nursery() as nursery:
        while not fast_path.has_ended:
            await fast_path.wait()
            _serve_now(fast_path, direct, nursery)
            await trio.lowlevel.checkpoint()
        on_end()


def _serve_now(fast_path: FastPath, direct: DirectRequests, nursery: trio.Nursery) -> None:
    """Answer the waiting requests, and those that come right after them, for a bounded time."""
    end = trio.current_time() + _LONGEST
    for _ in range(_AT_ONCE):
        request = fast_path.take(_WAIT)
        if request is None:
            break
        later = direct.handle(fast_path.content(request))
        if later is None:
            fast_path.done(request)
        else:
            nursery.start_soon(_serve_later, fast_path, request, later)
            break
        if trio.current_time() > end:
            break
    release = direct.after_replies()
    if release is not None:
        nursery.start_soon(release)


async def _serve_later(fast_path: FastPath, request: Any, later: Callable[[], Awaitable[None]]) -> None:
    try:
        await later()
    finally:
        fast_path.done(request)

"""The task that takes the requests which the C threads leave to Python, past libfuse."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mystfuse.fastpath.fast_path import FastPath
from mystfuse.fuse.direct_requests import DirectRequests
from mystfuse.fuse.requests import Requests

_WAIT = 400
"""Microseconds to wait for the next request outside of trio, which takes a quarter of that to wake up."""
_AT_ONCE = 64
"""Requests after which other tasks run."""
_LONGEST = 0.005
"""Seconds after which they do."""
_GATHERING = 0.01
"""Seconds for removed files to gather: freeing many takes a fifth of the time for each."""


async def serve(fast_path: FastPath, requests: Requests, on_end: Callable[[], None]) -> None:
    """Answer requests until the mount has ended.

    Args:
        on_end: called when the kernel has ended the mount.
    """
    async with trio.open_nursery() as nursery:
        server = _Server(fast_path, requests, nursery)
        while not fast_path.has_ended:
            await fast_path.wait()
            server.serve_now()
            await trio.lowlevel.checkpoint()
        on_end()


class _Server:
    def __init__(self, fast_path: FastPath, requests: Requests, nursery: trio.Nursery) -> None:
        self._fast_path = fast_path
        self._requests = requests
        self._direct = DirectRequests(requests, fast_path.reply, fast_path.drop_attributes)
        self._nursery = nursery
        self._is_gathering = False

    def serve_now(self) -> None:
        """Answer the waiting requests, and those that come right after them, for a bounded time."""
        fast_path, direct = self._fast_path, self._direct
        end = time.monotonic() + _LONGEST
        for _ in range(_AT_ONCE):
            request = fast_path.take(_WAIT)
            if request is None:
                break
            later = direct.handle(fast_path.content(request))
            if later is not None:
                self._nursery.start_soon(self._serve_later, request, later)
                break
            fast_path.done(request)
            if time.monotonic() > end:
                break
        fast_path.pause()
        if self._requests.has_unused and not self._is_gathering:
            self._is_gathering = True
            self._nursery.start_soon(self._free_unused)

    async def _serve_later(self, request: Any, later: Callable[[], Awaitable[None]]) -> None:
        try:
            await later()
        finally:
            self._fast_path.done(request)

    async def _free_unused(self) -> None:
        await trio.sleep(_GATHERING)
        self._is_gathering = False
        await self._requests.release_unused()

"""A trio event loop in a thread of its own, for callers that have none, or another library's.

An asynchronous context manager is open in it from the loop's beginning to its end. Callers have coroutines run there,
and wait for each as for any ``Awaited``: interrupted or cancelled, they cancel it and wait for its end. ADR 26 says why
it is a thread, and not trio's guest mode.
"""

from __future__ import annotations

import atexit
import os
from _thread import get_ident, start_new_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Generic, TypeVar

import trio

from mystfuse.errors import innermost
from mystfuse.system.blocking import Awaited, raising

T = TypeVar("T")
V = TypeVar("V")


class LoopThread(Generic[V]):
    """An event loop in a thread, which no program waits for at its end: what is open then is closed.

    Args:
        what: what is open in it, for messages.
        manager: makes the context manager; called in the loop.
    """

    def __init__(self, what: str, manager: Callable[[], AbstractAsyncContextManager[V]]) -> None:
        self.failure: BaseException | None = None
        """What the manager raised, or what the loop died of."""
        self._what = what
        self._manager = manager
        self._process = os.getpid()
        self._thread = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._opening: _Opening[V] = _Opening(self)
        self._scope = trio.CancelScope()
        self._calls: trio.Nursery | None = None
        """For the calls; None before the manager is entered, and when the loop ends."""
        self._cut_off: list[Awaited[Any]] = []
        """Calls that the end of the loop has cut off."""
        # No locks: an interrupted caller might keep one.
        self._is_stopped = False
        self._is_running = False
        self._at_end: list[Callable[[], object]] = []

    def open(self) -> Awaited[V]:
        """To be waited for, once: the loop begins and enters the manager. Raises what that raises, as it is.

        A caller that is interrupted or cancelled has to ``close``."""
        return self._opening

    def call(self, function: Callable[[], Awaitable[T]]) -> Awaited[T]:
        """To be waited for: an asynchronous function called in the loop.

        Raises, when it is waited for:
            ValueError: the loop has ended, ends meanwhile, or belongs to the process that this one was forked from.
            RuntimeError: the caller runs in the loop itself.
            Exception: what the function raises, as it is.
        """
        return _Call(self, function)

    def close(self) -> Awaited[None]:
        """To be waited for: calls under way are cut off, the manager is left, and the loop has ended. May be repeated.

        A process that was forked from the loop's has nothing to close.
        """
        return _Ending(self)

    def stop(self) -> None:
        """Begin what ``close`` does. Never waits: any thread may call it, in the garbage collector too."""
        self._is_stopped = True
        with suppress(ValueError):
            self.post(self._stop)

    def when_ended(self, action: Callable[[], object]) -> None:
        """Have ``action`` called, in any thread, when the loop has ended; at once if it is not running."""
        self._at_end.append(action)
        if not self._is_running:
            self._tell_of_end()

    def post(self, action: Callable[[], object]) -> None:
        """Have ``action`` called in the loop soon. Never waits.

        Raises:
            ValueError: the loop has ended, or belongs to the process that this one was forked from.
        """
        if self.is_foreign():
            raise ValueError(f"{self._what} was opened by process {self._process}, before a fork: open it again here")
        if self._token is None:
            raise self._closed()
        try:
            self._token.run_sync_soon(action)
        except trio.RunFinishedError:
            raise self._closed() from self.failure

    def is_foreign(self) -> bool:
        """Whether this process was forked from that of the loop, and has only its memory."""
        return os.getpid() != self._process

    def refuse_own_thread(self) -> None:
        """Raise RuntimeError in the loop's own thread, which would wait for itself."""
        if get_ident() == self._thread and not self.is_foreign():
            raise RuntimeError(f"{self._what} cannot be used by its own event loop")

    def start(self) -> None:
        """Start the thread; RuntimeError if no thread can be started."""
        self._is_running = True
        try:
            start_new_thread(self._run, ())
        except BaseException:
            self._is_running = False
            raise

    def begin(self, call: _Call[Any]) -> None:
        """Begin a call, in the loop."""
        if not call.claim():
            return
        if self._calls is None:
            self._cut_off.append(call)
        else:
            self._calls.start_soon(self._run_call, call)

    def _closed(self) -> ValueError:
        return ValueError(f"{self._what} is closed")

    # What follows runs in the loop's thread.

    def _run(self) -> None:
        if self._opening.claim():
            self._thread = get_ident()
            _running.add(self)
            try:
                trio.run(self._main)
            except BaseException as error:
                self.failure = innermost(error)
            _running.discard(self)
            # Thread numbers are used again.
            self._thread = 0
        self._is_running = False
        # Last of all, its caller may be gone: it was cancelled.
        if not self._opening.has_ended:
            self._opening.end(raising(self.failure or self._closed()))
        for call in self._cut_off:
            closed = self._closed()
            closed.__cause__ = self.failure
            call.end(raising(closed))
        self._cut_off.clear()
        self._tell_of_end()

    def _tell_of_end(self) -> None:
        # Two threads may do this at once: each action is taken by one.
        with suppress(IndexError):
            while True:
                self._at_end.pop()()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._is_stopped:
                self._scope.cancel()
            async with self._manager() as value, trio.open_nursery() as nursery:
                self._calls = nursery
                try:
                    self._opening.end(lambda: value)
                    if self._is_stopped:
                        return
                    await trio.sleep_forever()
                finally:
                    self._calls = None
                    nursery.cancel_scope.cancel()

    def _stop(self) -> None:
        (self._scope if self._calls is None else self._calls.cancel_scope).cancel()

    async def _run_call(self, call: _Call[T]) -> None:
        try:
            with call.scope:
                try:
                    result = await call.function()
                except trio.Cancelled:
                    raise
                except BaseException as error:
                    call.end(raising(error))
                else:
                    call.end(lambda: result)
                return
        except trio.Cancelled:
            # The loop ends.
            self._cut_off.append(call)
            raise
        # Its caller has given up, and raises an error of its own.
        call.end(raising(self._closed()))


class Steps(Generic[T]):
    """An asynchronous generator in a loop, whose items another thread takes in batches.

    Args:
        at_once: items of a batch, at most.
    """

    def __init__(self, generator: AsyncIterator[T], at_once: int) -> None:
        self._generator = generator
        self._at_once = at_once
        self._error: BaseException | None = None

    async def next(self) -> list[T]:
        """In the loop: the next items; none at the end. An error is raised after the items before it."""
        if self._error is not None:
            raise self._error
        batch: list[T] = []
        try:
            while len(batch) < self._at_once:
                batch.append(await anext(self._generator))
        except StopAsyncIteration:
            pass
        except Exception as error:
            if not batch:
                raise
            self._error = error
        return batch

    def end(self, loop: LoopThread[Any]) -> None:
        """Close the generator. Never waits: any thread may call it, in the garbage collector too."""
        with suppress(ValueError):
            loop.post(self._close)

    def _close(self) -> None:
        # Ours await nothing when they are closed. One that still runs, its caller interrupted, ends by itself.
        with suppress(StopIteration, RuntimeError):
            self._generator.aclose().send(None)  # type: ignore[attr-defined]


class _Opening(Awaited[V]):
    def __init__(self, loop: LoopThread[V]) -> None:
        super().__init__(loop.stop)
        self._loop = loop

    def _start(self) -> None:
        self._loop.start()


class _Call(Awaited[T]):
    def __init__(self, loop: LoopThread[Any], function: Callable[[], Awaitable[T]]) -> None:
        super().__init__(self._cancel)
        self._loop = loop
        self.function = function
        self.scope = trio.CancelScope()

    def _start(self) -> None:
        self._loop.refuse_own_thread()
        self._loop.post(partial(self._loop.begin, self))

    def _cancel(self) -> None:
        with suppress(ValueError):
            self._loop.post(self.scope.cancel)


class _Ending(Awaited[None]):
    def __init__(self, loop: LoopThread[Any]) -> None:
        super().__init__(loop.stop)
        self._loop = loop

    def _start(self) -> None:
        self._loop.refuse_own_thread()
        if self._loop.is_foreign():
            self._tell()
        else:
            self._loop.stop()
            self._loop.when_ended(self._tell)

    def _tell(self) -> None:
        if self.claim():
            self.end(lambda: None)


_running: set[LoopThread[Any]] = set()


@atexit.register
def _close_all() -> None:
    for loop in list(_running):
        loop.close().run()

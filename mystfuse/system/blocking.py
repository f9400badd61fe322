"""What another thread does, waited for to its end: the caller is plain code, a trio task or an asyncio task.

Python raises KeyboardInterrupt between any two steps of the main thread, and a cancelled task does not get a thread's
result. So an action that must not stop halfway runs in a thread, and its caller goes on only when it has ended.
``call_in_thread`` is for trio tasks that may leave it behind.
"""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")


def _nothing() -> None:
    pass


class Awaited(Generic[T]):
    """Wait for it once, by ``run`` or ``run_async``; when they return or raise, it has ended, or never begins.

    Subclasses have ``_start``, which leads another thread to call ``claim`` and then ``end``.

    Args:
        stop: called when the caller is interrupted or cancelled: has it end soon. Also called before it begins, and
            after its end.
    """

    # Bare locks and threads: a KeyboardInterrupt within those of ``threading`` and ``concurrent.futures`` may leave
    # their own locks taken, or given back twice.

    def __init__(self, stop: Callable[[], None] = _nothing) -> None:
        self._stop = stop
        self._claim = allocate_lock()
        """Taken by the thread when it begins, or by the caller, so that it never begins."""
        self._at_work = allocate_lock()
        self._at_work.acquire()
        self.has_ended = False
        self._wake = _nothing
        self._outcome: Callable[[], T]

    def claim(self) -> bool:
        """For the other thread: whether to begin, or its caller has given up before."""
        return self._claim.acquire(blocking=False)

    def end(self, outcome: Callable[[], T]) -> None:
        """For the other thread, once: it has ended. ``outcome`` returns the result, or raises the error."""
        self._outcome = outcome
        self.has_ended = True
        self._at_work.release()
        # Kept no longer: it refers to the caller.
        wake, self._wake = self._wake, _nothing
        wake()

    def run(self) -> T:
        """Return or raise its result. KeyboardInterrupt is raised after its end."""
        try:
            self._start()
            self._wait()
        except BaseException:
            if not self._give_up():
                self._wait()
            raise
        return self._outcome()

    async def run_async(self, shield: bool = False) -> T:
        """The same in an event loop, trio's or asyncio's. Cancelled, it raises that when it has ended.

        Args:
            shield: do not stop it when cancelled; under trio do not even look.
        """
        import sniffio

        is_asyncio = sniffio.current_async_library() == "asyncio"
        await (self._wait_asyncio(shield) if is_asyncio else self._wait_trio(shield))
        return self._outcome()

    def _start(self) -> None:
        """Have another thread begin."""
        raise NotImplementedError

    def _wait(self) -> None:
        # A caller that was interrupted may have taken the lock.
        if not self.has_ended:
            self._at_work.acquire()

    def _give_up(self) -> bool:
        """Whether it has not begun, and never will."""
        self._stop()
        return self.claim()

    async def _wait_trio(self, shield: bool) -> None:
        import trio

        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._wake = wake
        try:
            self._start()
            with trio.CancelScope(shield=shield):
                await done.wait()
        except BaseException:
            if not self._give_up():
                with trio.CancelScope(shield=True):
                    await done.wait()
            raise

    async def _wait_asyncio(self, shield: bool) -> None:
        import asyncio

        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        self._wake = wake
        self._start()
        cancelled: asyncio.CancelledError | None = None
        while not done.is_set():
            try:
                await done.wait()
            except asyncio.CancelledError as error:
                # Also a second one: asyncio forgets a task that ends while its thread goes on.
                cancelled = cancelled or error
                if not shield and self._give_up():
                    break
        if cancelled is not None:
            raise cancelled


class Operation(Awaited[T]):
    """A blocking action in a thread of its own.

    Args:
        action: ends by itself within bounded time.
        stop: as for ``Awaited``.
    """

    def __init__(self, action: Callable[[], T], stop: Callable[[], None] = _nothing) -> None:
        super().__init__(stop)
        self._action = action

    def _start(self) -> None:
        try:
            start_new_thread(self._work, ())
        except RuntimeError:
            # No further thread: better here than not at all.
            self._work()

    def _work(self) -> None:
        if self.claim():
            self.end(outcome_of(self._action))


def outcome_of(action: Callable[[], T]) -> Callable[[], T]:
    """Call ``action``; returns a function that returns its result, or raises its error."""
    try:
        result = action()
    except BaseException as error:
        return raising(error)
    return lambda: result


def raising(error: BaseException) -> Callable[[], NoReturn]:
    """A function that raises this error, once."""

    def outcome() -> NoReturn:
        nonlocal error
        try:
            raise error
        finally:
            # Its traceback has this frame, which would keep it, and all that its caller has, until a collection.
            del error

    return outcome

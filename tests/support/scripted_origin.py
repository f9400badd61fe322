"""An origin in memory that does what a script says, for tests in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio
import trio.testing

from mystfuse.remote.origin import Failure, FetchError, Opened, Receive
from mystfuse.remote.transfers import Transfers

CONTENT = random.Random(19).randbytes(100_000)
T = TypeVar("T")

Step = Callable[["ScriptedOrigin", int, int, Receive], Awaitable[None]]
"""What a fetch does: gets the range, and where the bytes go."""


class ScriptedOrigin:
    """Serves ``content``; the first requests do what ``script`` says, one step each, and ``opening`` those of ``open``.

    ``log`` has the ranges that were asked for, ``direct`` whether past proxies, ``times`` when.
    """

    def __init__(
        self,
        content: bytes,
        script: Sequence[Step] = (),
        opening: Sequence[FetchError | float] = (),
        *,
        name: str = "origin",
        latency: float = 0.01,
        then: Step | None = None,
    ) -> None:
        self.name = name
        self.content = content
        self.script = list(script)
        self.opening = list(opening)
        self.latency = latency
        self.then = then
        self.log: list[tuple[int, int]] = []
        self.direct: list[bool] = []
        self.times: list[float] = []
        self.opens = 0
        self.renewals = 0
        self.can_renew = True
        self.is_closed = False

    async def open(self, tail: int) -> Opened:
        self.opens += 1
        step = self.opening.pop(0) if self.opening else self.latency
        if isinstance(step, FetchError):
            await trio.sleep(self.latency)
            raise step
        await trio.sleep(step)
        return Opened(len(self.content), '"1"', self.content[-tail:] if tail else b"")

    async def fetch(self, offset: int, length: int, receive: Receive, *, directly: bool = False) -> None:
        self.log.append((offset, length))
        self.direct.append(directly)
        self.times.append(trio.current_time())
        assert 0 <= offset < offset + length <= len(self.content)
        step = self.script.pop(0) if self.script else self.then or good
        await step(self, offset, length, receive)

    async def renew(self) -> None:
        self.renewals += 1
        await trio.sleep(self.latency)
        if not self.can_renew:
            raise FetchError(Failure.DENIED, f"{self.name}: no other credentials")

    async def aclose(self) -> None:
        self.is_closed = True


async def good(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """All that was asked for, in pieces."""
    await trio.sleep(origin.latency)
    await _send(origin, offset, offset + length, receive)


async def hang(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """No answer, ever."""
    await trio.sleep_forever()


async def stall(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """Half of it, and then nothing."""
    await trio.sleep(origin.latency)
    await _send(origin, offset, offset + length // 2, receive)
    await trio.sleep_forever()


async def trickle(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """Two bytes each second."""
    for position in range(offset, offset + length):
        await trio.sleep(0.5)
        await _send(origin, position, position + 1, receive)


async def cut(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """Half of it, and then an error."""
    await trio.sleep(origin.latency)
    await _send(origin, offset, offset + length // 2, receive)
    raise FetchError(Failure.UNREACHABLE, f"{origin.name}: the connection broke")


async def too_much(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """More than was asked for."""
    await receive(offset, memoryview(bytes(length + 1)))


async def elsewhere(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
    """Bytes from another place."""
    await receive(offset + 1, memoryview(bytes(length - 1)))


def fail(failure: Failure, retry_after: float | None = None) -> Step:
    """A step that fails so."""

    async def step(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
        await trio.sleep(origin.latency)
        raise FetchError(failure, f"{origin.name}: {failure.value}", retry_after)

    return step


def late(seconds: float) -> Step:
    """A step that answers after so long."""

    async def step(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
        await trio.sleep(seconds)
        await _send(origin, offset, offset + length, receive)

    return step


async def _send(origin: ScriptedOrigin, start: int, end: int, receive: Receive) -> None:
    for position in range(start, end, 4096):
        await receive(position, memoryview(origin.content)[position : min(end, position + 4096)])


def in_virtual_time(main: Callable[[], Awaitable[T]]) -> T:
    """Run it with a clock that jumps wherever all wait."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Sink:
    """Takes the bytes of a fetch, and checks that they come in order."""

    def __init__(self, offset: int) -> None:
        self.start = offset
        self.data = bytearray()

    async def __call__(self, offset: int, data: memoryview) -> None:
        assert offset == self.start + len(self.data)
        self.data += data


async def fetched(
    transfers: Transfers, offset: int = 0, length: int = 50_000, seconds: float = 30, **how: Any
) -> bytes:
    """What a fetch brings."""
    sink = Sink(offset)
    await transfers.fetch(offset, length, sink, deadline=trio.current_time() + seconds, **how)
    return bytes(sink.data)


async def opened(*origins: ScriptedOrigin, notes: list[str] | None = None) -> Transfers:
    """Transfers from the origins, opened; ``notes`` gets the lines for the log."""
    transfers = Transfers(origins, lambda level, line: (notes if notes is not None else []).append(line))
    await transfers.open(4096, trio.current_time() + 30)
    return transfers

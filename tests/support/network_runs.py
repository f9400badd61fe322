"""Runs of seeded network faults against the fetcher's transfers, on a virtual clock: what was asked for comes right, or
fails in time and with a reason; and it comes if it can be had within the time-out."""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from unittest import mock

import trio
import trio.testing

from mystfuse.remote import registry_auth
from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError, Opened, Origin, Receive
from mystfuse.remote.origins import make_origin
from mystfuse.remote.transfers import Transfers
from tests.support.certificates import Authority
from tests.support.faulty_proxy import FaultyServer
from tests.support.http_objects import StoredObject, etag_of
from tests.support.network_faults import CHANGES_BYTES, IO_TIMEOUT, NetworkSchedule, ServerSchedule
from tests.support.token_registry import TokenRegistry

T = TypeVar("T")
HOST = "images.test"
"""Known to this resolver alone."""
SLACK = 2.0
"""Seconds that an answer may come after the time-out."""
LONGEST = 100_000
"""Bytes of a read."""
CONTENT = random.Random(5).randbytes(1 << 20)
OTHER = random.Random(6).randbytes(1 << 20)
"""What takes its place."""


@dataclass
class Tally:
    """The results of runs."""

    right: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Reads that failed, by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """Images that failed to open."""
    done: Counter[str] = field(default_factory=Counter)
    """The faults that happened."""
    again: int = 0
    """Reads that were wrong at first, and asked for again."""
    slowest: float = 0.0
    """Seconds of the clock."""

    def add(self, other: Tally) -> None:
        self.right += other.right
        self.failed += other.failed
        self.refused += other.refused
        self.done += other.done
        self.again += other.again
        self.slowest = max(self.slowest, other.slowest)


class Resolver(trio.abc.HostnameResolver):
    """Knows one host, unless it does not."""

    def __init__(self, is_out: Callable[[], bool]) -> None:
        self._is_out = is_out

    async def getaddrinfo(
        self, host: bytes | None, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, Any, int, str, tuple[str, int]]]:
        await trio.lowlevel.checkpoint()
        if host != HOST.encode() or self._is_out():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def _call_here(work: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return work()


class AsksOnce:
    """Transfers that ask the first origin, once, without a time-out: what must not pass."""

    def __init__(self, origins: Sequence[Origin], note: Callable[[int, str], None]) -> None:
        self._origin = origins[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        with trio.CancelScope(shield=True):
            await self._origin.aclose()

    async def open(self, tail: int, deadline: float) -> Opened:
        return await self._origin.open(tail)

    async def fetch(self, offset: int, length: int, receive: Receive, *, deadline: float, again: bool = False) -> None:
        await self._origin.fetch(offset, length, receive, directly=again)


class Run:
    """One seed's run.

    Args:
        authority: which the client trusts.
        other: which it does not.
        kind: what is judged.
    """

    def __init__(
        self, seed: int, authority: Authority, other: Authority, kind: type[Transfers] | type[AsksOnce] = Transfers
    ) -> None:
        self._kind = kind
        self.tally = Tally()
        self.schedule = NetworkSchedule(seed)
        self._authority, self._other = authority, other
        self._notes: list[str] = []

    def run(self) -> None:
        """Raises AssertionError on any broken promise."""
        # The clock jumps while threads work.
        with mock.patch.object(registry_auth, "call_in_thread", _call_here):
            trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))

    async def _main(self) -> None:
        schedule = self.schedule
        trio.socket.set_custom_hostname_resolver(
            Resolver(lambda: all(self._now(server).is_out("no such host") for server in schedule.servers))
        )
        async with self._servers() as servers:
            config = FetcherConfig(
                tuple(self._address(server) for server in servers),
                ca_certificates=str(self._authority.ca) if schedule.is_tls else None,
            )
            origins = [make_origin(parse_address(text), config) for text in config.addresses]
            async with self._kind(origins, self._note) as transfers:
                await self._use(transfers)
            for server in servers:
                self.tally.done += server.done
                # Whatever is endless has been cut off: what is sent stays near what was asked for.
                assert server.bytes_sent < (len(server.requests) + 1) * (len(CONTENT) + (4 << 20)), schedule
        assert len(self._notes) < 200, (schedule, self._notes[:20])

    def _address(self, server: FaultyServer) -> str:
        if self.schedule.is_registry:
            return f"oci://127.0.0.1:{server.port}/image:latest"
        return f"{'https' if self.schedule.is_tls else 'http'}://{HOST}:{server.port}/image"

    def _note(self, level: int, line: str) -> None:
        assert level in (logging.INFO, logging.WARNING, logging.ERROR) and "\n" not in line, (self.schedule, line)
        self._notes.append(line)

    def _now(self, server: ServerSchedule) -> ServerSchedule:
        server.now = trio.current_time() - self._began
        return server

    @asynccontextmanager
    async def _servers(self) -> AsyncIterator[list[FaultyServer]]:
        schedule = self.schedule
        self._began = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery, found = nursery, []
            for number, server in enumerate(schedule.servers):
                made = FaultyServer(
                    TokenRegistry(CONTENT) if schedule.is_registry else StoredObject(CONTENT),
                    lambda request, server=server: self._now(server).choose(request),
                    lambda server=server: self._now(server).accept(),
                    tls=self._authority.server_context() if schedule.is_tls else None,
                    other_tls=self._other.server_context() if schedule.is_tls else None,
                    seed=number,
                )
                await nursery.start(made.serve)
                nursery.start_soon(self._cause_outages, made, server)
                found.append(made)
            yield found
            nursery.cancel_scope.cancel()

    async def _cause_outages(self, server: FaultyServer, schedule: ServerSchedule) -> None:
        trouble = schedule.trouble
        if isinstance(server.handler, TokenRegistry):
            self._nursery.start_soon(self._expire_tokens, server.handler)
        if "refused" in trouble.kinds:
            await trio.sleep(trouble.begin)
            server.refuse()
            server.done["refused"] += 1
            await trio.sleep(trouble.end - trouble.begin)
            server.stop_refusing()
        if self.schedule.is_replaced:
            stored = server.handler
            assert isinstance(stored, StoredObject)
            await trio.sleep_until(self._began + 2.0)
            stored.replace(OTHER)
            server.done["replaced"] += 1
            if self.schedule.comes_back:
                await trio.sleep(3.0)
                stored.replace(CONTENT)

    async def _expire_tokens(self, registry: TokenRegistry) -> None:
        while True:
            await trio.sleep(1.5)
            registry.expire()

    async def _use(self, transfers: Transfers | AsksOnce) -> None:
        try:
            opened = await self._within(lambda deadline: transfers.open(8192, deadline), self.tally.refused, True)
        except FetchError:
            return
        # It may have been replaced just before.
        self._content = OTHER if opened.validator == etag_of(OTHER) else CONTENT
        # A wrong tail is the hash tree's to find; a wrong size or version is not.
        assert opened.size in (len(CONTENT), len(CONTENT) - 1, len(CONTENT) + 4096), self.schedule
        if opened.size != len(CONTENT):
            return
        async with trio.open_nursery() as nursery:
            for task in range(self.schedule.tasks):
                nursery.start_soon(self._read_as, transfers, random.Random(f"{self.schedule.seed} {task}"))

    async def _read_as(self, transfers: Transfers | AsksOnce, dice: random.Random) -> None:
        for _ in range(dice.choice((3, 6))):
            await trio.sleep(dice.choice((0.0, 0.3, 1.0, 4.0)))
            length = dice.choice((1, 4096, 16384, LONGEST))
            offset = dice.randrange(len(CONTENT) - length)
            try:
                await self._within(
                    lambda deadline, span=(offset, length): self._read(transfers, *span, deadline),
                    self.tally.failed,
                    False,
                )
            except FetchError:
                continue
            self.tally.right += 1

    async def _read(self, transfers: Transfers | AsksOnce, offset: int, length: int, deadline: float) -> None:
        """As the hash tree has it: what is wrong is asked for once more."""
        wanted = self._content[offset : offset + length]
        for again in (False, True):
            found = bytearray()

            async def receive(at: int, data: memoryview, found: bytearray = found) -> None:
                assert at == offset + len(found) and 0 < len(data) <= length - len(found), self.schedule
                found += data

            await transfers.fetch(offset, length, receive, deadline=deadline, again=again)
            assert len(found) == length, self.schedule
            if found == wanted:
                return
            # Only flips change bytes, and only where nobody asked past the caches.
            assert not again and self._may_flip, (self.schedule, offset, length)
            self.tally.again += 1

    @property
    def _may_flip(self) -> bool:
        return any({*CHANGES_BYTES} & {*server.trouble.kinds} for server in self.schedule.servers)

    async def _within(self, ask: Callable[[float], Awaitable[T]], failures: Counter[str], is_open: bool) -> T:
        """Ask with the time-out; a failure must be one that could not be avoided, with a line for people."""
        began = trio.current_time()
        must = self.schedule.must_succeed(began - self._began, is_open)
        try:
            with trio.fail_after(IO_TIMEOUT + SLACK):
                return await ask(began + IO_TIMEOUT)
        except FetchError as error:
            took = trio.current_time() - began
            assert not must, (f"failed after {took:.1f} s at {began - self._began:.1f}: {error}", self.schedule)
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, (self.schedule, error)
            if error.failure is Failure.REPLACED:
                assert self.schedule.is_replaced or self._may_look_replaced, (self.schedule, error)
            failures[error.failure.value] += 1
            raise
        except trio.TooSlowError:
            raise AssertionError(("hung", self.schedule)) from None
        finally:
            self.tally.slowest = max(self.tally.slowest, trio.current_time() - began)

    @property
    def _may_look_replaced(self) -> bool:
        return any("other size" in server.trouble.kinds for server in self.schedule.servers)

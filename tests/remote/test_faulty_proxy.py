"""The judges' web server does the faults that it says it does: seen by a client that understands nothing."""

from __future__ import annotations

import gzip
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.certificates import make_authority
from tests.support.faulty_proxy import AT_ACCEPT, KINDS, Fault, FaultyServer
from tests.support.http_objects import StoredObject, Upstream
from tests.support.network_faults import NetworkSchedule

CONTENT = random.Random(3).randbytes(200_000)
START, END = 50_000, 100_000
MOST = 1 << 20


class Said:
    """What came back: bytes, and how they ended."""

    def __init__(self, data: bytes, end: str) -> None:
        self.head, _, self.body = data.partition(b"\r\n\r\n")
        self.end = end

    @property
    def is_right(self) -> bool:
        span = f"Content-Range: bytes {START}-{END - 1}/{len(CONTENT)}\r\n".encode()
        is_whole = self.body == CONTENT[START:END] and self.end == "silence"
        return self.head.startswith(b"HTTP/1.1 206 ") and span in self.head and is_whole


@asynccontextmanager
async def serving(server: FaultyServer) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield
        nursery.cancel_scope.cancel()


async def ask(server: FaultyServer, headers: str = "", tls: ssl.SSLContext | None = None) -> Said:
    data, end = bytearray(), "silence"
    with trio.move_on_after(60):
        try:
            stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            if tls is not None:
                stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
            async with stream:
                line = f"GET /image HTTP/1.1\r\nHost: localhost\r\nRange: bytes={START}-{END - 1}\r\n{headers}\r\n"
                await stream.send_all(line.encode())
                while len(data) < MOST:
                    part = await stream.receive_some()
                    data += part
                    if not part:
                        end = "closed"
                        break
                else:
                    end = "more"
        except (trio.BrokenResourceError, OSError) as error:
            cause = error.__cause__ or error
            end = type(cause.exceptions[0] if isinstance(cause, ExceptionGroup) else cause).__name__
    return Said(bytes(data), end)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_fault_is_one(kind: str, autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    faults = [Fault(kind, 503.0 if kind == "status" else 0.5, "7")]
    is_at_accept = kind in AT_ACCEPT
    authority = make_authority(tmp_path) if "certificate" in kind or "TLS" in kind else None
    (tmp_path / "other").mkdir()
    server = FaultyServer(
        StoredObject(CONTENT),
        lambda request: faults.pop() if faults and not is_at_accept else None,
        lambda: faults.pop() if faults and is_at_accept else None,
        tls=authority.server_context() if authority else None,
        other_tls=make_authority(tmp_path / "other").server_context() if authority else None,
    )
    tls = authority.client_context() if authority else None
    async with serving(server):
        began = trio.current_time()
        said = await ask(server, tls=tls)
        seconds = trio.current_time() - began
        assert server.done == {kind: 1}
        right = kind in ("delay", "paused")
        assert said.is_right == right
        if right:
            assert seconds >= (60.5 if kind == "delay" else 62) - 60
        body, wanted = said.body, CONTENT[START:END]
        match kind:
            case "reset" | "reset at accept" | "TLS breaks off":
                assert said.end == "ConnectionResetError" and not said.head
            case "reset inside":
                assert said.end == "ConnectionResetError" and wanted.startswith(body)
            case "truncated":
                assert said.end == "closed" and body == wanted[:25_000] and b"Content-Length: 50000" in said.head
            case "silent inside":
                assert said.end == "silence" and body == wanted[:25_000]
            case "silent" | "silent at accept":
                assert said.end == "silence" and not said.head
            case "status":
                assert said.head.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 7" in said.head
            case "flip":
                assert len(body) == len(wanted) and sum(a != b for a, b in zip(body, wanted, strict=True)) == 13
            case "gzip":
                assert gzip.decompress(body) == wanted and b"Content-Encoding: gzip" in said.head
            case "endless":
                assert said.end == "more"
            case "drip":
                assert len(body) == 60 and wanted.startswith(body)
            case "other certificate":
                assert said.end == "SSLCertVerificationError"
            case "short":
                assert body == wanted[:25_000] and b"Content-Length: 25000" in said.head
        assert (await ask(server, tls=tls)).is_right


async def test_connections_are_refused_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    server = FaultyServer(StoredObject(CONTENT))
    async with serving(server):
        for _ in range(3):
            server.refuse()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await ask(server)).end == "ConnectionRefusedError"
            server.stop_refusing()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await ask(server)).is_right


async def test_a_real_server_is_behind_it(autojump_clock: trio.testing.MockClock) -> None:
    behind = FaultyServer(StoredObject(CONTENT))
    faults = [None, Fault("truncated", 0.5)]
    before = FaultyServer(Upstream(behind.port), lambda request: faults.pop())
    async with serving(behind), serving(before):
        assert (await ask(before)).end == "closed"
        assert (await ask(before)).is_right
    assert len(behind.requests) == 2


async def test_an_object_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    stored = StoredObject(CONTENT)
    server = FaultyServer(stored)
    async with serving(server):
        old = stored.etag
        stored.replace(CONTENT[::-1])
        assert (await ask(server, f"If-Match: {old}\r\n")).head.startswith(b"HTTP/1.1 412 ")
        whole = await ask(server, f"If-Range: {old}\r\n")
        assert whole.head.startswith(b"HTTP/1.1 200 ") and whole.body == CONTENT[::-1]


def test_schedules_are_what_their_seed_says_and_of_every_kind() -> None:
    schedules = [NetworkSchedule(seed) for seed in range(500)]
    assert repr(schedules[7]) == repr(NetworkSchedule(7))
    kinds = {kind for schedule in schedules for server in schedule.servers for kind in server.trouble.kinds}
    assert kinds >= {*KINDS, "refused", "no such host"}
    must = sum(schedule.must_succeed(1.0) for schedule in schedules)
    assert 200 < must < 450

"""Answers that are damaged anywhere: the right bytes or an error of ours, soon."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mystfuse.remote.origin import Failure, FetchError
from tests.support.faulty_proxy import FaultyServer
from tests.support.http_objects import StoredObject
from tests.support.origin_servers import fetched, origin_at, serving

CONTENT = random.Random(29).randbytes(5000)
HEAD = b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nContent-Range: bytes %d-%d/5000\r\nContent-Length: %d\r\n\r\n'


def right_answer(start: int, end: int) -> bytes:
    return HEAD % (start, end - 1, end - start) + CONTENT[start:end]


@asynccontextmanager
async def answering(damaged: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers rightly, or, once the list that it yields has something, with ``damaged``; and closes."""
    switch: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            request = await stream.receive_some()
            found = re.search(rb"bytes=(\d*)-(\d+)", request)
            assert found is not None
            start = int(found[1]) if found[1] else len(CONTENT) - int(found[2])
            answer = right_answer(start, min(int(found[2]) + 1, len(CONTENT)) if found[1] else len(CONTENT))
            await stream.send_all(damaged if switch else answer)
            await stream.send_eof()
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/image", switch
        nursery.cancel_scope.cancel()


PIECES = st.sampled_from(
    [b"", b"\r\n", b"\r\n\r\n", b"\0", b"\xff\xfe", b"9" * 40, b"-1", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n",
     b"HTTP/1.1 100 Continue\r\n\r\n", b"Content-Encoding: br\r\n", b"Location: //x\r\n", b"bytes", b"x" * 300, b"101",
     b"302"]
)  # fmt: skip


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 40), PIECES), min_size=1, max_size=3))
def test_a_damaged_answer_is_an_error_or_nothing(damage: list[tuple[int, int, bytes]]) -> None:
    answer = right_answer(1000, 1100)
    for at, length, piece in damage:
        answer = answer[:at] + piece + answer[at + length :]

    async def main() -> None:
        async with answering(answer) as (address, switch), origin_at(address) as origin, origin_at(address) as other:
            with trio.fail_after(30):
                assert (await origin.open(100)).tail == CONTENT[-100:]
                switch.append(b"now")
                for ask in (lambda: fetched(origin, 1000, 100), lambda: other.open(100)):
                    try:
                        found = await ask()
                    except FetchError as error:
                        assert str(error).isprintable()
                    else:
                        assert not isinstance(found, bytes) or len(found) == 100

    trio.run(main)


@pytest.mark.parametrize("error", [ValueError("status"), KeyError(7), RuntimeError("x\ny"), UnicodeError("header")])
async def test_errors_of_libraries_are_told_as_ours(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*words: object) -> httpx2.Response:
        raise error

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", fail)
    async with serving(FaultyServer(StoredObject(CONTENT))) as address, origin_at(address) as origin:
        with pytest.raises(FetchError, match="not HTTP as it should be") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNREACHABLE
        assert str(caught.value).isprintable()

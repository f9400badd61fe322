"""Origins behind URLs, and what servers do to them: every answer that is not right is a clear error."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.transfers import Transfers
from tests.support.faulty_proxy import AT_ACCEPT, Fault, FaultyServer
from tests.support.http_objects import Request, Response, StoredObject
from tests.support.origin_servers import fetched, origin_at, serving
from tests.support.scripted_origin import Sink

CONTENT = random.Random(7).randbytes(3_000_000)
START, LENGTH = 1_000_000, 200_000


async def test_opening_is_one_round_trip_that_brings_both_ends() -> None:
    server = FaultyServer(StoredObject(CONTENT))
    async with serving(server) as address, origin_at(address) as origin:
        opened = await origin.open(70_000)
        assert (opened.size, opened.tail) == (len(CONTENT), CONTENT[-70_000:])
        assert opened.head == CONTENT[: 16 << 10]
        assert opened.validator == StoredObject(CONTENT).etag
        assert sorted(request.headers["range"] for request in server.requests) == ["bytes=-70000", "bytes=0-16383"]
        assert await fetched(origin, START, LENGTH) == CONTENT[START : START + LENGTH]
        assert await fetched(origin, len(CONTENT) - 1, 1) == CONTENT[-1:]
        assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000])
async def test_small_objects_are_opened_too(size: int) -> None:
    async with serving(FaultyServer(StoredObject(CONTENT[:size]))) as address, origin_at(address) as origin:
        opened = await origin.open(4096)
        assert (opened.size, opened.tail) == (size, CONTENT[max(0, size - 4096) : size])
        if size:
            assert await fetched(origin, 0, size) == CONTENT[:size]


HTML = "the answer is a page of HTML"
FAULTS = {
    "reset at accept": (Failure.UNREACHABLE, "connection"),
    "not HTTP": (Failure.UNREACHABLE, "closed without an answer|not HTTP as it should be|connection reset"),
    "reset": (Failure.UNREACHABLE, "connection reset by peer"),
    "closed": (Failure.UNREACHABLE, "the connection was closed without an answer"),
    "redirected in circles": (Failure.UNUSABLE, "redirects in circles"),
    "endless header": (Failure.UNREACHABLE, "not HTTP as it should be"),
    "whole": (Failure.UNUSABLE, "sends the whole image and no ranges of it"),
    "gzip": (Failure.UNUSABLE, r"the server compresses the image \(gzip\)"),
    "HTML": (Failure.UNUSABLE, HTML),
    "HTML with range": (Failure.UNUSABLE, HTML),
    "other range": (Failure.UNUSABLE, "asked for bytes 1000000 to 1199999, the server sends bytes"),
    "other size": (Failure.UNUSABLE, "an answer about 2999999 bytes, where the image has 3000000"),
    "no range": (Failure.UNUSABLE, "does not say its range"),
    "short": (Failure.UNUSABLE, "bytes with a range of 200000"),
    "long": (Failure.UNUSABLE, "an answer of 205000 bytes with a range of 200000"),
    "truncated": (Failure.UNREACHABLE, "closed before the end of the answer"),
    "reset inside": (Failure.UNREACHABLE, "connection reset by peer|the connection broke"),
    "endless": (Failure.UNUSABLE, "does not end after the 200000 bytes|more than 200000 bytes"),
}
"""What a fetch makes of the faults, by their kinds: the failure, and what its text has."""


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_wrong_answer_is_a_clear_error(kind: str) -> None:
    failure, text = FAULTS[kind]
    faults: list[Fault] = []
    server = FaultyServer(StoredObject(CONTENT), lambda request: faults[0] if faults else None)
    server.accept = lambda: faults[0] if faults and kind in AT_ACCEPT else None
    async with serving(server) as address, origin_at(address) as origin:
        await origin.open(100)
        # The next request is to be on a new connection.
        await origin.aclose()
        faults.append(Fault(kind, 0.5))
        with pytest.raises(FetchError, match=text) as caught:
            await fetched(origin, START, LENGTH)
        assert caught.value.failure is failure
        assert str(caught.value).startswith(f"{address}: ")
        assert str(caught.value).isprintable()
        faults.clear()
        # The origin is still of use.
        assert await fetched(origin, START, LENGTH) == CONTENT[START : START + LENGTH]


@pytest.mark.parametrize("kind", sorted({*FAULTS} - {"whole", "other range", "other size"}))
async def test_opening_what_is_wrong_is_a_clear_error(kind: str) -> None:
    failure, text = FAULTS[kind]
    fault = Fault(kind, 0.5)
    server = FaultyServer(StoredObject(CONTENT), lambda request: fault, lambda: fault if kind in AT_ACCEPT else None)
    async with serving(server) as address, origin_at(address) as origin:
        with pytest.raises(FetchError, match=text) as caught:
            await origin.open(200_000)
        assert caught.value.failure is failure


STATUSES = {
    401: (Failure.DENIED, "401 Unauthorized .*; give a user and password in ~/.netrc"),
    403: (Failure.DENIED, r"403 Forbidden \(Sign in\)"),
    404: (Failure.ABSENT, "404 Not Found"),
    407: (Failure.DENIED, "407 Proxy Authentication Required .*; give the proxy's user and password"),
    408: (Failure.UNREACHABLE, "408 Request Timeout"),
    410: (Failure.ABSENT, "410 Gone"),
    412: (Failure.REPLACED, "has been replaced since it was opened"),
    418: (Failure.UNUSABLE, "418 "),
    429: (Failure.BUSY, "429 Too Many Requests .*, to be asked again in 7 s"),
    500: (Failure.UNREACHABLE, "500 Internal Server Error"),
    501: (Failure.UNUSABLE, "501 Not Implemented"),
    502: (Failure.UNREACHABLE, "502 Bad Gateway"),
    503: (Failure.BUSY, "503 Service Unavailable .*, to be asked again in 7 s"),
    504: (Failure.UNREACHABLE, "504 Gateway Timeout"),
    599: (Failure.UNREACHABLE, "599"),
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status_says_what_to_do(status: int) -> None:
    failure, text = STATUSES[status]
    faults: list[Fault] = []
    server = FaultyServer(StoredObject(CONTENT), lambda request: faults[0] if faults else None)
    async with serving(server) as address, origin_at(address) as origin:
        await origin.open(100)
        faults.append(Fault("status", status, "7"))
        with pytest.raises(FetchError, match=text) as caught:
            await fetched(origin, START, LENGTH)
        assert caught.value.failure is failure
        assert caught.value.retry_after == (7 if failure in (Failure.BUSY, Failure.UNREACHABLE) else None)


async def test_a_replaced_object_is_noticed() -> None:
    stored = StoredObject(CONTENT)
    async with serving(FaultyServer(stored)) as address, origin_at(address) as origin:
        await origin.open(100)
        stored.replace(CONTENT[::-1])
        with pytest.raises(FetchError, match="replaced since it was opened; mount it again") as caught:
            await fetched(origin, START, LENGTH)
        assert caught.value.failure is Failure.REPLACED


@pytest.mark.parametrize(
    ("was", "becomes"), [('"1"', '"2"'), ('W/"1"', 'W/"2"'), ("", "")], ids=["strong", "weak", "date"]
)
async def test_a_replaced_object_is_noticed_without_preconditions(was: str, becomes: str) -> None:
    """By servers that do not know If-Match, or have no ETag."""
    headers = {"ETag": was, "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}

    async def answer(request: Request) -> Response:
        request.headers.pop("if-match", None)
        response = await stored(request)
        response.headers |= headers
        if not headers["ETag"]:
            del response.headers["ETag"]
        return response

    stored = StoredObject(CONTENT)
    async with serving(FaultyServer(answer)) as address, origin_at(address) as origin:
        opened = await origin.open(100)
        expected = '"1"' if was == '"1"' else "Wed, 21 Oct 2015 07:28:00 GMT, 3000000 bytes"
        assert opened.validator == expected
        assert await fetched(origin, START, LENGTH) == CONTENT[START : START + LENGTH]
        headers |= {"ETag": becomes, "Last-Modified": "Wed, 21 Oct 2015 07:28:01 GMT"}
        with pytest.raises(
            FetchError, match=r"replaced since it was opened \((ETag )?was .*, is .*; mount it again"
        ) as caught:
            await fetched(origin, START, LENGTH)
        assert caught.value.failure is Failure.REPLACED


async def without_ranges(request: Request) -> Response:
    return Response(200, {}, CONTENT)


async def test_a_server_without_ranges_is_told_as_such() -> None:
    server = FaultyServer(without_ranges)
    async with serving(server) as address, origin_at(address) as origin:
        with pytest.raises(FetchError, match="sends the whole image and no ranges of it; put it where") as caught:
            await origin.open(100)
        assert caught.value.failure is Failure.UNUSABLE


async def test_a_small_object_needs_no_ranges() -> None:
    async def answer(request: Request) -> Response:
        return Response(200, {}, CONTENT[:500_000])

    async with serving(FaultyServer(answer)) as address, origin_at(address) as origin:
        opened = await origin.open(100)
        assert (opened.size, opened.tail, opened.validator) == (500_000, CONTENT[499_900:500_000], "")
        assert await fetched(origin, 1000, 2000) == CONTENT[1000:3000]
        assert await fetched(origin, 0, 500_000) == CONTENT[:500_000]


async def test_a_server_without_ranges_from_the_end_is_asked_otherwise() -> None:
    """As Azure's blobs: https://learn.microsoft.com/rest/api/storageservices/specifying-the-range-header."""

    async def answer(request: Request) -> Response:
        if request.headers["range"].startswith("bytes=-"):
            return Response(200, {}, CONTENT)
        return await stored(request)

    stored = StoredObject(CONTENT)
    async with serving(FaultyServer(answer)) as address, origin_at(address) as origin:
        opened = await origin.open(5000)
        assert (opened.size, opened.tail) == (len(CONTENT), CONTENT[-5000:])


async def test_a_request_that_is_cancelled_leaves_the_origin_of_use() -> None:
    faults = [Fault("silent"), Fault("silent inside", 0.5), Fault("silent")]
    server = FaultyServer(
        StoredObject(CONTENT), lambda request: faults.pop() if faults and len(server.requests) > 2 else None
    )
    async with serving(server) as address, origin_at(address) as origin:
        await origin.open(100)
        for _ in range(3):
            with trio.move_on_after(0.3) as scope:
                await fetched(origin, START, LENGTH)
            assert scope.cancelled_caught
        assert await fetched(origin, START, LENGTH) == CONTENT[START : START + LENGTH]
        assert not faults


async def test_connections_are_used_again() -> None:
    connections = 0

    def accept() -> None:
        nonlocal connections
        connections += 1

    async with serving(FaultyServer(StoredObject(CONTENT), accept=accept)) as address, origin_at(address) as origin:
        await origin.open(100)
        for offset in range(0, 100_000, 1000):
            await fetched(origin, offset, 1000)
        assert connections == 2


async def test_nobody_there_is_said(unused_port: int) -> None:
    for address, text in (
        (f"http://127.0.0.1:{unused_port}/image", rf"connection refused \(127.0.0.1:{unused_port}\)"),
        ("http://nowhere.invalid/image", r"the host nowhere.invalid is not known"),
    ):
        async with origin_at(address) as origin:
            with pytest.raises(FetchError, match=text) as caught:
                await origin.open(100)
            assert caught.value.failure is Failure.UNREACHABLE


async def test_dead_connections_cost_one_wait(autojump_clock: trio.testing.MockClock) -> None:
    """All that are idle have died without a sign, as when a router forgets them."""
    accepted = dead = 0

    def accept() -> None:
        nonlocal accepted
        accepted += 1

    server = FaultyServer(StoredObject(CONTENT), lambda request: Fault("silent") if accepted <= dead else None, accept)
    # Numbers: a name would be looked up in a thread, for which this clock does not wait.
    address = f"http://127.0.0.1:{server.port}/image"
    async with serving(server), origin_at(address) as origin, Transfers([origin], print) as transfers:
        await transfers.open(100, trio.current_time() + 30)

        async def fetch(offset: int) -> None:
            sink = Sink(offset)
            await transfers.fetch(offset, LENGTH, sink, deadline=trio.current_time() + 30)
            assert sink.data == CONTENT[offset : offset + LENGTH]

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(fetch, number * LENGTH)
        await trio.sleep(30)
        dead = accepted
        assert dead > 4
        started = trio.current_time()
        await fetch(START)
        assert trio.current_time() - started < 2
        assert transfers.counters["hedges_won"] == 1

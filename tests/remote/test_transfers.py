"""Fetches in spite of what goes wrong with one origin, in virtual time: what is repeated, when, and what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.origin import Failure, FetchError, Opened, Receive
from mystfuse.remote.transfers import Transfers
from tests.support.scripted_origin import (
    CONTENT,
    ScriptedOrigin,
    Sink,
    Step,
    cut,
    elsewhere,
    fail,
    fetched,
    good,
    hang,
    in_virtual_time,
    late,
    opened,
    stall,
    too_much,
    trickle,
)


async def test_a_range_comes_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT)
    async with Transfers([origin], print) as transfers:
        found = await transfers.open(100, trio.current_time() + 1)
        assert found == Opened(len(CONTENT), '"1"', CONTENT[-100:])
        assert await fetched(transfers, 1234, 50_000) == CONTENT[1234:51_234]
        assert await fetched(transfers, 5, 0) == b""
        assert transfers.counters["bytes_fetched"] == 50_000
        assert transfers.counters["retries"] == transfers.counters["hedged"] == 0
    assert origin.is_closed


@pytest.mark.parametrize(
    "failure", [Failure.UNREACHABLE, Failure.BUSY, Failure.ABSENT, Failure.UNUSABLE, Failure.UNTRUSTED]
)
async def test_a_failure_that_passes_is_not_seen(failure: Failure, autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [fail(failure)] * 6)
    transfers = await opened(origin)
    assert await fetched(transfers) == CONTENT[:50_000]
    assert transfers.counters["retries"] == 6


async def test_what_has_come_is_not_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [cut, stall, cut])
    transfers = await opened(origin)
    assert await fetched(transfers) == CONTENT[:50_000]
    assert origin.log == [(0, 50_000), (25_000, 25_000), (37_500, 12_500), (43_750, 6250)]


async def test_a_request_that_gets_lost_is_sent_again_soon(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT)
    transfers = await opened(origin)
    for _ in range(10):
        await fetched(transfers)
    origin.script = [hang]
    started = trio.current_time()
    assert await fetched(transfers) == CONTENT[:50_000]
    assert trio.current_time() - started < 0.5
    assert transfers.counters["hedged"] == transfers.counters["hedges_won"] == 1


async def test_a_slow_server_is_not_asked_twice_as_often(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, then=late(2))
    transfers = await opened(origin)
    for _ in range(100):
        assert await fetched(transfers) == CONTENT[:50_000]
    assert transfers.counters["hedged"] < 10


async def test_a_trickle_is_given_up_for_another_connection(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [trickle])
    transfers = await opened(origin)
    started = trio.current_time()
    assert await fetched(transfers) == CONTENT[:50_000]
    assert trio.current_time() - started < 8
    assert origin.log[1][0] > 0


@pytest.mark.parametrize("step", [too_much, elsewhere])
async def test_bytes_that_were_not_asked_for_are_refused(step: Step, autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT, [step]))
    assert await fetched(transfers) == CONTENT[:50_000]


@pytest.mark.parametrize("seconds", [0.5, 30])
async def test_an_answer_without_end_is_enough(seconds: float, autojump_clock: trio.testing.MockClock) -> None:
    async def endless(origin: ScriptedOrigin, offset: int, length: int, receive: Receive) -> None:
        await good(origin, offset, length, receive)
        await trio.sleep_forever()

    transfers = await opened(ScriptedOrigin(CONTENT, [endless]))
    started = trio.current_time()
    assert await fetched(transfers, seconds=seconds) == CONTENT[:50_000]
    assert trio.current_time() - started < 1.1
    assert transfers.counters["requests"] == 2
    assert transfers.counters["failed"] == 0


async def test_the_error_says_what_how_often_and_how_long(autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT, then=fail(Failure.BUSY)))
    with pytest.raises(FetchError, match=r"^origin: busy; tried \d+ times in (29\.\d|30\.0) s$") as caught:
        await fetched(transfers)
    assert caught.value.failure is Failure.BUSY
    transfers = await opened(ScriptedOrigin(CONTENT, then=hang))
    with pytest.raises(FetchError, match=r"^origin: no answer in \d+ s; tried \d times in 30\.0 s$"):
        await fetched(transfers)
    with pytest.raises(FetchError, match=r"^origin: no answer in 0 s$"):
        await fetched(transfers, seconds=0.3)


async def test_silence_shortly_before_the_deadline_hides_no_reason(autojump_clock: trio.testing.MockClock) -> None:
    reason = FetchError(Failure.UNTRUSTED, "origin: the certificate is not trusted")
    with pytest.raises(FetchError, match=r"^origin: the certificate is not trusted; tried \d+ times in 30\.0 s$"):
        await opened(ScriptedOrigin(CONTENT, opening=[reason, *[math.inf] * 50]))
    transfers = await opened(ScriptedOrigin(CONTENT, [fail(Failure.BUSY)], then=hang))
    with pytest.raises(FetchError, match=r"^origin: busy; tried \d+ times in 20\.0 s$"):
        await fetched(transfers, seconds=20)


async def test_what_seldom_passes_is_not_tried_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT, then=fail(Failure.ABSENT)))
    started = trio.current_time()
    with pytest.raises(FetchError, match="absent; tried"):
        await fetched(transfers, seconds=math.inf)
    assert 30 <= trio.current_time() - started < 60
    # A server that is away may come back, however long that takes, where there is no limit.
    transfers = await opened(ScriptedOrigin(CONTENT, [fail(Failure.UNREACHABLE)] * 500))
    assert await fetched(transfers, seconds=math.inf) == CONTENT[:50_000]


async def test_repetitions_become_rare_and_random(autojump_clock: trio.testing.MockClock) -> None:
    origins = [ScriptedOrigin(CONTENT, [fail(Failure.UNREACHABLE)] * 12, latency=0) for _ in range(50)]
    for origin in origins:
        await fetched(await opened(origin), seconds=600)
    waits = [
        [later - earlier for earlier, later in zip(origin.times, origin.times[1:], strict=False)] for origin in origins
    ]
    assert max(wait[0] for wait in waits) < 0.1
    assert 2.5 < sum(wait[-1] for wait in waits) / len(waits) < 5.5
    assert max(map(max, waits)) < 8
    assert len({round(wait[-1], 3) for wait in waits}) > 40


async def test_a_server_is_asked_again_when_it_says(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [fail(Failure.BUSY, 5)])
    transfers = await opened(origin)
    assert await fetched(transfers) == CONTENT[:50_000]
    assert 5 <= origin.times[1] - origin.times[0] < 6.5


async def test_a_server_that_asks_for_too_long_is_asked_before_it_is_too_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    origin = ScriptedOrigin(CONTENT, [fail(Failure.BUSY, 3600)])
    transfers = await opened(origin)
    assert await fetched(transfers) == CONTENT[:50_000]
    assert 20 < origin.times[1] - origin.times[0] < 30


async def test_a_replaced_image_is_an_error_at_once(autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT, [fail(Failure.REPLACED)]))
    started = trio.current_time()
    with pytest.raises(FetchError) as caught:
        await fetched(transfers)
    assert caught.value.failure is Failure.REPLACED
    assert trio.current_time() - started < 0.1


async def test_expired_credentials_are_renewed_once_for_all(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [fail(Failure.DENIED)] * 5)
    transfers = await opened(origin)
    results: list[bytes] = []

    async def fetch() -> None:
        results.append(await fetched(transfers))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(fetch)
    assert results == [CONTENT[:50_000]] * 5
    assert origin.renewals == 1


async def test_without_other_credentials_it_is_tried_again_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [fail(Failure.DENIED)] * 3)
    origin.can_renew = False
    transfers = await opened(origin)
    assert await fetched(transfers) == CONTENT[:50_000]
    assert origin.renewals == 3


async def test_again_asks_past_proxies(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT)
    transfers = await opened(origin)
    await fetched(transfers)
    await fetched(transfers, again=True)
    assert origin.direct == [False, True]


async def test_what_the_receiver_raises_ends_the_fetch(autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT))

    async def full(offset: int, data: memoryview) -> None:
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        await transfers.fetch(0, 1000, full, deadline=math.inf)
    assert await fetched(transfers) == CONTENT[:50_000]


async def test_a_slow_receiver_is_not_taken_for_a_slow_network(autojump_clock: trio.testing.MockClock) -> None:
    transfers = await opened(ScriptedOrigin(CONTENT))
    sink = Sink(0)

    async def slow(offset: int, data: memoryview) -> None:
        await trio.sleep(7)
        await sink(offset, data)

    await transfers.fetch(0, 50_000, slow, deadline=math.inf)
    assert sink.data == CONTENT[:50_000]
    assert transfers.counters["requests"] == 2


async def test_a_fetch_that_is_cancelled_leaves_the_rest_alone(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, [hang])
    transfers = await opened(origin)
    with trio.move_on_after(0.3) as scope:
        await fetched(transfers)
    assert scope.cancelled_caught
    assert await fetched(transfers) == CONTENT[:50_000]


async def test_at_most_eight_requests_are_under_way(autojump_clock: trio.testing.MockClock) -> None:
    running = most = 0

    async def count(origin: ScriptedOrigin, offset: int, length: int, receive: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await good(origin, offset, length, receive)
        running -= 1

    transfers = await opened(ScriptedOrigin(CONTENT, then=count))
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(fetched, transfers)
    assert most == 8


STEPS: dict[str, Step] = {
    "good": good, "hang": hang, "stall": stall, "cut": cut, "late": late(3), "trickle": trickle, "too much": too_much,
    "unreachable": fail(Failure.UNREACHABLE), "busy": fail(Failure.BUSY), "wait": fail(Failure.BUSY, 2),
    "denied": fail(Failure.DENIED), "absent": fail(Failure.ABSENT), "unusable": fail(Failure.UNUSABLE),
}  # fmt: skip


@given(
    script=st.lists(st.sampled_from(sorted(STEPS)), max_size=5),
    latency=st.floats(0, 0.3),
    warm=st.booleans(),
)
def test_whatever_passes_in_time_is_not_seen(script: list[str], latency: float, warm: bool) -> None:
    """Up to five faults in a row, each of any kind, and a minute: the bytes come, and are the right ones."""

    async def main() -> None:
        origin = ScriptedOrigin(CONTENT, latency=latency)
        transfers = await opened(origin)
        if warm:
            for _ in range(5):
                await fetched(transfers)
        origin.script = [STEPS[name] for name in script]
        assert await fetched(transfers, seconds=60) == CONTENT[:50_000]

    in_virtual_time(main)


@given(script=st.lists(st.sampled_from(sorted(STEPS)), min_size=1), seconds=st.floats(0.001, 100))
def test_no_fetch_takes_longer_than_it_may(script: list[str], seconds: float) -> None:
    async def main() -> None:
        origin = ScriptedOrigin(CONTENT)
        transfers = await opened(origin)
        origin.script = [STEPS[name] for name in script] * 100
        origin.then = hang
        started = trio.current_time()
        sink = Sink(0)
        try:
            await transfers.fetch(0, 50_000, sink, deadline=started + seconds)
        except FetchError as error:
            assert "\n" not in str(error)
        else:
            assert sink.data == CONTENT[:50_000]
        assert CONTENT.startswith(bytes(sink.data))
        assert trio.current_time() <= started + seconds + 1e-6
        assert len(origin.log) < 500

    in_virtual_time(main)

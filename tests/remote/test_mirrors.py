"""Several origins of one image, in virtual time: who is asked, who is compared, and what one that fails costs."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.transfers import Transfers
from tests.support.scripted_origin import CONTENT, ScriptedOrigin, cut, fail, fetched, good, hang, opened

WANTED = CONTENT[:50_000]


def pair(**first: object) -> tuple[ScriptedOrigin, ScriptedOrigin]:
    return ScriptedOrigin(CONTENT, name="first", **first), ScriptedOrigin(CONTENT, name="second")  # type: ignore[arg-type]


async def test_a_mirror_is_not_asked_while_the_first_works(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair()
    transfers = await opened(first, second)
    for _ in range(5):
        assert await fetched(transfers) == WANTED
    assert second.opens == len(second.log) == 0


async def test_a_mirror_helps_out_without_waiting(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(then=fail(Failure.UNREACHABLE))
    transfers = await opened(first, second)
    started = trio.current_time()
    assert await fetched(transfers) == WANTED
    assert trio.current_time() - started < 0.1
    assert second.opens == 1


async def test_a_mirror_sends_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(script=[cut])
    transfers = await opened(first, second)
    assert await fetched(transfers) == WANTED
    assert first.log + second.log in ([(0, 50_000), (25_000, 25_000)],)


async def test_who_failed_is_asked_last_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(script=[fail(Failure.UNREACHABLE)])
    transfers = await opened(first, second)
    for _ in range(5):
        await fetched(transfers)
    assert (len(first.log), len(second.log)) == (1, 5)
    await trio.sleep(61)
    await fetched(transfers)
    assert (len(first.log), len(second.log)) == (2, 5)


async def test_a_late_answer_is_looked_for_at_the_mirror(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair()
    transfers = await opened(first, second)
    for _ in range(5):
        await fetched(transfers)
    first.script = [hang]
    assert await fetched(transfers) == WANTED
    assert len(second.log) == 1


async def test_again_asks_the_one_that_did_not_send_it(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(script=[fail(Failure.UNREACHABLE)])
    transfers = await opened(first, second)
    await fetched(transfers)
    await trio.sleep(61)
    await fetched(transfers, again=True)
    assert (len(first.log), len(second.log)) == (2, 1)
    await fetched(transfers, again=True)
    assert (len(first.log), len(second.log)) == (2, 2)
    assert first.direct[-1] and second.direct[-1]


async def test_a_server_that_asks_for_a_pause_gets_it(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(script=[fail(Failure.BUSY, 40)])
    transfers = await opened(first, second)
    for _ in range(10):
        assert await fetched(transfers) == WANTED
        await trio.sleep(3.9)
    assert len(first.log) == 1
    await trio.sleep(2)
    await fetched(transfers)
    assert len(first.log) == 2


async def test_the_old_version_comes_from_the_mirror_that_has_it(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(then=fail(Failure.REPLACED))
    transfers = await opened(first, second)
    assert await fetched(transfers) == WANTED
    second.then = fail(Failure.REPLACED)
    with pytest.raises(FetchError) as caught:
        await fetched(transfers)
    assert caught.value.failure is Failure.REPLACED


def signed(root_hash: bytes) -> bytes:
    return CONTENT[:-FSSIG_SIZE] + Fssig(4096, root_hash).pack()


@pytest.mark.parametrize(
    ("image", "other", "why"),
    [
        (CONTENT, CONTENT + b"x", "100001 bytes, not 100000"),
        (signed(bytes(32)), signed(b"1" * 32), "its root hash or signature is another"),
    ],
    ids=["size", "fssig"],
)
async def test_a_mirror_with_another_image_is_left_out(
    image: bytes, other: bytes, why: str, autojump_clock: trio.testing.MockClock
) -> None:
    notes: list[str] = []
    first = ScriptedOrigin(image, [fail(Failure.UNREACHABLE)] * 2, name="first")
    second = ScriptedOrigin(other, name="second")
    transfers = await opened(first, second, notes=notes)
    assert await fetched(transfers) == image[:50_000]
    assert not second.log
    assert notes == [f"second: not the same image ({why}); this mirror is not used"]
    first.script = [fail(Failure.UNREACHABLE)] * 2
    assert await fetched(transfers) == image[:50_000]
    assert second.opens == 1
    first.then = fail(Failure.UNREACHABLE)
    with pytest.raises(FetchError, match=r"^first: unreachable; tried"):
        await fetched(transfers)


async def test_the_log_is_not_flooded(autojump_clock: trio.testing.MockClock) -> None:
    notes: list[str] = []
    origin = ScriptedOrigin(CONTENT, [good, *[fail(Failure.UNREACHABLE)] * 100])
    transfers = await opened(origin, notes=notes)
    await fetched(transfers)
    assert not notes
    with pytest.raises(FetchError):
        await fetched(transfers, seconds=50)
    assert notes == ["origin: unreachable; it has failed 3 times in a row"]
    origin.script = []
    await fetched(transfers)
    assert notes[1:] == ["origin: answers again"]


async def test_opening_takes_whoever_answers(autojump_clock: trio.testing.MockClock) -> None:
    first = ScriptedOrigin(CONTENT, opening=[60.0, 60.0], name="first")
    second = ScriptedOrigin(CONTENT, opening=[FetchError(Failure.UNREACHABLE, "second: reset")], name="second")
    started = trio.current_time()
    transfers = await opened(first, second)
    assert trio.current_time() - started < 2
    assert await fetched(transfers) == WANTED
    assert second.log


async def test_opening_is_tried_again_for_what_may_pass(autojump_clock: trio.testing.MockClock) -> None:
    errors = [
        FetchError(Failure.UNREACHABLE, "reset"),
        FetchError(Failure.BUSY, "busy", 3),
        FetchError(Failure.UNUSABLE, "page"),
    ]
    origin = ScriptedOrigin(CONTENT, opening=[*errors, FetchError(Failure.DENIED, "expired")])
    transfers = await opened(origin)
    assert origin.opens == 5
    assert origin.renewals == 1
    assert await fetched(transfers) == WANTED


async def test_an_address_that_is_wrong_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    for failure, tries in ((Failure.ABSENT, 1), (Failure.DENIED, 2), (Failure.UNTRUSTED, 2), (Failure.UNUSABLE, 3)):
        origin = ScriptedOrigin(CONTENT, opening=[FetchError(failure, "no such image")] * 20)
        started = trio.current_time()
        with pytest.raises(FetchError, match=r"^no such image") as caught:
            await opened(origin)
        assert caught.value.failure is failure
        assert origin.opens == tries
        assert trio.current_time() - started < 0.5


async def test_opening_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    origins = [ScriptedOrigin(CONTENT, opening=[60.0] * 99, name=name) for name in ("first", "second")]
    transfers = Transfers(origins, lambda level, line: None)
    with pytest.raises(FetchError, match=r"^first: no answer .*; second: no answer .*; tried \d+ times in 20"):
        await transfers.open(100, trio.current_time() + 20)
    assert trio.current_time() == pytest.approx(20, abs=0.01)


async def test_opening_does_not_hammer_a_server_that_refuses(autojump_clock: trio.testing.MockClock) -> None:
    origin = ScriptedOrigin(CONTENT, opening=[FetchError(Failure.UNREACHABLE, "refused")] * 999, latency=0)
    with pytest.raises(FetchError, match=r"^refused; tried \d+ times in (29\.\d|30\.0) s"):
        await opened(origin)
    assert 10 < origin.opens < 40


async def test_every_mirror_s_error_is_told(autojump_clock: trio.testing.MockClock) -> None:
    first = ScriptedOrigin(CONTENT, opening=[FetchError(Failure.ABSENT, "first: 404")])
    second = ScriptedOrigin(CONTENT, opening=[FetchError(Failure.ABSENT, "second: 410")])
    with pytest.raises(FetchError, match=r"^first: 404; second: 410; tried 2 times"):
        await opened(first, second)


async def test_who_waits_for_opening_is_soon_told_why(autojump_clock: trio.testing.MockClock) -> None:
    for step, why in (
        (FetchError(Failure.UNREACHABLE, "first: refused"), "first: refused; trying again for up to 28 s"),
        (60.0, "first: no answer yet; waiting for up to 28 s"),
    ):
        notes: list[tuple[float, str]] = []
        started = trio.current_time()
        transfers = Transfers(
            [ScriptedOrigin(CONTENT, opening=[step] * 99, name="first")],  # type: ignore[list-item]
            lambda level, line: notes.append((trio.current_time() - started, line)),  # noqa: B023
        )
        with pytest.raises(FetchError):
            await transfers.open(100, started + 30)
        assert notes == [(pytest.approx(2), why)]


async def test_what_opens_soon_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    notes: list[str] = []
    await opened(
        ScriptedOrigin(CONTENT, opening=[FetchError(Failure.UNREACHABLE, "reset")] * 3, latency=0), notes=notes
    )
    assert notes == []

"""Our end of the fetcher's socket: every question gets its answer or an error in time, whatever the fetcher does."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf

import pytest

from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.remote.client import FetcherClient
from mystfuse.remote.origin import Failure
from mystfuse.remote.protocol import Done, Failed, Note, Part, Question, Read, Stored
from tests.support.mounts import wait_until
from tests.support.stand_in_fetcher import NAME, StandInFetcher, stand_in_fetcher

CONTENT = random.Random(1).randbytes(300_000)
SOON = 20.0
"""Seconds that are never needed."""


def soon() -> float:
    return time.monotonic() + SOON


def read(client: FetcherClient, offset: int, length: int, again: bool = False, seconds: float = SOON) -> bytes:
    data = client.read(offset, length, again, time.monotonic() + seconds)
    return os.pread(client.data_file, length, offset) if data is None else bytes(data)


def test_ranges_by_the_data_file_and_by_parts() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        assert client.wait_until_open(soon()).size == len(CONTENT)
        for offset, length, again in ((0, 1, False), (5, 100_000, False), (7, 200_000, True), (299_999, 1, True)):
            assert read(client, offset, length, again) == CONTENT[offset : offset + length]
        assert all(isinstance(question, Read) and 0 < (question.timeout or 0) < SOON for question in fetcher.asked)
        assert client.counters(soon()) == {"requests": 5}


def test_many_threads_ask_at_once() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        fetcher.sends_parts = True

        def ask(seed: int) -> bool:
            dice = random.Random(seed)
            for _ in range(40):
                length = dice.choice((1, 4096, 70_000))
                offset = dice.randrange(len(CONTENT) - length)
                assert read(client, offset, length, dice.random() < 0.5) == CONTENT[offset : offset + length]
            return True

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(16)))


def test_answers_in_any_order_reach_who_asked() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        held: list[Question] = []

        def hold(question: Question) -> bool:
            held.append(question)
            if len(held) == 8:
                for other in random.Random(3).sample(held, 8):
                    fetcher.answer(other)
            return True

        fetcher.answers = hold
        with ThreadPoolExecutor(8) as pool:
            results = [*pool.map(lambda number: read(client, number * 1000, 1000, True), range(8))]
        assert results == [CONTENT[number * 1000 : number * 1000 + 1000] for number in range(8)]


@pytest.mark.parametrize("opens", [False, True])
def test_a_fetcher_that_says_nothing_costs_the_time_that_was_given(opens: bool) -> None:
    with stand_in_fetcher(CONTENT, opens) as (client, fetcher):
        fetcher.answers = lambda question: True
        started = time.monotonic()
        with pytest.raises(StorageTimeout, match="no answer from the fetcher in time"):
            if opens:
                read(client, 0, 10, seconds=0.3)
            else:
                client.wait_until_open(time.monotonic() + 0.3)
        assert 0.29 < time.monotonic() - started < 10


def test_whoever_receives_may_give_up_before_the_others() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        client.wait_until_open(soon())
        late = threading.Event()

        def answer_later(question: Question) -> bool:
            if isinstance(question, Read) and question.offset == 2:
                threading.Timer(1.0, lambda: (late.set(), fetcher.answer(question))).start()
            return True

        fetcher.answers = answer_later
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(read, client, 1, 1, True, 0.3)
            wait_until(lambda: len(fetcher.asked) == 1)
            second = pool.submit(read, client, 2, 1, True)
            with pytest.raises(StorageTimeout):
                first.result()
            assert not late.is_set()
            assert second.result() == CONTENT[2:3]


def test_a_late_answer_is_nobodys() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        kept: list[Question] = []
        fetcher.answers = lambda question: kept.append(question) is None
        with pytest.raises(StorageTimeout):
            read(client, 0, 10, True, seconds=0.2)
        fetcher.answers = lambda question: fetcher.answer(kept[0]) is not None
        assert read(client, 5, 10, True) == CONTENT[5:15]


def open_files() -> int:
    """How many descriptors this process has of what a stand-in fetcher may send."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(("/memfd:data", "/memfd:map"))
    return found


HOSTILE: dict[str, Callable[[StandInFetcher, int], None]] = {
    "nothing": lambda fetcher, request: fetcher.connection.shutdown(socket.SHUT_RDWR),
    "noise": lambda fetcher, request: fetcher.send(b"\xff" * 100),
    "a long packet": lambda fetcher, request: fetcher.send(b"\x04" * (70 << 10)),
    "a short packet": lambda fetcher, request: fetcher.send(b"\x04"),
    "bytes outside": lambda fetcher, request: fetcher.send(Part(request, 5000, b"x").pack()),
    "bytes over the end": lambda fetcher, request: fetcher.send(Part(request, 999, b"xxxx").pack()),
    "bytes far away": lambda fetcher, request: fetcher.send(Part(request, (1 << 64) - 1, b"x").pack()),
    "bytes twice": lambda fetcher, request: [fetcher.send(Part(request, 0, b"xx").pack()) for _ in range(2)] and None,
    "done too early": lambda fetcher, request: fetcher.send(Done(request).pack()),
    "stored, though again": lambda fetcher, request: fetcher.send(Stored(request).pack()),
    "descriptors": lambda fetcher, request: fetcher.send(Done(request).pack(), [fetcher.data, fetcher.map]),
    "too many descriptors": lambda fetcher, request: fetcher.open(files=[fetcher.data] * 40),
    "too few descriptors": lambda fetcher, request: fetcher.open(files=[fetcher.data]),
    "sockets": lambda fetcher, request: fetcher.open(files=[fetcher.connection.fileno()] * 2),
    "another size": lambda fetcher, request: fetcher.open(size=5),
    "another version": lambda fetcher, request: fetcher.send(b"\3\0\0\0\0\0\0\0{}", [0, 1]),
    "deep JSON": lambda fetcher, request: fetcher.send(b"\3\0\0\0\0\0\0\0" + b"[" * 60_000),
    "counters": lambda fetcher, request: fetcher.send(b"\x08\0\0\0" + request.to_bytes(4, "little") + b"{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_ends_the_connection_with_an_error(name: str) -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        client.wait_until_open(soon())
        before = open_files()

        def attack(question: Question) -> bool:
            HOSTILE[name](fetcher, question.request)
            return True

        fetcher.answers = attack
        for _ in range(2):
            with pytest.raises(ImageReadError, match=NAME) as caught:
                read(client, 0, 1000, True)
            assert not isinstance(caught.value, StorageTimeout)
        assert open_files() == before


def test_many_tiny_pieces_are_refused() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):

        def scatter(question: Question) -> bool:
            for number in range(4200):
                fetcher.send(Part(question.request, 2 * number, b"x").pack())
            return True

        fetcher.answers = scatter
        with pytest.raises(ImageReadError, match="too many pieces"):
            read(client, 0, 100_000, True)


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_is_told_in_its_words(failure: Failure) -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        fetcher.answers = lambda question: fetcher.send(Failed(question.request, failure, "why\n").pack()) is None
        with pytest.raises(ImageReadError, match=r"https://example\.org/app\.img: why\?$") as caught:
            read(client, 0, 10)
        is_in_vain = failure in (Failure.UNREACHABLE, Failure.BUSY)
        assert isinstance(caught.value, StorageTimeout) is is_in_vain
        fetcher.answers = None
        assert read(client, 0, 10) == CONTENT[:10], "the connection goes on"


def test_an_image_that_cannot_be_opened() -> None:
    with stand_in_fetcher(CONTENT, opens=False) as (client, fetcher):
        fetcher.send(Failed(0, Failure.ABSENT, f"{NAME}: 404 Not Found").pack())
        for _ in range(2):
            with pytest.raises(ImageReadError, match=f"^{NAME}: 404 Not Found$"):
                client.wait_until_open(soon())


def test_a_fetcher_that_was_started_again_is_asked_again() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        client.wait_until_open(soon())
        numbers = client.data_file, client.map_file
        lost: list[Question] = []

        def die_once(question: Question) -> bool:
            lost.append(question)
            if len(lost) > 4:
                return False
            if len(lost) < 4:
                fetcher.send(Part(question.request, question.offset, b"half").pack())  # type: ignore[union-attr]
            else:
                old = fetcher.data, fetcher.map
                fetcher.data, fetcher.map = os.memfd_create("new"), os.memfd_create("new")
                os.ftruncate(fetcher.data, len(CONTENT))
                os.ftruncate(fetcher.map, 4096)
                fetcher.open()
                for descriptor in old:
                    os.close(descriptor)
            return True

        fetcher.answers = die_once
        with ThreadPoolExecutor(4) as pool:
            results = [*pool.map(lambda number: read(client, number * 1000, 1000, number % 2 == 0), range(4))]
        assert results == [CONTENT[number * 1000 : number * 1000 + 1000] for number in range(4)]
        assert len(lost) == 8
        assert (client.data_file, client.map_file) == numbers, "the fast path knows them"
        assert os.path.sameopenfile(client.data_file, fetcher.data)


def test_a_child_goes_on_with_the_connection() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        fetcher.sends_parts = True
        assert read(client, 0, 10) == CONTENT[:10]
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(sender, json.dumps([read(client, number, 5).hex() for number in range(5)]).encode())
            finally:
                os._exit(0)
        os.close(sender)
        assert os.waitpid(child, 0)[1] == 0
        with open(receiver, "rb") as file:
            assert json.load(file) == [CONTENT[number : number + 5].hex() for number in range(5)]
        # The parent may, when the child has ended: under other numbers.
        assert read(client, 9, 9) == CONTENT[9:18]
        numbers = [question.request for question in fetcher.asked]
        assert len(set(numbers)) == len(numbers)


def test_closing_in_the_parent_leaves_the_child_its_connection() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        client.wait_until_open(soon())
        fetcher.sends_parts = True
        begin, go_on = os.pipe()
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.read(begin, 1)
                os.write(sender, read(client, 3, 5))
            finally:
                os._exit(0)
        client.close()
        os.write(go_on, b"x")
        os.waitpid(child, 0)
        assert os.read(receiver, 100) == CONTENT[3:8]
        for descriptor in (begin, go_on, receiver, sender):
            os.close(descriptor)


def test_closing_between_two_calls_is_an_error_of_ours() -> None:
    with stand_in_fetcher(CONTENT, opens=False) as (client, _):
        receive = client._receive

        def close_first(seconds: float) -> object:
            client.close()
            return receive(seconds)

        client._receive = close_first  # type: ignore[method-assign, assignment]
        with pytest.raises(ImageReadError, match="closed"):
            client.wait_until_open(soon())


def test_closing_ends_the_waiting_of_all() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        fetcher.answers = lambda question: True
        with ThreadPoolExecutor(5) as pool:
            waiting = [pool.submit(client.read, 0, 10, False, inf) for _ in range(5)]
            wait_until(lambda: len(fetcher.asked) == 5)
            client.close()
            for future in waiting:
                with pytest.raises(ImageReadError, match=NAME):
                    future.result(timeout=SOON)


@pytest.mark.logs("fetcher: ", "fetcher: ")
def test_notes_go_to_the_log_but_do_not_flood_it(caplog: pytest.LogCaptureFixture) -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        client.wait_until_open(soon())

        def chatter(question: Question) -> bool:
            for _ in range(200):
                fetcher.send(Note(logging.WARNING, "it is \x1b[31m slow").pack())
            return False

        fetcher.answers = chatter
        assert read(client, 0, 10) == CONTENT[:10]
        said = [record.getMessage() for record in caplog.records if record.name.startswith("mystfuse.remote")]
        assert set(said) == {"fetcher: it is ?[31m slow"}
        assert 40 < len(said) < 100


def test_a_fetcher_that_takes_nothing_costs_the_time_that_was_given() -> None:
    with stand_in_fetcher(CONTENT, opens=False) as (client, fetcher):
        fetcher.open()
        client.wait_until_open(soon())
        # Its queue fills with questions that nobody reads, until sending waits.
        deadline = time.monotonic() + 2
        outcomes = set()
        with ThreadPoolExecutor(24) as pool:

            def ask(_: int) -> str:
                try:
                    client.read(0, 1, False, min(deadline, time.monotonic() + 0.02))
                except StorageTimeout as error:
                    return str(error)
                return "answered"

            outcomes = {*pool.map(ask, range(1500))}
        assert outcomes <= {
            f"{NAME}: no answer from the fetcher in time",
            f"{NAME}: the fetcher takes no more questions",
        }

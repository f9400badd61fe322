"""Jobs in threads: results in order, errors in their turn, and no waiting for a job that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest

from mystfuse.errors import explain
from mystfuse.system.pool import JOBS_A_WORKER, ReadBuffer, run_in_order

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """At the end of a test its threads must have ended."""
    before = set(os.listdir("/proc/self/task"))
    yield
    deadline = time.monotonic() + 5
    while set(os.listdir("/proc/self/task")) - before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not set(os.listdir("/proc/self/task")) - before


def test_results_come_in_the_order_of_the_jobs() -> None:
    def job(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(run_in_order(partial(job, number) for number in range(100))) == list(range(100))
    assert list(run_in_order([])) == []


def test_jobs_are_taken_as_results_are() -> None:
    taken = 0

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield partial(int, number)

    for done, _ in enumerate(run_in_order(jobs())):
        assert taken - done <= JOBS_A_WORKER * len(os.sched_getaffinity(0))


def test_an_error_comes_in_its_turn_and_ends_it() -> None:
    started: list[int] = []

    def job(number: int) -> int:
        started.append(number)
        if number >= 10:
            raise OSError(f"job {number}")
        return number

    results: list[int] = []
    with pytest.raises(OSError, match="job 10"):
        for result in run_in_order(partial(job, number) for number in range(1000)):
            results.append(result)
    assert results == list(range(10))
    assert len(started) < 1000


def test_an_error_of_what_makes_the_jobs_comes_too() -> None:
    def jobs() -> Iterator[Callable[[], int]]:
        yield partial(int, 1)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(run_in_order(jobs()))


def test_leaving_early_ends_the_threads() -> None:
    results = cast(Generator[int, None, None], run_in_order(partial(int, 1) for _ in range(1000)))
    assert next(results) == 1
    results.close()


def test_a_job_that_hangs_holds_up_neither_an_interrupt_nor_the_end() -> None:
    script = """
        import os
        from mystfuse.system.pool import run_in_order
        reader, writer = os.pipe()
        print("begun", flush=True)
        list(run_in_order([lambda: os.read(reader, 1)]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (1, -signal.SIGINT)


def test_each_thread_has_its_own_buffer() -> None:
    buffer = ReadBuffer()
    here = buffer.view(100)
    here[:] = b"x" * 100
    seen: list[bytes] = []

    def use_it() -> None:
        view = buffer.view(100)
        view[:] = b"y" * 100
        seen.append(bytes(view))

    thread = threading.Thread(target=use_it)
    thread.start()
    thread.join()
    assert seen == [b"y" * 100] and here == b"x" * 100
    # The same memory again, if it is large enough.
    assert buffer.view(50) == b"x" * 50
    assert len(buffer.view(1 << 20)) == 1 << 20


def test_without_any_thread_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(work: Callable[[], None], arguments: tuple[()]) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", start)
    with pytest.raises(RuntimeError) as caught:
        list(run_in_order([partial(int, 1)]))
    assert "too many processes" in (explain(caught.value) or "")

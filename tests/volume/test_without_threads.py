"""Requests end even when no thread starts, or a thread has no memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
from trio.testing import MockClock

from mystfuse.devices.device import Extent, PendingRead
from mystfuse.devices.reader import COLD_READS, MAX_ABANDONED, ImageReader
from mystfuse.errors import MountError, StorageTimeout
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting import session
from mystfuse.system import threads
from mystfuse.system.workers import Workers
from tests.support.ext2_editor import MemoryDevice
from tests.support.limits import FailingSource


@pytest.mark.logs(r"^mystfuse\.devices\.reader")
@pytest.mark.parametrize("begins", [False, True])
async def test_a_thread_that_never_begins_costs_a_time_out(
    begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: threading.Thread.start waits until the thread runs, and a thread without memory never does: it
    blocked the loop for ever."""
    (tmp_path / "image").write_bytes(bytes(range(256)))
    source = FailingSource(tmp_path / "image")
    reader = ImageReader(source, io_timeout=0.05)
    late: list[Callable[[], object]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        with monkeypatch.context() as patch:
            patch.setattr("_thread.start_new_thread", lambda work, arguments: late.append(work))
            for _ in range(MAX_ABANDONED + COLD_READS + 3):
                with trio.fail_after(10), pytest.raises(StorageTimeout):
                    await reader.read([Extent(0, 10)])
        if begins:
            for work in late:
                work()
        assert not reader._threads
        assert bytes((await reader.read([Extent(5, 3)]))[0]) == b"\5\6\7"
        nursery.cancel_scope.cancel()
    source.close()


def asking_session(ask: Callable[[], bool]) -> session.Session:
    """A session that asks its keeper by ``ask``."""
    nothing: Any = None
    keeper: Any = SimpleNamespace(unmount=lambda lazy: ask())
    image: Any = SimpleNamespace(source=None)
    options = MountOptions(mountpoint="/mnt", fsname="none")
    return session.Session(image, nothing, options, keeper, nothing, nothing, nothing)


async def test_a_keeper_is_not_waited_for_when_there_is_no_thread_to_ask_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: a mount without memory took a minute to end, the time that a keeper has for its answer."""
    monkeypatch.setattr("_thread.start_new_thread", lambda work, arguments: None)
    with pytest.raises(MountError, match="cannot unmount: no thread"):
        await asking_session(lambda: True)._unmount_by_keeper()
    assert trio.current_time() < 5


async def test_a_keeper_that_is_being_asked_gets_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_THREAD_START", 0.5)
    assert await asking_session(lambda: not time.sleep(0.7))._unmount_by_keeper()


async def test_a_thread_without_memory_for_what_came_of_its_work_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], object]) -> None:
        raise MemoryError

    monkeypatch.setattr(threads, "outcome", SimpleNamespace(capture=refuse, Error=outcome.Error))
    with trio.fail_after(5), pytest.raises(MemoryError):
        await threads.call_in_thread(lambda: None)


class ForgetfulToken:
    """A trio token that raises MemoryError the first time, and then delivers the same message twice."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._calls = 0

    def run_sync_soon(self, *arguments: Any) -> None:
        self._calls += 1
        if self._calls <= 2:
            if self._calls == 2:
                self._token.run_sync_soon(*arguments)
            raise MemoryError
        self._token.run_sync_soon(*arguments)


async def test_a_worker_without_memory_for_its_result_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression: its thread ended, and the caller waited for ever, beyond cancelling."""
    workers = Workers(1)
    token: Any = ForgetfulToken()

    def refuse(work: Callable[[], object]) -> None:
        raise MemoryError

    try:
        with trio.fail_after(5):
            with monkeypatch.context() as patch:
                patch.setattr(trio.lowlevel, "current_trio_token", lambda: token)
                assert await workers.run(lambda: 5) == 5
            with monkeypatch.context() as patch:
                patch.setattr(threads, "outcome", SimpleNamespace(capture=refuse, Error=outcome.Error))
                with pytest.raises(MemoryError):
                    await workers.run(lambda: None)
            assert await workers.run(lambda: 6) == 6
        assert token._calls == 3
    finally:
        workers.close()


@pytest.mark.parametrize("begins", [False, True])
async def test_without_a_thread_the_work_is_done_all_the_same(begins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread starts, or it starts late and finds nothing to do."""
    late: list[Callable[[], object]] = []

    def start(work: Callable[[], object], arguments: object) -> None:
        if not begins:
            raise RuntimeError("can't start new thread")
        late.append(work)

    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr("mystfuse.system.pool._BEGINNING", 0.01)
    workers = Workers(2)
    assert not workers.threads and await workers.run(lambda: 5) == 5
    assert len(late) == begins
    for work in late:
        # It would wait for the queue.
        work()
    workers.close()


class ForgetfulDevice(MemoryDevice):
    """A device that has no memory for one pending read."""

    has_memory = True

    def begin(self, extents: Sequence[Extent]) -> PendingRead:
        def pending() -> list[memoryview]:
            if not self.has_memory:
                self.has_memory = True
                raise MemoryError
            return [memoryview(self._data)[extent.offset : extent.end] for extent in extents]

        return pending

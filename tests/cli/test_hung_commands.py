"""Commands and the API on storage that does not answer: each ends after its time-out, and at once on a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import mystfuse
from mystfuse.devices.patience import Opening, wait_for_storage
from mystfuse.devices.source import FileSource
from mystfuse.errors import StorageTimeout
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import wait_until
from tests.support.images import PROJECT
from tests.support.mounts import clear_mount


class Storage:
    """The storage of the images: see ``quiet_storage``."""

    def __init__(self, content: Path, mountpoint: Path) -> None:
        program = [sys.executable, "-m", "tests.support.quiet_storage", content, mountpoint]
        self.image = mountpoint / "image"
        self._mountpoint = mountpoint
        self._server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        assert self._server.stdout is not None and self._server.stdout.readline() == "ready\n"
        # Read now what the kernel reads only once.
        FileSource(self.image).close()

    def hang(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()
        subprocess.run(["umount", "-l", self._mountpoint], check=False)


@pytest.fixture
def storage(small_image: Path, tmp_path: Path) -> Iterator[Storage]:
    mountpoint = tmp_path / "storage"
    mountpoint.mkdir()
    storage = Storage(small_image, mountpoint)
    try:
        yield storage
    finally:
        storage.close()


def is_waiting(pid: int) -> bool:
    """Whether a thread of a process or of its children waits in the kernel for storage."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    places = [(task / "wchan").read_text() for task in tasks]
    return any("folio" in place or "request_wait" in place for place in places) or any(map(is_waiting, children))


@contextmanager
def started(storage: Storage, tmp_path: Path, timeout: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All commands that open an image, each either starting or waiting for storage."""
    (tmp_path / "mount").mkdir()
    arguments = {
        "ls": ["/"],
        "cat": ["/hello.txt"],
        "extract": ["/", tmp_path / "extracted"],
        "tar": ["/"],
        "verify": [],
        "fssig": [],
        "info": [],
        "sign": ["--print-digest"],
        "mount": [tmp_path / "mount"],
    }
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "mystfuse", name, f"--io-timeout={timeout}", storage.image, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, options in arguments.items()
    }
    try:
        yield running
    finally:
        daemons = Path(f"/proc/{running['mount'].pid}/task/{running['mount'].pid}/children")
        for daemon in daemons.read_text().split() if daemons.exists() else ():
            os.kill(int(daemon), signal.SIGKILL)
        storage.answer()
        for process in running.values():
            process.kill()
            process.communicate()
        clear_mount(tmp_path / "mount")


def test_commands_end_after_their_time_out(storage: Storage, tmp_path: Path) -> None:
    storage.hang()
    with started(storage, tmp_path, "1") as running:
        wait_until(lambda: all(process.poll() is not None for process in running.values()), 20)
        for name, process in running.items():
            said = process.communicate()[1]
            assert (name, process.returncode) == (name, 1), said
            assert said == f"mystfuse: {storage.image}: no answer from storage within 1 s\n"
    assert not (tmp_path / "extracted").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_commands_at_once(number: signal.Signals, storage: Storage, tmp_path: Path) -> None:
    storage.hang()
    with started(storage, tmp_path, "0") as running:
        wait_until(lambda: all(is_waiting(process.pid) for process in running.values()), 20)
        told = time.monotonic()
        for process in running.values():
            process.send_signal(number)
        for name, process in running.items():
            assert process.wait(10), name
        assert time.monotonic() - told < 4
        assert all("Traceback" not in process.communicate()[1] for process in running.values())
    assert find_mount(str(tmp_path / "mount")) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_verify_in_the_middle_ends(number: signal.Signals, storage: Storage) -> None:
    """verify has read the beginning; the reads of the blocks hang."""
    patch = """
import sys, mystfuse.image.verify as verify
from mystfuse.devices.source import FileSource
first = verify._Checker.jobs
def jobs(self):
    sys.stderr.write("checking\\n"); sys.stderr.flush(); sys.stdin.readline()
    return first(self)
verify._Checker.jobs = jobs
from mystfuse.cli.main import main
main(sys.argv[1:])
"""
    for timeout in "1", "0":
        process = subprocess.Popen(
            [sys.executable, "-c", patch, "verify", f"--io-timeout={timeout}", storage.image],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdin is not None and process.stderr is not None
            while process.stderr.readline() != "checking\n":
                pass
            storage.hang()
            process.stdin.write("\n")
            process.stdin.flush()
            wait_until(partial(is_waiting, process.pid))
            begun = time.monotonic()
            if timeout == "0":
                process.send_signal(number)
            said = process.communicate(timeout=10)[1]
            assert time.monotonic() - begun < 4
            assert process.returncode
            if timeout == "1":
                assert said.endswith("no answer from storage within 1 s\n")
        finally:
            storage.answer()
            process.kill()
            process.communicate()


@pytest.mark.parametrize("at", ["open", "trust"])
async def test_the_api_times_out_and_can_be_cancelled(
    at: str, small_image: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    # Threads take a moment to start.
    autojump_clock.autojump_threshold = 0.1
    released, closed = threading.Event(), threading.Event()

    class Hanging(FileSource):
        def __init__(self, path: str) -> None:
            if at == "open":
                released.wait(20)
            super().__init__(path)

        def read(self, offset: int, length: int) -> bytes:
            released.wait(20)
            return super().read(offset, length)

        def close(self) -> None:
            super().close()
            closed.set()

    monkeypatch.setattr("mystfuse.devices.patience.FileSource", Hanging)

    async def read() -> None:
        async with mystfuse.open_image(small_image, trust="self", io_timeout=30):
            pytest.fail("it was opened")

    try:
        with pytest.raises(StorageTimeout, match="no answer from storage within 30 s"):
            await read()
        assert trio.current_time() <= 31
        with trio.move_on_after(5) as scope:
            await read()
        assert scope.cancelled_caught
    finally:
        released.set()
    assert closed.wait(5), "what was opened too late is closed"


def test_a_process_has_one_thread_after_waiting_for_storage() -> None:
    """A regression: setns(2) takes a process of one thread only, and failed while the thread that had opened the image
    was ending."""

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.2)

    local, before = threading.local(), set(os.listdir("/proc/self/task"))

    def work() -> int:
        local.slow = Slow()
        return 7

    assert wait_for_storage(work, "name", 10) == 7
    assert set(os.listdir("/proc/self/task")) <= before


def test_a_file_opened_after_the_time_out_is_closed(small_image: Path) -> None:
    opening = Opening(small_image)
    opening.abandon()
    assert opening.run()._fd == -1

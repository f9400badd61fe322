"""Log messages never delay a request when their reader is stuck; other readers get every line whole and in order."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.mounting import log_thread
from mystfuse.mounting.daemon_logs import DaemonLogs
from mystfuse.mounting.log_thread import MAX_WAITING, DescriptorHandler, LogThread
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import mystfuse, wait_until
from tests.support.mounts import clear_mount, daemon_pid
from tests.support.processes import is_running


class Sink(logging.Handler):
    """A sink that keeps lines, and hangs while ``is_open`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.is_open = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_open.wait(20)
        self.lines.append(self.format(record))


def log_lines(handler: logging.Handler, first: int, last: int) -> None:
    for number in range(first, last):
        handler.handle(logging.LogRecord("mystfuse.test", logging.INFO, __file__, 1, "line %d", (number,), None))


def lines(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last)]


def test_lines_are_written_in_order_also_those_of_before_the_thread() -> None:
    sink = Sink()
    sink.is_open.set()
    thread = LogThread(sink)
    log_lines(thread, 0, 10)
    assert not sink.lines
    thread.start()
    log_lines(thread, 10, 500)
    assert thread.written().wait(5)
    assert sink.lines == lines(0, 500)


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    sink = Sink()
    thread = LogThread(sink)
    thread.start()
    log_lines(thread, 0, 1)
    wait_until(thread._waiting.empty)
    began = time.monotonic()
    log_lines(thread, 1, MAX_WAITING + 8)
    assert not thread.written().wait(0.1)
    assert time.monotonic() - began < 5
    sink.is_open.set()
    wait_until(thread._waiting.empty)
    log_lines(thread, 0, 1)
    assert thread.written().wait(5)
    assert sink.lines[:-2] == lines(0, MAX_WAITING + 1)
    assert sink.lines[-2:] == ["log lines dropped here (the reader is too slow): 7", "line 0"]


def test_a_line_that_there_is_no_memory_for_is_dropped_and_counted() -> None:
    class Large:
        def __str__(self) -> str:
            raise MemoryError

    sink = Sink()
    sink.is_open.set()
    thread = LogThread(sink)
    thread.start()
    thread.handle(logging.LogRecord("mystfuse", logging.INFO, __file__, 1, "%s", (Large(),), None))
    log_lines(thread, 0, 1)
    assert thread.written().wait(5)
    assert sink.lines == ["log lines dropped here (the reader is too slow): 1", "line 0"]


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [refuse, lambda *_: None])
def test_without_a_thread_lines_are_written_all_the_same(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_thread, "PATIENCE", 0.05)
    sink = Sink()
    sink.is_open.set()
    thread = LogThread(sink)
    log_lines(thread, 0, 3)
    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", start)
        thread.start()
    assert sink.lines == lines(0, 3)
    log_lines(thread, 3, 5)
    assert sink.lines == lines(0, 5) and thread.written().is_set()


def test_a_start_that_fails_before_there_are_threads_loses_nothing() -> None:
    sink = Sink()
    sink.is_open.set()
    thread = LogThread(sink)
    log_lines(thread, 0, 3)
    assert thread.written().is_set() and sink.lines == lines(0, 3)


def test_the_end_waits_a_second_for_what_hangs_and_loses_nothing_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, sound = Sink(), Sink()
    sound.is_open.set()
    threads = [LogThread(hanging), LogThread(sound)]
    logs = DaemonLogs.__new__(DaemonLogs)
    logs._threads = threads
    logs.start_threads()
    for thread in threads:
        log_lines(thread, 0, 100)
    began = time.monotonic()
    logs.catch_up()
    assert 0.9 < time.monotonic() - began < 3
    assert sound.lines == lines(0, 100)
    hanging.is_open.set()


def test_a_line_is_written_whole_to_a_slow_reader() -> None:
    receiver, sender = os.pipe()
    fcntl.fcntl(sender, fcntl.F_SETPIPE_SZ, 4096)
    thread = LogThread(DescriptorHandler(sender))
    thread.start()
    thread.handle(logging.LogRecord("mystfuse", logging.INFO, __file__, 1, "x" * 100_000, None, None))
    with os.fdopen(receiver, "rb") as file:
        assert file.readline() == b"x" * 100_000 + b"\n"
    assert thread.written().wait(5)
    os.close(sender)


LOGGING = """
import sys
from pathlib import Path
import mystfuse.mounting.daemon_logs as logs
logs._SYSLOG = Path(sys.argv.pop(1))
from mystfuse.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def fill_logs(pid: int) -> None:
    """Make a daemon log more than its readers' buffers hold."""
    for _ in range(30):
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.01)


def assert_serves(mountpoint: Path) -> None:
    # In a process of its own: a hang there must not hang the tests.
    cat = subprocess.Popen(["cat", mountpoint / "hello.txt"], stdout=subprocess.PIPE, text=True)
    try:
        assert cat.communicate(timeout=5)[0] == "hello\n"
    finally:
        cat.kill()


def test_a_stuck_syslog_delays_no_request(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "syslog"))
        command = [sys.executable, "-c", LOGGING, tmp_path / "syslog", "mount", small_image, mountpoint]
        try:
            assert subprocess.run(command, check=False, timeout=20).returncode == 0
            pid = daemon_pid(mountpoint)
            fill_logs(pid)
            assert_serves(mountpoint)
            began = time.monotonic()
            assert mystfuse("umount", mountpoint, timeout=20).returncode == 0
            assert time.monotonic() - began < 5 and not is_running(pid)
            assert b"mystfuse[%d]: WARNING: " % pid in syslog.recv(10_000)
        finally:
            clear_mount(mountpoint)


def test_a_stuck_stderr_delays_no_request(small_image: Path, mountpoint: Path) -> None:
    receiver, sender = os.pipe()
    fcntl.fcntl(sender, fcntl.F_SETPIPE_SZ, 4096)
    daemon = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "-f", small_image, mountpoint], stdout=subprocess.DEVNULL, stderr=sender
    )
    os.close(sender)
    try:
        wait_until(lambda: find_mount(str(mountpoint)) is not None)
        assert_serves(mountpoint)
        fill_logs(daemon.pid)
        assert_serves(mountpoint)
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(15) == 0
        assert time.monotonic() - began < 6
        assert b"mystfuse: warning: " in os.read(receiver, 10_000)
    finally:
        daemon.kill()
        daemon.wait()
        os.close(receiver)
        clear_mount(mountpoint)

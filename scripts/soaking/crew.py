"""The worker processes: started, moved from phase to phase, watched, and ended."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Sequence

from soaking.meter import Meter, Phase
from soaking.share import Task
from soaking.worker import run_worker

_PR_SET_PDEATHSIG = 1
"""prctl(2)"""
_PATIENCE = 300.0
"""Seconds without any progress after which a worker hangs."""


class Stopped(Exception):
    """A worker has ended or hangs, so the soak ends too. ``Crew.wrongs`` says what was wrong."""


class Crew:
    """Forked from this process, which must have no other threads yet. They end when it does."""

    def __init__(self, tasks: Sequence[Task], meter: Meter) -> None:
        self.wrongs: list[str] = []
        """The faults that workers found, a line each."""
        self._meter = meter
        self._pids: dict[int, int] = {}
        self._progress: dict[int, tuple[int, float]] = {}
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        gc.collect()
        gc.freeze()
        try:
            for task in tasks:
                pid = os.fork()
                if pid == 0:
                    _work(task, meter, writer)
                self._pids[pid] = task.number
        except BaseException:
            self.kill()
            self.reap()
            raise
        finally:
            os.close(writer)

    def lead(self, phase: Phase, meanwhile: Callable[[], None]) -> None:
        """Wait until all reach a phase; calls ``meanwhile`` again and again. Raises Stopped."""
        self._meter.phase = phase
        # This process may not have looked for a long time.
        self._progress.clear()
        while any(state is not phase for state in self._meter.states()):
            self.watch()
            meanwhile()
            time.sleep(0.02)

    def watch(self) -> None:
        """Raises Stopped when a worker has ended early, or makes no progress."""
        self._collect()
        if self.wrongs:
            raise Stopped
        now = time.monotonic()
        for number, progress in enumerate(self._meter.progress()):
            is_waiting = self._meter.of(number).state is self._meter.phase is not Phase.RUN
            if is_waiting or self._progress.get(number, (-1, now))[0] != progress:
                self._progress[number] = progress, now
            elif now - self._progress[number][1] > _PATIENCE:
                self.wrongs.append(f"worker {number} has not got on for {_PATIENCE:.0f} s")
                raise Stopped

    def _collect(self) -> None:
        ended = []
        for pid, number in list(self._pids.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._pids[pid]
                ended.append((number, status))
        said = self._read()
        self.wrongs += said
        for number, status in ended:
            if os.WIFSIGNALED(status):
                self.wrongs.append(f"worker {number} died of {signal.Signals(os.WTERMSIG(status)).name}")
            elif status and not any(line.startswith(f"worker {number}: ") for line in said):
                self.wrongs.append(f"worker {number} ended with {os.waitstatus_to_exitcode(status)}")

    def _read(self) -> list[str]:
        parts = []
        try:
            while part := os.read(self._reader, 1 << 16):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts).decode(errors="replace").splitlines()

    def wait(self, seconds: float = 30) -> None:
        """Let the workers end that have reached the last phase. Raises Stopped."""
        deadline = time.monotonic() + seconds
        while self._pids:
            self._collect()
            if not self.wrongs and time.monotonic() > deadline:
                self.wrongs.append(f"{len(self._pids)} workers have not ended within {seconds:g} s")
            if self.wrongs:
                raise Stopped
            time.sleep(0.02)

    def kill(self) -> None:
        """End all of them. A worker that waits for the mount ends with it, and not before."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def reap(self, seconds: float = math.inf) -> None:
        """Wait this long for killed workers. Their earlier reports count."""
        deadline = time.monotonic() + seconds
        while self._pids and time.monotonic() < deadline:
            for pid in list(self._pids):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._pids[pid]
            time.sleep(0.02)
        self.wrongs += self._read()


def _work(task: Task, meter: Meter, writer: int) -> None:
    """A worker's process; does not return."""
    status = 1
    try:
        # The terminal's ^C reaches every process: the parent decides.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        def say(line: str) -> None:
            os.write(writer, (line.replace("\n", " ")[:2000] + "\n").encode(errors="replace"))

        try:
            status = run_worker(task, meter, say)
        except BaseException as error:
            traceback = error.__traceback__
            while traceback and traceback.tb_next:
                traceback = traceback.tb_next
            at = f" in line {traceback.tb_lineno} of {traceback.tb_frame.f_code.co_filename}" if traceback else ""
            say(f"worker {task.number}: {type(error).__name__}: {error}{at}")
    finally:
        os._exit(status)

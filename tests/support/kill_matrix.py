"""Ends commands at any moment, and checks that either the old state or the new one is left, and nothing else.

    python -m tests.support.kill_matrix [--rounds 200] [--signal KILL] [--by time|syscall] [--seed 1] [CASE...]

By time, each round ends the command, its process group, or one of its children at a random moment. By syscall, strace
lets each process die as it is about to make its Nth system call of those that change something, for every N.
``test_kills.py`` runs a few rounds of each case.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from removal import remove_tree, temporary_directory

from mystfuse.mounting.mount_table import find_mount
from tests.support.kill_cases import CASES, Case, Commit, Exec, Mount, Umount
from tests.support.kill_place import (
    CHANGING,
    HIDDEN,
    MYSTFUSE,
    PATIENCE,
    PRIVATE,
    Place,
    mystfuse,
    processes_with,
    wait_until,
)


@dataclass
class Moment:
    """When a round ends its command, and which of its processes."""

    number: int = signal.SIGKILL
    seconds: float | None = None
    whom: str = "command"
    """``command``, ``group``, or ``child``: one of the processes that it has started."""
    syscall: tuple[str, int] | None = None
    """Before the Nth call of this name, in any process."""
    choice: float = 0.0
    """Which child, from 0 to 1."""


class Matrix:
    """The rounds of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.place = case.place
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[str] = collections.Counter()

    def measure(self) -> float:
        """Seconds that the command takes undisturbed; it has to end in the new state."""
        self.case.begin()
        started = time.monotonic()
        process = self._start([])
        try:
            if self.case.ends:
                assert process.wait(120) == 0, process.stderr and process.stderr.read()
            else:
                wait_until(lambda: self.case.is_ready() or process.poll() is not None, "ready")
            took = time.monotonic() - started
            if self.case.ends:
                outcome = self.case.check()
                assert outcome == ("old" if isinstance(self.case, Umount) else "new"), outcome
            self.case.finish()
        finally:
            self._end(process)
        self._clean()
        return took

    def syscalls(self) -> list[tuple[str, int]]:
        """Each call of ``CHANGING``, from the first to the last one that a process makes."""
        self.case.begin()
        log = self.place.root / "log"
        process = self._start(["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CHANGING}"])
        try:
            if self.case.ends:
                process.wait(240)
            else:
                wait_until(lambda: self.case.is_ready() or process.poll() is not None, "ready", 120)
            self.case.finish()
        finally:
            self._end(process)
        self._clean()
        calls = re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE)
        most: dict[str, int] = {}
        for (_, name), count in collections.Counter(calls).items():
            most[name] = max(most.get(name, 0), count)
        return [(name, index) for name, count in sorted(most.items()) for index in range(1, count + 1)]

    def round(self, moment: Moment) -> str:
        """Run one round; returns the state after it."""
        self.case.begin()
        wrap: list[str] = []
        if moment.syscall is not None:
            name = signal.Signals(moment.number).name.removeprefix("SIG")
            call, index = moment.syscall
            inject = f"inject={call}:signal={name}:when={index}"
            wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CHANGING}", "-e", inject]
        process = self._start(wrap)
        try:
            if moment.seconds is not None:
                time.sleep(moment.seconds)
                self._send(process, moment)
            if self.case.ends or (moment.seconds is not None and moment.whom != "child"):
                process.wait(PATIENCE)
            else:
                wait_until(lambda: process.poll() is not None or self.case.is_ready(), "ended or ready")
            if process.poll() is None and not isinstance(self.case, Mount):
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)
            outcome = self.case.check()
            # No process goes on: neither the daemon, mke2fs, bubblewrap, nor the program.
            wait_until(lambda: not self.place.processes(), f"nobody left: {self.place.processes()}")
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self._where()}") from None
        finally:
            self._end(process)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        # Python handles no signal before it runs our code.
        if not said.startswith("Fatal Python error: init_import_site"):
            assert "Traceback" not in said and "internal error" not in said, said
            if moment.number != signal.SIGKILL:
                self._check_orderly_end(process.returncode, said, moment.number)
        self.statuses[str(process.returncode)] += 1
        if moment.number != signal.SIGKILL:
            assert not self._left(), self._left()
        self.left.update("hidden name" if HIDDEN.fullmatch(path.name) else path.name[:9] for path in self._left())
        self._clean()
        self.outcomes[outcome] += 1
        return outcome

    def _check_orderly_end(self, status: int, said: str, number: int) -> None:
        assert status in (0, 1, -number, 128 + number, 7), (status, said)
        lines = [
            line for line in said.split("\n") if line and not re.match("mystfuse: (warning|ending|unmounted)", line)
        ]
        # The signal may have ended a daemon while bubblewrap was using its mount.
        names = ("mystfuse: ", "bwrap: ") if isinstance(self.case, Exec) else ("mystfuse: ",)
        assert len(lines) <= 1 and all(line.startswith(names) for line in lines), said

    def _start(self, wrap: list[str]) -> subprocess.Popen[str]:
        stdout = self.case.stdout()
        try:
            return subprocess.Popen(
                [*wrap, *MYSTFUSE, *map(str, self.case.command())],
                env=self.place.environment(), start_new_session=True, stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            if stdout >= 0:
                os.close(stdout)

    def _send(self, process: subprocess.Popen[str], moment: Moment) -> None:
        if moment.whom == "group":
            os.killpg(process.pid, moment.number)
        elif moment.whom == "child":
            children = sorted(self.place.processes().keys() - {process.pid})
            if children:
                with suppress(ProcessLookupError):
                    os.kill(children[int(moment.choice * len(children))], moment.number)
        elif process.poll() is None:
            process.send_signal(moment.number)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Nothing of a round outlives it, even when its check has failed."""
        deadline = time.monotonic() + 10
        while found := processes_with(self.place.token):
            assert time.monotonic() < deadline, found
            if not isinstance(self.case, Commit) or find_mount(str(self.place.mountpoint)) is None:
                mystfuse("umount", "--lazy", self.place.mountpoint)
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)
        process.wait(10)

    def _where(self) -> str:
        """Where in the kernel its processes wait."""
        found = []
        for pid, name in processes_with(self.place.token).items():
            with suppress(OSError):
                status = re.findall(r"^(?:State|PPid):.*", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
                found.append(f"{pid} {name} {status} {call} {Path(f'/proc/{pid}/stack').read_text()}")
        return "\n".join(found)

    def _left(self) -> list[Path]:
        beside = [path for path in self.place.out.iterdir() if path != self.place.target]
        private = list(self.place.temporary.iterdir())
        assert all(PRIVATE.fullmatch(path.name) for path in private), private
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.place.temporary) not in mounts and str(self.place.out) not in mounts
        for path in private:
            # Never the plaintext.
            assert all(file.stat().st_size == 0 for file in path.iterdir()), list(path.iterdir())
        return beside + private

    def _clean(self) -> None:
        for directory in (self.place.out, self.place.temporary):
            remove_tree(directory)
            directory.mkdir()


@contextmanager
def open_matrix(name: str) -> Iterator[Matrix]:
    """The matrix of a case, everything set up for it."""
    with temporary_directory("kill-matrix-") as directory:
        case = CASES[name](Place(Path(directory).resolve()))
        case.set_up()
        try:
            yield Matrix(case)
        finally:
            case.tear_down()


def moments(case: Case, generator: random.Random, duration: float, rounds: int, number: int) -> Iterator[Moment]:
    """Moments spread over the duration of a command, and a little more."""
    for index in range(rounds):
        whom = generator.choice(case.whom)
        seconds = duration * 1.05 * (index + generator.random()) / rounds
        yield Moment(number, seconds, whom, choice=generator.random())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="by time (default: %(default)s)")
    parser.add_argument("--each", type=int, default=20, help="by syscall: of each name at most (default: %(default)s)")
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--by", choices=("time", "syscall"), default="time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    number = signal.Signals[f"SIG{arguments.signal}"]
    # Unmounts what is left, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failures = 0
    for name in arguments.cases:
        with open_matrix(name) as matrix:
            generator = random.Random(f"{arguments.seed} {name}")
            if arguments.by == "time":
                planned = list(moments(matrix.case, generator, matrix.measure(), arguments.rounds, number))
            else:
                calls = matrix.syscalls()
                # Most of these calls open imported files, or write blocks.
                planned = []
                for call in sorted({call for call, _ in calls}):
                    those = [Moment(number, syscall=each) for each in calls if each[0] == call]
                    step = max(len(those) / arguments.each, 1)
                    planned += [those[int(index * step)] for index in range(min(len(those), arguments.each))]
                print(f"{name}: {len(planned)} of {len(calls)} system calls", flush=True)
            failed = 0
            for moment in planned:
                try:
                    matrix.round(moment)
                except Exception as error:
                    failed += 1
                    print(f"{name}: {moment}: {type(error).__name__}: {error}", flush=True)
                    matrix._clean()
            print(
                f"{name}: {len(planned)} rounds, {failed} failed; {dict(matrix.outcomes)}; "
                f"left: {dict(matrix.left)}; statuses: {dict(matrix.statuses)}",
                flush=True,
            )
            failures += failed
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

"""``mystfuse exec``: signals, the terminal, and cleaning up."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.support.commands import wait_until


def processes_of(programs: Path) -> list[int]:
    """All processes of an ``exec`` of this image: by their command lines, and the descendants of those."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.fsencode(programs) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        found += [int(child) for child in children if int(child) not in found]
    return found


def comms_of(programs: Path) -> list[str]:
    """The names of those processes, the deepest last."""
    names: list[str] = []
    for pid in processes_of(programs):
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def start(programs: Path, *command: str, **kwargs: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "exec", programs, *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **kwargs,  # type: ignore[call-overload]
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def names_in_tmp() -> set[str]:
    """Directories with the names that mystfuse gives, except the tests' own."""
    names = set(os.listdir("/tmp")) | set(os.listdir("/mnt"))
    return {name for name in names if name.startswith("mystfuse") and "test" not in name}


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


SLEEPING = ("sh", "-c", "echo ready; sleep 1000; true")


def test_a_signal_is_handed_on(programs: Path) -> None:
    with start(programs, "sh", "-c", 'trap "exit 7" TERM; echo ready; while true; do sleep 0.1; done') as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 7
    with start(programs, *SLEEPING) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 128 + signal.SIGHUP
    assert processes_of(programs) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_comes_before_the_program_is_handed_on_to_it(
    number: signal.Signals, programs: Path, tmp_path: Path
) -> None:
    wrapper = tmp_path / "bwrap"
    wrapper.write_text(f'#!/bin/sh\necho > {tmp_path}/begun; sleep 0.5; exec {shutil.which("bwrap")} "$@"\n')
    wrapper.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "exec", programs, "/bin/sh", "-c", "exec sleep 1000"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    try:
        wait_until((tmp_path / "begun").exists)
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.wait()


def test_nothing_is_left_whichever_process_is_killed(programs: Path) -> None:
    names: list[str] = []
    index = 0
    while True:
        before = names_in_tmp()
        with start(programs, *SLEEPING) as process:
            # A shell that has forked is still called "sh" in the child, until that runs "sleep".
            wait_until(lambda: len(chain := processes_of(programs)) >= 7 and name_of(chain[-1]) == "sleep")
            # The keeper can be killed without an effect: the mount disappears with the namespace.
            (keeper,) = (pid for pid in processes_of(programs) if name_of(pid) == "mystfuse:keeper")
            chain = [pid for pid in processes_of(programs) if pid != keeper]
            if index % 2:
                os.kill(keeper, signal.SIGKILL)
            if index == len(chain):
                process.terminate()
                process.wait(20)
                break
            names.append(name_of(chain[index]))
            os.kill(chain[index], signal.SIGKILL)
            status = process.wait(20)
            assert status != 0 or names[-1] == "sleep"
            wait_until(lambda: processes_of(programs) == [])
        assert os.fsencode(programs) not in Path("/proc/self/mountinfo").read_bytes()
        # Other tests make such directories too, for a short time.
        wait_until(lambda before=before: not names_in_tmp() - before)
        index += 1
    # Ourselves, the daemon, bubblewrap outside and inside, the shell, and the shell's child.
    assert {"bwrap", "sh", "sleep"} <= set(names) and len(names) >= 6, names


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "-i"], {**os.environ, "PS1": "prompt> ", "HISTFILE": ""})
        self.said = ""

    def expect(self, pattern: str, seconds: float = 30) -> str:
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.said!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.said += os.read(self.fd, 4096).decode(errors="replace")
        self.said = self.said[match.end() :]
        return match[0]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    terminal.expect("prompt> ")
    try:
        yield terminal
    finally:
        os.close(terminal.fd)
        os.kill(terminal.pid, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)


def test_the_terminal_is_the_programs(programs: Path, terminal: Terminal) -> None:
    ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 37, 119, 0, 0))
    mystfuse_exec = f"{sys.executable} -m mystfuse exec {programs} "
    terminal.type(mystfuse_exec + "stty size\n")
    terminal.expect(r"\n37 119\r\n")
    # ^C ends the program, and only the program.
    terminal.type(mystfuse_exec + "sh -c 'echo up; sleep 1000'; echo status $?\n")
    terminal.expect(r"\nup\r\n")
    wait_until(lambda: comms_of(programs)[-1:] == ["sleep"])
    terminal.type("\x03")
    terminal.expect("status 130")
    # The program may also handle it.
    terminal.type(
        mystfuse_exec + "sh -c 'trap \"echo caught\" INT; echo up; sleep 1000; echo after; exit 5'; echo status $?\n"
    )
    terminal.expect(r"\nup\r\n")
    wait_until(lambda: comms_of(programs)[-1:] == ["sleep"])
    terminal.type("\x03")
    terminal.expect("caught")
    terminal.expect("after")
    terminal.expect("status 5")
    # ^Z and fg.
    terminal.type(mystfuse_exec + "sh -c 'echo up; read line; echo got $line'\n")
    terminal.expect(r"\nup\r\n")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.expect("exec")
    terminal.type("a line\n")
    terminal.expect("got a line")
    terminal.expect("prompt> ")
    wait_until(lambda: processes_of(programs) == [])

"""Signals that come while a process is being started, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mystfuse.system import libc
from mystfuse.system.interrupts import interrupts_wait
from tests.support.commands import wait_until
from tests.system.test_program_output import is_running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_block_and_the_handler_of_before_gets_it(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with interrupts_wait():
            signal.raise_signal(number)
            assert not came
        assert came == [number]
        signal.raise_signal(number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_what_is_ignored_stays_ignored_and_is_inherited_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_wait():
            said = subprocess.run(["sh", "-c", "kill -HUP $$; echo alive"], capture_output=True, text=True, check=True)
        assert said.stdout == "alive\n"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_is_started_meanwhile_can_be_interrupted() -> None:
    with interrupts_wait():
        assert subprocess.run(["sh", "-c", "kill -INT $$; sleep 9"], check=False).returncode == -signal.SIGINT


@pytest.mark.parametrize("function", ["read_output(words, memoryview(bytearray(9)), 99)", "run_program(words, {}, 0)"])
def test_an_interrupt_while_popen_runs_leaves_no_process(function: str, tmp_path: Path) -> None:
    code = (
        "import subprocess, time\n"
        "from mystfuse.system.program_output import read_output\n"
        "from mystfuse.system.child_process import run_program\n"
        "class Slow(subprocess.Popen):\n"
        "    def __init__(self, *words, **named):\n"
        "        super().__init__(*words, **named)\n"
        "        time.sleep(3)\n"
        "subprocess.Popen = Slow\n"
        f"words = ['/bin/sh', '-c', 'echo $$ > {tmp_path}/pid; kill -INT $PPID; exec sleep 1000']\n"
        f"{function}"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "KeyboardInterrupt" in result.stderr and time.monotonic() - started < 50
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_a_process_ends_with_its_parent() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from mystfuse.system.libc import end_with_parent\n"
        "ours = os.getpid()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.write(1, b'%r\\n' % end_with_parent(signal.SIGKILL, ours))\n"
        "    time.sleep(1000)\n"
        "os.write(1, b'%d\\n' % child)\n"
        "time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    finally:
        process.kill()
        process.wait()
    assert "True" in lines
    (child,) = (int(line) for line in lines if line != "True")
    wait_until(lambda: not is_running(child))


def test_a_parent_that_has_ended_before_is_noticed() -> None:
    child = os.fork()
    if not child:
        # Another process than the one that has started it.
        os._exit(int(libc.end_with_parent(signal.SIGKILL, os.getpid())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

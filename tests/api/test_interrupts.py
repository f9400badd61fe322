"""^C at every instruction of a block that mounts: what was mounted is unmounted."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mystfuse
from mystfuse.api import mount as mounting
from mystfuse.mounting.mount_table import find_mount
from tests.support.cancelled_mounts import Machine, processes_naming
from tests.support.commands import wait_until
from tests.support.mounts import clear_mount


def interrupted_at(at: int, action: Callable[[], None]) -> bool:
    """Run ``action`` with a KeyboardInterrupt at the n-th instruction of ours, or line of other code; returns whether
    there were so many."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        ours = frame.f_code.co_filename in (mounting.__file__, sys.modules["mystfuse.system.blocking"].__file__)
        frame.f_trace_opcodes = ours
        if event in ("call", "opcode" if ours else "line"):
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count >= at


# Python itself loses a ^C that comes in a finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", range(4))
def test_a_block_interrupted_at_every_instruction(step: int, machine: Machine) -> None:
    mounts: list[mystfuse.mount] = []
    forgotten = 0

    def block() -> None:
        mounts.append(mystfuse.mount("image", "/m", trust="self"))
        with mounts[-1]:
            pass

    at = 1 + step
    while interrupted_at(at, block):
        if machine.mount is not None:
            # Nothing can catch ^C before the first instruction of __exit__: then garbage collection unmounts.
            mounts.clear()
            gc.collect()
            forgotten += 1
        assert (machine.mount, machine.commands) == (None, 0), at
        at += 4
    assert at > 200 and forgotten <= 2


PROGRAM = """
import sys, time
import mystfuse
try:
    print("begins", flush=True)
    with mystfuse.mount(sys.argv[1], sys.argv[2], trust="self"):
        print("mounted", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_programs_interrupted_while_they_mount(small_image: Path, tmp_path: Path) -> None:
    """Real programs, side by side, each interrupted at another moment between the start of the mounting process and the
    block's body."""
    programs = []
    try:
        for number in range(5):
            place = tmp_path / str(number)
            place.mkdir()
            command = [sys.executable, "-c", PROGRAM, small_image, place]
            programs.append((place, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        for number, (place, program) in enumerate(programs):
            assert program.stdout is not None
            assert program.stdout.readline() == "begins\n"
            if number == 4:
                assert program.stdout.readline() == "mounted\n"
            time.sleep(0.1 * number)
            program.send_signal(signal.SIGINT)
            assert program.wait(60) == 130
            assert find_mount(str(place)) is None
            wait_until(lambda place=place: processes_naming(place) == [])
    finally:
        for place, program in programs:
            program.kill()
            program.communicate()
            clear_mount(place)

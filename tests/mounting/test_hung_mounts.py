"""Commands that ask a mount whose daemon hangs: each ends after its time-out, and at once on a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import daemon_pid, mounted

HANGING = """
import os, signal, sys
import mystfuse.cli.commands.status as status, mystfuse.build.commit as commit
daemon, place = int(sys.argv.pop(1)), sys.argv.pop(1)
def hang():
    os.kill(daemon, signal.SIGSTOP)
    # A thread that has not stopped yet would take a request, which no signal takes back.
    states = {}
    while set(states.values()) != {"T"}:
        for thread in os.listdir(f"/proc/{daemon}/task"):
            with open(f"/proc/{daemon}/task/{thread}/stat") as file:
                states[thread] = file.read().rpartition(")")[2].split()[0]
    print("hangs", flush=True)
def copy(*given, first=commit._copy):
    if place == "copy": hang()
    return first(*given)
class Target(commit.AtomicFile):
    def __enter__(self):
        if place == "open": hang()
        return super().__enter__()
def ask(*given, first=status.ask):
    if place == "status": hang()
    return first(*given)
commit._copy, commit.AtomicFile, status.ask = copy, Target, ask
status.TIMEOUT = float(os.environ.get("STATUS_TIMEOUT", status.TIMEOUT))
from mystfuse.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line in a process; it stops the daemon when it reaches a given place."""


@contextmanager
def hanging(
    image: Path, mountpoint: Path, place: str, *words: str | Path, timeout: str = "10"
) -> Iterator[subprocess.Popen[str]]:
    """A command that has found the mount hung."""
    with mounted(image, mountpoint):
        daemon = daemon_pid(mountpoint)
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING, str(daemon), place, *words],
            env={**os.environ, "STATUS_TIMEOUT": timeout}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None and process.stdout.readline() == "hangs\n"
            yield process
        finally:
            process.kill()
            os.kill(daemon, signal.SIGCONT)
            process.communicate()


@pytest.mark.parametrize("place", ["open", "copy", "status"])
def test_a_commit_ends_after_its_time_out(place: str, small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    words = ("commit", "--io-timeout=1", mountpoint, tmp_path / "new")
    with hanging(small_image, mountpoint, place, *words, timeout="1") as process:
        said = process.communicate(timeout=10)[1]
        if place == "status":
            help = f"(mystfuse umount --force {mountpoint} ends it)"
            assert said == f"mystfuse: {mountpoint}: no answer within 1 s {help}\n"
        else:
            assert said == f"mystfuse: {mountpoint}/.mystfuse/image: no answer from storage within 1 s\n"
        assert process.returncode == (7 if place == "status" else 1)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["open", "copy", "status"])
def test_signals_end_a_commit_at_once(
    number: signal.Signals, place: str, small_image: Path, mountpoint: Path, tmp_path: Path
) -> None:
    words = ("commit", "--io-timeout=0", mountpoint, tmp_path / "new")
    with hanging(small_image, mountpoint, place, *words) as process:
        time.sleep(0.2)
        told = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=8)[1]
        assert time.monotonic() - told < 4
        assert (process.returncode, said) == (1, "mystfuse: interrupted\n")
        assert not (tmp_path / "new").exists()


def test_a_signal_ends_status_at_once(small_image: Path, mountpoint: Path) -> None:
    with hanging(small_image, mountpoint, "status", "status", mountpoint) as process:
        time.sleep(0.2)
        told = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=8)[1]
        assert time.monotonic() - told < 4
        assert (process.returncode, said) == (1, "mystfuse: interrupted\n")

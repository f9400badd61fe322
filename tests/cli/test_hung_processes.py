"""Processes that hang: the keeper, mke2fs, and the server of mke2fs's file. Every wait for them ends."""

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

from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.find_daemon import find_other_server
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import wait_until
from tests.support.processes import descriptors_of, is_running, keeper_of

PATIENT = """
import os, signal, sys
import mystfuse.mounting.keeper_client as keeper
keeper.PATIENCE = keeper._QUICK = 1.0
{patch}
from mystfuse.cli.main import main
main(sys.argv[1:])
"""
"""The command line, with time-outs of a second instead of a minute."""


def command(*arguments: str | Path, patch: str = "") -> list[str | Path]:
    return [sys.executable, "-c", PATIENT.format(patch=patch), *arguments]


def test_a_keeper_that_hangs_does_not_hang_mounting(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stop = f"os.system(f'echo {{os.getpid()}} >> {pids}'), os.kill(os.getpid(), signal.SIGSTOP)"
    patch = f"run = keeper.run_server; keeper.run_server = lambda *given: ({stop}, run(*given))"
    try:
        for options in ([], ["-f"]):
            with (tmp_path / "stderr").open("w+") as stderr:
                # Not a pipe: the keeper would hold it open.
                done = subprocess.run(
                    command("mount", *options, small_image, mountpoint, patch=patch), stderr=stderr, timeout=20
                )
                assert done.returncode == 7
                stderr.seek(0)
                said = stderr.read()
            assert said.count("\n") == 2 and "does not answer within 1 s" in said
    finally:
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert find_mount(str(mountpoint)) is None


def test_a_keeper_that_hangs_does_not_hang_an_idle_mount_nor_its_end(small_image: Path, mountpoint: Path) -> None:
    """The daemon can no longer unmount, and says so; everything else works."""
    options = ["-f", "--idle-timeout=1", small_image, mountpoint]
    daemon = subprocess.Popen(
        command("mount", *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    said: list[str] = []
    try:
        wait_until(lambda: find_mount(str(mountpoint)) is not None)
        keeper = keeper_of(daemon.pid)
        assert daemon.stdout is not None
        with (mountpoint / "hello.txt").open():
            while "mounted on" not in "".join(said):
                said.append(daemon.stdout.readline())
            os.kill(keeper, signal.SIGSTOP)
        while "idle, but" not in "".join(said):
            said.append(daemon.stdout.readline())
            assert said[-1], "it has ended"
        assert "does not answer within 1 s" in said[-1]
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        started = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(15) == 0
        assert time.monotonic() - started < 10
        os.kill(keeper, signal.SIGCONT)
        wait_until(lambda: not is_running(keeper))
    finally:
        daemon.kill()
        daemon.communicate()


def test_an_answer_that_comes_late_is_not_taken_for_another(mountpoint: Path) -> None:
    keeper = Keeper(MountOptions(mountpoint=str(mountpoint), fsname="none"))
    try:
        keeper._patience = 0.2
        os.kill(keeper._pid, signal.SIGSTOP)
        with pytest.raises(MountError, match=r"does not answer within 0\.2 s"):
            keeper.unmount()
        assert keeper._socket.fileno() == -1
        with pytest.raises(MountError, match="does not answer: "):
            keeper.unmount()
    finally:
        os.kill(keeper._pid, signal.SIGCONT)
        keeper.close()


@pytest.mark.parametrize("is_passed", [False, True])
def test_a_keeper_holds_no_descriptor_that_it_has_handed_over(is_passed: bool, mountpoint: Path) -> None:
    """A descriptor in the keeper would keep the mount of a killed daemon alive, and look like a second daemon of that
    mount or of the next one with its number."""
    with open("/dev/fuse", "rb+", buffering=0) as fuse:
        passed = fuse.fileno() if is_passed else None
        keeper = Keeper(MountOptions(mountpoint=str(mountpoint), fsname="none", descriptor=passed))
        try:
            descriptor, mount = keeper.mount()
            # The keeper handles requests one by one: its answer shows that it has finished mounting.
            keeper.raise_read_ahead()
            assert "/dev/fuse" not in descriptors_of(keeper._pid)
            if descriptor is not None:
                os.close(descriptor)
                assert mount is not None and find_other_server(mount) is None
                assert keeper.unmount(lazy=True)
        finally:
            keeper.close()


@contextmanager
def encrypting(tmp_path: Path, small_tree: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``mkext2 --encrypt`` while our stand-in for mke2fs does nothing; yields also the server of its file."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    began = tmp_path / "began"
    (tmp_path / "bin/mke2fs").write_text(f"#!/bin/sh\ntouch {began}\nexec sleep 300\n")
    (tmp_path / "bin/mke2fs").chmod(0o755)
    words = ["mkext2", "--encrypt", tmp_path / "key", small_tree, tmp_path / "image"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", *words],
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(began.exists, 20)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (server,) = (int(child) for child in children if "mystfuse" in Path(f"/proc/{child}/comm").read_text())
        yield process, server
    finally:
        process.kill()
        process.communicate()


def test_mke2fs_ends_with_the_process_that_encrypts_for_it(small_tree: Path, tmp_path: Path) -> None:
    with encrypting(tmp_path, small_tree) as (process, server):
        os.kill(server, signal.SIGKILL)
        said = process.communicate(timeout=10)[1]
    assert process.returncode == 1
    assert said == "mystfuse: mke2fs: a process that it needs has ended\n"
    assert not (tmp_path / "image").exists()


def test_making_an_image_is_interrupted_though_the_process_that_encrypts_hangs(
    small_tree: Path, tmp_path: Path
) -> None:
    with encrypting(tmp_path, small_tree) as (process, server):
        os.kill(server, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 1 and said == "mystfuse: interrupted\n"
    assert not is_running(server)

"""Unmounting busy mounts: we wait a limited time for other processes to leave, and never keep a mount busy
ourselves."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import mystfuse as api
from mystfuse.mounting import unmount as unmounting
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import BusyError, unmount_and_wait
from tests.support.commands import assert_one_line, mystfuse
from tests.support.mounts import mounted

STAY = 0.3
"""Seconds."""


def visit(mountpoint: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that stays in the mount for ``seconds``."""
    visitor = subprocess.Popen(["sh", "-c", f"echo; exec sleep {seconds}"], cwd=mountpoint, stdout=subprocess.PIPE)
    assert visitor.stdout is not None
    visitor.stdout.readline()
    return visitor


def test_the_command_waits_for_a_short_visit(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint), visit(mountpoint, STAY + 0.7):
        result = mystfuse("umount", mountpoint)
        assert (result.returncode, result.stderr) == (0, "")
        assert find_mount(str(mountpoint)) is None


def test_the_api_waits_for_a_short_visit(small_image: Path, mountpoint: Path) -> None:
    with api.mount(small_image, mountpoint, trust="self"):
        visitor = visit(mountpoint, STAY)
    assert find_mount(str(mountpoint)) is None
    with visitor:
        pass


def test_the_wait_for_a_long_visit_ends(small_image: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(small_image, mountpoint), visit(mountpoint, 60) as visitor:
        try:
            monkeypatch.setattr(unmounting, "BUSY_PATIENCE", 0.2)
            started = time.monotonic()
            with pytest.raises(BusyError):
                unmount_and_wait(str(mountpoint), lazy=False, timeout=30)
            assert 0.1 < time.monotonic() - started < 2
            assert_one_line(mystfuse("umount", "--timeout=0.1", mountpoint), 7, str(mountpoint))
        finally:
            visitor.kill()


def _places(pid: int) -> Iterator[Path]:
    process = Path("/proc", str(pid))
    yield from (process / "cwd", process / "root", process / "exe")
    for directory in ("fd", "map_files"):
        yield from (process / directory).iterdir()


def _children(pid: int) -> list[int]:
    """proc_pid_stat(5): the parent is the second field after the name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(entry.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found


def test_nothing_of_ours_is_in_a_mount_that_is_reported(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        daemon = json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"]
        keepers = _children(daemon)
        assert len(keepers) == 1
        device = os.stat(mountpoint).st_dev
        places = [place for pid in (daemon, *keepers) for place in _places(pid)]
        assert len(places) > 20
        inside = []
        for place in places:
            with suppress(FileNotFoundError):
                if place.stat().st_dev == device:
                    inside.append(os.readlink(place))
        assert inside == []

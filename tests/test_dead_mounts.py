"""What a daemon that was killed leaves (docs/adr/0019): a mountpoint that refuses, until somebody clears it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import assert_one_line, mystfuse, run, wait_until

import mystfuse as api
from mystfuse.fuse.mount_table import find_mount

SERVICE = Path(__file__).parents[1] / "systemd/mystfuse@.service"


def kill_daemon(mountpoint: Path) -> None:
    os.kill(int(json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"]), signal.SIGKILL)

    def is_dead() -> bool:
        # Not stat(2): the kernel may still know the attributes.
        try:
            os.listdir(mountpoint)
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    wait_until(is_dead)


def refusals(mountpoint: Path) -> list[int | None]:
    """The errnos of what programs do with a directory."""
    attempts: list[Callable[[], object]] = [
        lambda: os.listdir(mountpoint),
        lambda: (mountpoint / "new").write_text("new"),
        lambda: (mountpoint / "sub").mkdir(parents=True),
        lambda: (mountpoint / "hello.txt").read_text(),
    ]
    found: list[int | None] = []
    for attempt in attempts:
        try:
            attempt()
            found.append(None)
        except OSError as error:
            found.append(error.errno)
    return found


def test_a_killed_daemon_leaves_a_mountpoint_that_refuses(small_image: Path, mountpoint: Path) -> None:
    assert mystfuse(small_image, mountpoint).returncode == 0
    kill_daemon(mountpoint)
    assert refusals(mountpoint) == [errno.ENOTCONN] * 4
    assert_one_line(mystfuse(small_image, mountpoint), 7, f"mystfuse umount {mountpoint} clears it away")
    assert mystfuse("umount", "--stale", mountpoint).returncode == 0
    assert find_mount(str(mountpoint)) is None and os.listdir(mountpoint) == []
    assert mystfuse(small_image, mountpoint).returncode == 0
    # A mount that is served is not stale.
    assert mystfuse("umount", "--stale", mountpoint).returncode == 0
    assert (mountpoint / "hello.txt").read_text() == "hello\n"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_deletes_nothing_from_a_backup_of_a_dead_mount(
    small_image: Path, mountpoint: Path, tmp_path: Path
) -> None:
    backup = ["rsync", "-a", "--delete", f"{mountpoint}/", f"{tmp_path / 'backup'}/"]
    assert mystfuse(small_image, mountpoint).returncode == 0
    run(*backup)
    saved = sorted(os.listdir(tmp_path / "backup"))
    assert "hello.txt" in saved
    kill_daemon(mountpoint)
    assert run(*backup, check=False).returncode == 23
    assert sorted(os.listdir(tmp_path / "backup")) == saved
    # Which an empty directory would not have kept.
    assert mystfuse("umount", mountpoint).returncode == 0
    assert run(*backup).returncode == 0
    assert os.listdir(tmp_path / "backup") == []


def test_the_service_clears_it_when_it_starts_and_not_when_it_has_crashed() -> None:
    lines = SERVICE.read_text().splitlines()
    clearing = [line for line in lines if "--stale" in line and not line.startswith("#")]
    assert clearing == ["ExecStartPre=/usr/local/bin/mystfuse umount --stale -- ${MOUNTPOINT}"]


def test_a_block_whose_daemon_is_killed_leaves_nothing(small_image: Path, mountpoint: Path) -> None:
    with api.mount(small_image, mountpoint, trust="self"):
        kill_daemon(mountpoint)
    assert find_mount(str(mountpoint)) is None and os.listdir(mountpoint) == []

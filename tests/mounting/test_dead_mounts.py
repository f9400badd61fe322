"""Dead mounts (docs/adr/0019): the mountpoint refuses everything until `mystfuse umount` clears it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mystfuse as api
from mystfuse.build import plaintext_file
from mystfuse.mounting import unmount
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import clear_mount

SERVICE = Path(__file__).parents[2] / "systemd/mystfuse@.service"


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
    """The errnos that programs get from a directory."""
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
    # rsync would have emptied the backup if the mountpoint were an empty directory.
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


FAILING = """
import sys
import mystfuse.fuse.{module} as module
def fail(*given):
    raise {error}
module.{name} = fail
from mystfuse.cli.main import main
main(sys.argv[1:])
"""
ERRORS = {"MemoryError()": MemoryError(), "OSError(24, 'Too many open files')": OSError(24, "Too many open files")}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("module", "name"),
    [("init_request", "InitRequest"), ("operations", "Operations"), ("libfuse_session", "open_session")],
)
def test_a_daemon_that_fails_before_it_serves_leaves_no_mount(
    module: str, name: str, error: str, small_image: Path, mountpoint: Path
) -> None:
    code = FAILING.format(module=module, name=name, error=error)
    try:
        command = [sys.executable, "-c", code, "mount", "-f", small_image, mountpoint]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
        assert result.returncode == 1 and re.search("no memory left|Too many open files", result.stderr), result.stderr
        assert find_mount(str(mountpoint)) is None
    finally:
        clear_mount(mountpoint)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["open_session", "name_this_process"])
def test_a_server_of_plaintext_that_fails_before_it_serves_leaves_no_mount(
    name: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.lazily: list[bool] = []

        def mount(self) -> tuple[int, None]:
            return 99, None

        def unmount(self, lazy: bool = False) -> bool:
            self.lazily.append(lazy)
            return True

    def fail(*given: object) -> None:
        raise ERRORS[error]

    monkeypatch.setattr(plaintext_file, "open_session", lambda *given: None)
    monkeypatch.setattr(plaintext_file, name, fail)
    monkeypatch.setattr(plaintext_file.pyfuse3, "close", lambda unmount: None)
    keeper = Keeper()
    with pytest.raises(type(ERRORS[error])):
        plaintext_file.serve(None, keeper, lambda: None)  # type: ignore[arg-type]
    assert keeper.lazily == [True]


LITTLE = "-all,+sys_admin,+dac_read_search,+sys_chroot,+setuid,+setgid,+setpcap"
"""The privileges that systemd's unit leaves root: without CAP_SYS_PTRACE it sees that other processes have descriptors,
but not which."""


@pytest.mark.parametrize("hides", [False, True], ids=["no ptrace", "hidepid"])
def test_a_live_mount_is_not_stale_though_its_daemon_is_hidden(
    hides: bool, small_image: Path, mountpoint: Path
) -> None:
    assert mystfuse("mount", "--allow-other", small_image, mountpoint).returncode == 0
    (mountpoint / "new").write_text("kept")
    hide = "mount -t proc -o hidepid=2 proc /proc && " if hides else ""
    little = f'{hide}exec setpriv --no-new-privs "--bounding-set={LITTLE}" "$@"'
    command = [sys.executable, "-m", "mystfuse", "umount", "--stale", mountpoint]
    run("unshare", "--mount", "sh", "-c", little, "sh", *command)
    run("setpriv", "--no-new-privs", f"--bounding-set={LITTLE}", *command)
    assert find_mount(str(mountpoint)) is not None
    assert (mountpoint / "new").read_text() == "kept"


def test_a_mount_that_answers_is_not_stale_whichever_processes_are_visible(
    small_image: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user's encrypted mount: hidepid=2 hides its daemon even from its own user."""
    assert mystfuse(small_image, mountpoint).returncode == 0
    monkeypatch.setattr(unmount, "find_daemon", lambda mount: None)
    monkeypatch.setattr(unmount, "find_other_server", lambda mount: None)
    unmount.unmount_stale(str(mountpoint))
    assert (mountpoint / "hello.txt").read_text() == "hello\n"
    kill_daemon(mountpoint)
    unmount.unmount_stale(str(mountpoint))
    assert find_mount(str(mountpoint)) is None

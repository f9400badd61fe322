"""No reply is lost, late or another question's: very many questions, each answered in time.

MYSTFUSE_REPLIES=10000000 pytest -s tests/fastpath/test_replies.py  # so many for each mount
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from tests.support.askers import DISCONNECTED, compile_askers, make_tree
from tests.support.commands import GROUP, USER, mystfuse, run, wait_until
from tests.support.mounts import caches_dropped, clear_mount, mounted

WANTED = int(os.environ.get("MYSTFUSE_REPLIES", "10000"))
THREADS = 24
PATIENCE = 30
"""Seconds for one answer, on a busy machine."""
SLOWEST = 100
"""Answers a second, on a busy machine."""
DEFAULT_LIMIT = 212992
"""Bytes: Linux's own net.core.wmem_max."""


class Asking(NamedTuple):
    """The running program.

    Attributes:
        said: gives its stderr so far.
    """

    process: subprocess.Popen[bytes]
    said: Callable[[], str]


@pytest.fixture(scope="module")
def directory(open_tmp_path_of_module: Path) -> Path:
    """The program ``askers`` and its image."""
    path = open_tmp_path_of_module
    compile_askers(path)
    make_tree(path / "tree")
    assert mystfuse("mkext2", "--free=64M", path / "tree", path / "image").returncode == 0
    (path / "image").chmod(0o644)
    return path


@pytest.fixture
def default_socket_limits() -> Iterator[None]:
    """Those of Linux, where the machine's are larger."""
    limits = [Path("/proc/sys/net/core", name) for name in ("wmem_max", "rmem_max")]
    before = [limit.read_text() for limit in limits]
    try:
        for limit in limits:
            if int(limit.read_text()) > DEFAULT_LIMIT:
                limit.write_text(str(DEFAULT_LIMIT))
        yield
    finally:
        for limit, value in zip(limits, before, strict=True):
            limit.write_text(value)


@contextmanager
def asking(directory: Path, mountpoint: Path, questions: int, patience: int, *wrap: str) -> Iterator[Asking]:
    """The program at work. A process whose question is never answered cannot end while the daemon lives: then that is
    ended, too."""
    command = [*wrap, str(directory / "askers"), str(mountpoint), str(questions), str(THREADS), str(patience)]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stderr=stderr)
        try:
            yield Asking(process, lambda: os.pread(stderr.fileno(), 4096, 0).decode())
        finally:
            process.kill()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                kill_daemon(mountpoint)
                process.wait(PATIENCE)


def kill_daemon(mountpoint: Path) -> None:
    mount = find_mount(str(mountpoint))
    daemon = None if mount is None else find_daemon(mount)
    assert daemon is not None
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    os.close(daemon)


def ask(directory: Path, mountpoint: Path, *wrap: str) -> None:
    """Ask all questions, while names and inodes are dropped."""
    started = time.monotonic()
    deadline = started + 60 + WANTED / SLOWEST
    with caches_dropped(), asking(directory, mountpoint, WANTED, PATIENCE, *wrap) as askers:
        while askers.process.poll() is None:
            assert askers.said() == ""
            assert time.monotonic() < deadline, "too slow"
            Path("/proc/sys/vm/drop_caches").write_text("2")
            time.sleep(0.3)
        assert (askers.process.returncode, askers.said()) == (0, "")
    print(f"{WANTED} answers, {WANTED / (time.monotonic() - started):.0f} a second")


def test_every_question_is_answered(directory: Path, path_options: tuple[str, ...]) -> None:
    with mounted(directory / "image", directory / "mount", "--insecure", *path_options) as mountpoint:
        ask(directory, mountpoint)


def test_every_question_of_an_ordinary_user_is_answered(
    directory: Path, ordinary_user: list[str], default_socket_limits: None, path_options: tuple[str, ...]
) -> None:
    mountpoint = directory / "users"
    mountpoint.mkdir(exist_ok=True)
    os.chown(mountpoint, USER, GROUP)
    try:
        run(*ordinary_user, "mount", "--insecure", *path_options, directory / "image", mountpoint, cwd=directory)
        ask(directory, mountpoint, *ordinary_user[:4])
    finally:
        clear_mount(mountpoint)


def test_a_lost_reply_is_noticed(directory: Path, tmp_path: Path, slow_path_options: tuple[str, ...]) -> None:
    """Else the program is wrong: one answer in a thousand does not come, or is another's."""
    for fault, message in (
        ("await __import__('trio').sleep(1000)", "bytes: no answer within 2 s"),
        ("return await real(self, ino, offset ^ 4096, *words, **options)", " instead of "),
    ):
        (tmp_path / "sitecustomize.py").write_text(
            "from mystfuse.volume import volume\n"
            "count = 0\n"
            "async def read(self, ino, offset, *words, real=volume.Volume.read, **options):\n"
            "    global count\n"
            "    count += 1\n"
            f"    if count % 1000 == 0: {fault}\n"
            "    return await real(self, ino, offset, *words, **options)\n"
            "volume.Volume.read = read\n"
        )
        environment = {"PYTHONPATH": str(tmp_path)}
        options = ("--insecure", *slow_path_options)
        with (
            mounted(directory / "image", directory / "faulty", *options, env=environment) as mountpoint,
            asking(directory, mountpoint, 1_000_000, 2) as askers,
        ):
            wait_until(lambda: askers.said() != "", 60)  # noqa: B023  # called at once
            assert message in askers.said()


def test_a_killed_daemon_leaves_nobody_waiting(directory: Path, path_options: tuple[str, ...]) -> None:
    options = ("--insecure", *path_options)
    with (
        mounted(directory / "image", directory / "killed", *options) as mountpoint,
        asking(directory, mountpoint, 1_000_000_000, PATIENCE) as askers,
    ):
        time.sleep(1)
        kill_daemon(mountpoint)
        assert askers.process.wait(PATIENCE) == DISCONNECTED, askers.said()
        assert mystfuse("umount", mountpoint).returncode == 0

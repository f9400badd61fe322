"""Mounts that are always cleaned up, their daemons, and the kernel's caches."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mystfuse import kernels
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.mounting.unmount import GoneError, unmount
from tests.support.commands import mystfuse, run, wait_until
from tests.support.logs import fail_if_unannounced

EXTRA_OPTIONS = tuple(os.environ.get("MYSTFUSE_TEST_MOUNT_OPTIONS", "").split())
"""Options of every mount, to run the suite once more with other ones: "-o nofastpath"."""
HAS_FAST_PATH = kernels.IS_NATIVE and "nofastpath" not in " ".join(EXTRA_OPTIONS)
"""Whether mounts have the fast path, unless their own options say otherwise."""
OWN_MOUNTS = ("sh", "-c", 'umount -a -l -i -t fuse.mystfuse 2>/dev/null; exec "$@"', "sh")
"""For unshare --mount: unmounts its copies of other tests' mounts, whose daemons would wait for it."""


@contextmanager
def _page_cache_lock(how: int) -> Iterator[None]:
    # For the whole machine, like the caches.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    os.makedirs("/run/lock", exist_ok=True)
    descriptor = os.open("/run/lock/mystfuse-test-page-cache", flags, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def drop_caches() -> None:
    """Drop the unused dentries and inodes of the whole machine; waits while a parallel test needs them. A FUSE mount's
    pages go with its inodes.

    Dropping the pages of all file systems, or sync(2), would wait for ever for one that hangs, whoever has mounted it.
    """
    with _page_cache_lock(fcntl.LOCK_EX):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def caches_dropped() -> AbstractContextManager[None]:
    """The block drops the machine's caches by itself."""
    return _page_cache_lock(fcntl.LOCK_EX)


def caches_kept() -> AbstractContextManager[None]:
    """No test drops the machine's caches during the block."""
    return _page_cache_lock(fcntl.LOCK_SH)


def assert_clean(mountpoint: Path, directory: Path) -> None:
    """e2fsck finds nothing in the present state of a mount.

    Args:
        directory: where a copy of it goes.
    """
    run("cp", "--sparse=always", mountpoint / ".mystfuse/image", directory / "present")
    run("e2fsck", "-fn", directory / "present")


@contextmanager
def mounted(image: str | Path, mountpoint: Path, *options: str | Path, **kwargs: Any) -> Iterator[Path]:
    """Mount ``image`` and yield the mountpoint; unmounts and waits for the daemon, also when the test fails.

    Unless the options name a log file, an internal error in the daemon's log fails the test that has not announced it.
    """
    mountpoint.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("r", prefix="mystfuse-test-log-", errors="replace") as log:
        own_log = () if any(str(option).startswith("--log-file") for option in options) else (f"--log-file={log.name}",)
        result = mystfuse("mount", *own_log, *EXTRA_OPTIONS, *options, image, mountpoint, **kwargs)
        try:
            assert result.returncode == 0, result.stderr
            yield mountpoint
        finally:
            clear_mount(mountpoint)
        fail_if_unannounced(line for line in log if "internal error" in line)


def status_of(mountpoint: Path) -> dict[str, Any]:
    """The mount's status.json."""
    status: dict[str, Any] = json.loads((mountpoint / ".mystfuse/status.json").read_text())
    return status


def daemon_pid(mountpoint: Path) -> int:
    return int(status_of(mountpoint)["pid"])


def logged(mountpoint: Path, log: Path) -> str:
    """A daemon's log so far, complete: it writes its lines in order, but a moment later."""
    pid = daemon_pid(mountpoint)
    count = log.read_text().count(" status: {")
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: log.read_text().count(" status: {") > count)
    return "".join(line for line in log.read_text().splitlines(True) if " status: {" not in line)


def clear_mount(mountpoint: Path) -> None:
    """Unmount whatever we have mounted there, and wait for its daemon."""
    path = resolve_mountpoint(str(mountpoint))
    mount = find_mount(path)
    if mount is None:
        return
    daemon = find_daemon(mount)
    with suppress(GoneError):
        unmount(path, lazy=True)
    if daemon is not None:
        try:
            poll = select.poll()
            poll.register(daemon, select.POLLIN)
            if not poll.poll(60_000):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
                pytest.fail(f"the daemon of {mountpoint} did not end within 60 s after unmounting")
        finally:
            os.close(daemon)

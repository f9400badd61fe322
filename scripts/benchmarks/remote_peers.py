"""What mounts an image from a web server: mystfuse, and nbdkit's curl plug-in with nbdfuse and fuse2fs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.data import Image
from benchmarks.peer import SECONDS_TO_END, SECONDS_TO_MOUNT, served
from benchmarks.peers import daemon_of, end_mystfuse
from benchmarks.tools import BenchmarkError, StrPath, mystfuse_command, run

Where = Callable[..., list[str]]
"""Makes the command that runs a command on the client's host."""


def here(*command: StrPath) -> list[str]:
    return [os.fspath(word) for word in command]


@contextmanager
def mount_remote(
    url: str, image: Image, mountpoint: Path, where: Where = here, options: Sequence[StrPath] = ()
) -> Iterator[int]:
    """mystfuse: mount an image of a web server; yields the daemon's number."""
    trust = f"--roothash={image.root_hash}"
    try:
        run(*where(*mystfuse_command(), "mount", trust, *options, url, mountpoint))
        pid = daemon_of(mountpoint)
        if pid is None:
            raise BenchmarkError(f"no daemon serves {mountpoint}")
        yield pid
    finally:
        end_mystfuse(mountpoint)


@contextmanager
def mount_with_nbdkit(url: str, scratch: Path, mountpoint: Path, where: Where = here) -> Iterator[None]:
    """nbdkit curl, whose NBD export nbdfuse shows as a file, which fuse2fs mounts read-only. There is no verification,
    and no kernel module nbd, which many kernels lack."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbd-", dir=scratch)))
        socket, shown = directory / "socket", directory / "shown"
        shown.mkdir()
        nbdkit = where("nbdkit", "--foreground", "--readonly", "--exit-with-parent", "--unix", socket, "curl", url)
        stack.enter_context(_program(nbdkit, socket))
        # As many connections as nbdfuse opens by default where the server can take several.
        stack.enter_context(served(["nbdfuse", "-r", shown / "image", "--unix", socket], shown))
        command: list[StrPath] = ["fuse2fs", "-f", "-o", "ro", shown / "image", mountpoint]
        stack.enter_context(served(command, mountpoint))
        yield


@contextmanager
def _program(command: list[str], socket: Path) -> Iterator[None]:
    """A server, until the block ends."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS_TO_MOUNT
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{command[0]} did not start")
            time.sleep(0.005)
        yield
    finally:
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

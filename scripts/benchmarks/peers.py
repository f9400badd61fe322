"""The contenders: mystfuse, and the file systems to which it is compared. A peer mounts an image, for a block."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from removal import remove_tree

from benchmarks.data import Image
from benchmarks.limit import Limit
from benchmarks.peer import SECONDS_TO_END, Peer, served, set_read_ahead, unmount
from benchmarks.tools import StrPath, as_user, is_installed, mystfuse_command, run
from mystfuse.errors import MountError
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount_and_wait


class Mystfuse(Peer):
    name = "mystfuse"
    seconds_to_mount = 0.0
    """The seconds of the last mount until the command returned, with its mount answering."""

    def missing(self) -> str:
        return ""

    def command(self, image: Image, mountpoint: Path) -> list[str]:
        """The options that mount it in the background."""
        keys = [f"--key-file={image.key}"] if image.key else []
        trust = f"--roothash={image.root_hash}"
        return [*mystfuse_command(), "mount", trust, *keys, str(image.path), str(mountpoint)]

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        pid: int | None = None
        try:
            # Always writable: that is the usual way, and a read-only mount must not improve the reading.
            start = time.perf_counter()
            run(*self.command(image, mountpoint), ordinary=ordinary)
            self.seconds_to_mount = time.perf_counter() - start
            pid = daemon_of(mountpoint)
            yield pid
        finally:
            end_mystfuse(mountpoint)
            if pid is not None:
                # As the first process of a namespace we are its parent.
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)


class WithoutAttributes(Mystfuse):
    """The same without extended attributes: the kernel does not ask for ``security.capability`` before each write."""

    name = "noxattr"

    def command(self, image: Image, mountpoint: Path) -> list[str]:
        command = super().command(image, mountpoint)
        return [*command[:-2], "-o", "noxattr", *command[-2:]]


class OnExt4(Mystfuse):
    """The same contents in an ext4 file system."""

    name = "ext4"

    def variant(self, image: Image) -> Image:
        assert image.ext4 is not None
        return image.ext4


class Fuse2fs(Peer):
    name = "fuse2fs"

    def missing(self) -> str:
        return "" if is_installed("fuse2fs") else "not installed"

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        with _own_copy(image, self.scratch, writable) as path:
            command: list[StrPath] = ["fuse2fs", "-f", *([] if writable else ["-o", "ro"]), path, mountpoint]
            with served(as_user(command, ordinary), mountpoint) as pid:
                yield pid


class Kernel(Peer):
    """The kernel's own ext2, through a loop device."""

    name = "kernel"

    def missing(self) -> str:
        if os.getuid():
            return "needs root"
        return "" if Path("/dev/loop-control").exists() else "no loop devices"

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        with _own_copy(image, self.scratch, writable) as path:
            run("mount", "-t", "ext2", "-o", f"loop,noatime,{'rw' if writable else 'ro'}", path, mountpoint)
            try:
                yield None
            finally:
                unmount(mountpoint)


class Floor(Peer):
    """Empty operations: the best that pyfuse3 allows."""

    name = "floor"
    keeps_writes = False

    def missing(self) -> str:
        return ""

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        command: list[StrPath] = [sys.executable, "-m", "benchmarks.floor", image.contents, mountpoint]
        with served(as_user(command, ordinary), mountpoint) as pid:
            if not ordinary:
                set_read_ahead(mountpoint, self.read_ahead)
            yield pid


PEERS: tuple[type[Peer], ...] = (Mystfuse, WithoutAttributes, OnExt4, Fuse2fs, Kernel, Floor, Limit)


@contextmanager
def _own_copy(image: Image, scratch: Path, is_wanted: bool) -> Iterator[Path]:
    """The image itself, or a copy for a peer that writes into it."""
    if not is_wanted:
        yield image.path
        return
    directory = Path(tempfile.mkdtemp(prefix="copy-", dir=scratch))
    try:
        copy = directory / "image"
        run("cp", "--sparse=always", image.path, copy)
        yield copy
    finally:
        remove_tree(directory)


def daemon_of(mountpoint: Path) -> int | None:
    mount = find_mount(str(mountpoint))
    descriptor = find_daemon(mount) if mount else None
    if descriptor is None:
        return None
    try:
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
    finally:
        os.close(descriptor)
    return None


def end_mystfuse(mountpoint: Path) -> None:
    if find_mount(str(mountpoint)) is None:
        return
    try:
        unmount_and_wait(str(mountpoint), lazy=False, timeout=SECONDS_TO_END)
    except MountError:
        unmount_and_wait(str(mountpoint), lazy=True, timeout=SECONDS_TO_END)

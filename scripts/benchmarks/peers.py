"""The contenders: mystfuse, and the file systems to which it is compared. A peer mounts an image, for a block."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from removal import remove_tree

from benchmarks.data import Image
from benchmarks.tools import (
    BenchmarkError,
    StrPath,
    as_user,
    is_installed,
    mystfuse_command,
    run,
    user_ids,
)
from mystfuse.errors import MountError
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount_and_wait

SECONDS_TO_MOUNT = 30
SECONDS_TO_END = 60


@dataclass(frozen=True, slots=True)
class Mounted:
    path: Path
    pid: int | None
    """The process that serves the mount, if there is one."""

    def processes(self) -> list[int]:
        """That process, and all that it has started."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # proc_pid_stat(5): behind the name, which may hold blanks, come the state and the parent.
                parents[int(stat.parent.name)] = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        found = [self.pid] if self.pid is not None else []
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def memory(self, field: str) -> float:
        """The sum of VmRSS or VmHWM of those processes, MiB. What two of them share counts twice."""
        return sum(_memory_of(pid, field) for pid in self.processes())

    @property
    def read_ahead(self) -> int:
        """The kernel's read-ahead on the mount in KiB."""
        return int(_read_ahead_file(self.path).read_text())


def _memory_of(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise BenchmarkError(f"/proc/{pid}/status has no {field}")


class Peer(ABC):
    """A program that mounts images.

    Args:
        scratch: a directory for mountpoints and for copies of images.
    """

    name: str
    keeps_writes = True

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    @abstractmethod
    def missing(self) -> str:
        """Why this machine does not measure it; "" if it does."""

    @abstractmethod
    def _mount(
        self, image: Image, mountpoint: Path, writable: bool, ordinary: bool
    ) -> AbstractContextManager[int | None]:
        """A context manager that mounts and unmounts, and yields the serving process' number."""

    @contextmanager
    def mount(self, image: Image, *, writable: bool = False, ordinary: bool = False) -> Iterator[Mounted]:
        """Mount ``image``; it never changes.

        Args:
            writable: for writing too.
            ordinary: as an ordinary user, if we are root.

        Raises:
            BenchmarkError: mounting or unmounting failed.
        """
        mountpoint = Path(tempfile.mkdtemp(prefix="mount-", dir=self.scratch))
        if ordinary and os.getuid() == 0:
            os.chown(mountpoint, *user_ids())
        try:
            with self._mount(image, mountpoint, writable, ordinary) as pid:
                yield Mounted(mountpoint, pid)
        finally:
            # Fails, as it should, when a mount is left there.
            mountpoint.rmdir()


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
            pid = _daemon_of(mountpoint)
            yield pid
        finally:
            _end_mystfuse(mountpoint)
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


class Fuse2fs(Peer):
    name = "fuse2fs"

    def missing(self) -> str:
        return "" if is_installed("fuse2fs") else "not installed"

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        with _own_copy(image, self.scratch, writable) as path:
            command: list[StrPath] = ["fuse2fs", "-f", *([] if writable else ["-o", "ro"]), path, mountpoint]
            with _served(as_user(command, ordinary), mountpoint) as pid:
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
                _unmount(mountpoint)


class Floor(Peer):
    """Empty operations: the best that pyfuse3 allows."""

    name = "floor"
    keeps_writes = False
    read_ahead = 128
    """KiB, like mystfuse's."""

    def missing(self) -> str:
        return ""

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        command: list[StrPath] = [sys.executable, "-m", "benchmarks.floor", image.contents, mountpoint]
        with _served(as_user(command, ordinary), mountpoint) as pid:
            if not ordinary and os.getuid() == 0:
                # The kernel applies INIT's answer first, which sets it too.
                os.statvfs(mountpoint)
                _read_ahead_file(mountpoint).write_text(str(self.read_ahead))
            yield pid


PEERS: tuple[type[Peer], ...] = (Mystfuse, WithoutAttributes, Fuse2fs, Kernel, Floor)


def _read_ahead_file(mountpoint: Path) -> Path:
    device = os.stat(mountpoint).st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


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


@contextmanager
def _served(command: Sequence[StrPath], mountpoint: Path) -> Iterator[int]:
    """A mount by a program that stays in the foreground; yields the program's number."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [os.fspath(word) for word in command], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            deadline = time.monotonic() + SECONDS_TO_MOUNT
            while not _is_mounted(mountpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words = said.read().decode(errors="replace").split()
                    raise BenchmarkError(f"{Path(command[0]).name} did not mount: {' '.join(words)[-200:]}")
                time.sleep(0.005)
            yield process.pid
        finally:
            if _is_mounted(mountpoint):
                _unmount(mountpoint)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_mounted(mountpoint: Path) -> bool:
    """By the mount table, without a request to the mount itself."""
    wanted = str(mountpoint).encode()
    return any(line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1])


def _unmount(mountpoint: Path) -> None:
    """Unmount; waits for a program that has just opened something, and then unmounts all the same."""
    command = ["umount"] if os.getuid() == 0 else ["fusermount3", "-u"]
    for _ in range(50):
        if subprocess.run([*command, str(mountpoint)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    lazy = ["-l"] if os.getuid() == 0 else ["-z"]
    run(*command, *lazy, mountpoint)


def _daemon_of(mountpoint: Path) -> int | None:
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


def _end_mystfuse(mountpoint: Path) -> None:
    if find_mount(str(mountpoint)) is None:
        return
    try:
        unmount_and_wait(str(mountpoint), lazy=False, timeout=SECONDS_TO_END)
    except MountError:
        unmount_and_wait(str(mountpoint), lazy=True, timeout=SECONDS_TO_END)

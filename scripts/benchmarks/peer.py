"""What a contender that mounts images is, and means to make one."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import Image
from benchmarks.tools import BenchmarkError, StrPath, run, user_ids

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
    read_ahead = 128
    """KiB, of mystfuse's mounts."""

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

    def variant(self, image: Image) -> Image:
        """The image that it mounts in place of ``image``."""
        return image

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


def _read_ahead_file(mountpoint: Path) -> Path:
    device = os.stat(mountpoint).st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


def set_read_ahead(mountpoint: Path, size: int) -> None:
    """Have the kernel read ``size`` KiB ahead on a mount of FUSE; only root can."""
    if os.getuid() == 0:
        # The kernel applies INIT's answer first, which sets it too.
        os.statvfs(mountpoint)
        _read_ahead_file(mountpoint).write_text(str(size))


@contextmanager
def served(command: Sequence[StrPath], mountpoint: Path) -> Iterator[int]:
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
                unmount(mountpoint)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_mounted(mountpoint: Path) -> bool:
    """By the mount table, without a request to the mount itself."""
    wanted = str(mountpoint).encode()
    return any(line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1])


def unmount(mountpoint: Path) -> None:
    """Unmount; waits for a program that has just opened something, and then unmounts all the same."""
    command = ["umount"] if os.getuid() == 0 else ["fusermount3", "-u"]
    for _ in range(50):
        if subprocess.run([*command, str(mountpoint)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    lazy = ["-l"] if os.getuid() == 0 else ["-z"]
    run(*command, *lazy, mountpoint)

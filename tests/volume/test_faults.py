"""Storage that lies: each read gives the right bytes or an error, in time; and everything is right again when storage
behaves.

``MYSTFUSE_FAULT_SCHEDULES`` is how many schedules are run below FUSE, ``MYSTFUSE_FAULT_MOUNTS`` how many under a real
mount; each begins with the next seed.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import random
import re
import resource
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.devices import crypt
from mystfuse.errors import CorruptFilesystem, IntegrityError
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.volume.volume import Volume
from tests.support.commands import SBIN, mystfuse, run
from tests.support.ext2_editor import Editor, MemoryDevice, make_image
from tests.support.fault_schedules import KINDS, ROOT_INO, Schedule, Subject, Tally, make_subject
from tests.support.faulty_source import GRAIN, Liar
from tests.support.images import PROJECT
from tests.support.mounts import clear_mount

SCHEDULES = int(os.environ.get("MYSTFUSE_FAULT_SCHEDULES", "240"))
MOUNTS = int(os.environ.get("MYSTFUSE_FAULT_MOUNTS", "8"))
IO_TIMEOUT = 1
"""Seconds that mounts run."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return {kind: make_subject(kind, tmp_path_factory.mktemp("subject")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_lying_storage_costs_errors_and_nothing_else(
    kind: str, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The schedule's clock jumps while a thread decrypts, which takes long in Python.
    monkeypatch.setattr(crypt, "_PATIENCE", math.inf)
    tally = Tally()
    first = [*KINDS].index(kind) * 1_000_000
    count = SCHEDULES // len(KINDS)
    before = 0
    for seed in range(first, first + count):
        schedule = Schedule(subjects[kind], seed)
        try:
            schedule.run()
        except BaseException:
            print("seed", seed, flush=True)
            raise
        tally.add(schedule.tally)
        if seed == first + count // 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{kind}: {count} schedules, {grown:.0f} MiB more after the first quarter, {tally}")
    assert tally.right > count and sum(tally.errors.values()) > count
    assert grown < 64


# Under a real mount


class HostileServer:
    """A process that serves an image from storage that lies; see ``hostile_storage``."""

    def __init__(self, subject: Subject, directory: Path) -> None:
        self._mountpoint = directory / "storage"
        self._mountpoint.mkdir()
        stale = subject.path.with_name("2.img")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hostile_storage", subject.path, stale, self._mountpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
            env={**os.environ, "PATH": SBIN},
        )  # fmt: skip
        self.image = self._mountpoint / "image"
        self._expect("ready")
        # The server says so before it answers the kernel's INIT.
        assert self.image.stat().st_size == len(subject.content)

    def lie(self, seed: int, rate: float, hangs: int) -> None:
        self._order(f"lie {seed} {rate} {hangs}")

    def behave(self) -> None:
        self._order("behave")

    def close(self) -> None:
        self._process.communicate()
        run("umount", "-l", self._mountpoint, check=False)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == word + "\n"


class ChangingFile:
    """An image in an ordinary file whose pages another program writes: they change between and within reads, in the
    page cache, where RWF_NOWAIT finds them; and its size changes."""

    def __init__(self, subject: Subject, directory: Path) -> None:
        self.image = directory / "changing.img"
        self._content = subject.content
        self._stale = subject.stale
        self.image.write_bytes(self._content)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def lie(self, seed: int, rate: float, hangs: int) -> None:
        self._end.clear()
        self._thread = threading.Thread(target=self._change, args=(Liar(self._content, self._stale, seed, 1.0), rate))
        self._thread.start()

    def behave(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self.image.open("r+b") as file:
            file.write(self._content)

    def close(self) -> None:
        self.behave()

    def _change(self, liar: Liar, rate: float) -> None:
        fd = os.open(self.image, os.O_WRONLY)
        try:
            while not self._end.is_set():
                length = int(liar.throw(1, 64)) * 4096
                offset = int(liar.throw(0, len(self._content) - length)) // GRAIN * GRAIN
                kind = liar.choose("truncated")
                if kind == "truncated" and liar.throw(0, 1) < 0.1:
                    os.ftruncate(fd, offset)
                    os.pwrite(fd, self._content[offset:], offset)
                else:
                    os.pwrite(fd, liar.spoil(kind, offset, length), offset)
                    if liar.throw(0, 1) > rate:
                        os.pwrite(fd, self._content[offset : offset + length], offset)
                self._end.wait(liar.throw(0, 0.004))
        finally:
            os.close(fd)


class Reader(threading.Thread):
    """Runs operations on a mount, and records the outcomes."""

    def __init__(self, root: Path, subject: Subject, seed: object, number: int) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
        self.right = 0
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self._root = root
        self._subject = subject
        self._dice = random.Random(repr((seed, number)))
        self._number = number
        self._own: bytes | None = None
        """The contents of a file that only this thread writes to; None if it does not exist."""

    def run(self) -> None:
        operations = (self._read, self._read, self._read, self._list, self._status, self._links, self._write)
        for _ in range(10):
            operation = self._dice.choice(operations)
            began = time.monotonic()
            try:
                operation()
                self.right += 1
            except OSError as error:
                name = errno.errorcode[error.errno or 0]
                self.errors[name] += 1
                # Every bitmap failed to read.
                if name != "EIO" and not (name == "ENOSPC" and operation == self._write):
                    self.wrong.append(f"{operation.__name__}: {error}")
            except AssertionError as error:
                self.wrong.append(f"{operation.__name__}: {error}")
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _read(self) -> None:
        path = self._dice.choice(("a/file2", "a/file4", "a/file5", "a/file6", "sparse", f"many/007 {'x' * 60}"))
        content = (self._subject.source / path).read_bytes()
        offset = self._dice.randrange(len(content))
        length = self._dice.choice((1, 4096, 200_000))
        fd = os.open(self._root / path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            end = min(offset + length, len(content))
            while offset < end:
                # The kernel returns the pages in front of one that it failed to get; the next read gives its error.
                part = os.pread(fd, end - offset, offset)
                assert part and part == content[offset : offset + len(part)], (path, offset, end)
                offset += len(part)
        finally:
            os.close(fd)

    def _list(self) -> None:
        path = self._dice.choice(("a", "many"))
        assert set(os.listdir(self._root / path)) == set(os.listdir(self._subject.source / path)), path

    def _status(self) -> None:
        path = self._dice.choice(sorted(self._subject.inos))
        got, want = (self._root / path).lstat(), (self._subject.source / path).lstat()
        assert (got.st_mode, got.st_nlink, got.st_mtime) == (want.st_mode, want.st_nlink, want.st_mtime), path
        if stat.S_ISREG(want.st_mode):
            assert got.st_size == want.st_size, path
        assert not (self._root / "many/none such").exists()

    def _links(self) -> None:
        for link in ("fast", "slow"):
            assert os.readlink(self._root / link) == os.readlink(self._subject.source / link), link
        source, path = self._subject.source / "a/file1", self._root / "a/file1"
        assert os.getxattr(path, "user.note") == os.getxattr(source, "user.note")

    def _write(self) -> None:
        path = self._root / f"own{self._number}"
        data = self._dice.randbytes(self._dice.choice((10, 5000, 40_000)))
        if self._own is not None:
            assert path.read_bytes() == self._own
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._own = self._own or b""
        try:
            written = os.pwrite(fd, data, 0)
            self._own = data[:written] + self._own[written:]
        finally:
            os.close(fd)

    def check_everything(self) -> None:
        """Storage behaves."""
        for path in sorted(self._subject.inos):
            source, target = self._subject.source / path, self._root / path
            assert target.lstat().st_mode == source.lstat().st_mode
            if target.is_dir():
                assert set(os.listdir(target)) == set(os.listdir(source))
            elif not target.is_symlink():
                assert target.read_bytes() == source.read_bytes(), path
        self._links()
        if self._own is not None:
            assert (self._root / f"own{self._number}").read_bytes() == self._own


@contextmanager
def hostile(subject: Subject, directory: Path, is_server: bool) -> Iterator[HostileServer | ChangingFile]:
    storage = HostileServer(subject, directory) if is_server else ChangingFile(subject, directory)
    try:
        yield storage
    finally:
        storage.close()


@pytest.mark.parametrize("kind", ["plain", "plain, small blocks, SHA-512", "LUKS1", "LUKS2, SHA-512"])
def test_lying_storage_costs_a_mount_errors_and_nothing_else(
    kind: str, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    subject, mountpoint, log = subjects[kind], tmp_path / "mount", tmp_path / "log"
    right, errors, refused, slowest, most = 0, Counter[str](), 0, 0.0, 0
    mountpoint.mkdir()
    first = [*KINDS].index(kind) * 1_000_000
    for is_server in (True, False):
        directory = tmp_path / f"{is_server}"
        directory.mkdir()
        with hostile(subject, directory, is_server) as storage:
            for seed in range(first + is_server, first + MOUNTS // 4, 2):
                dice = random.Random(seed)
                rate, hangs = dice.choice((0.02, 0.1, 0.3, 0.6)), dice.choice((0, 0, 1, 3))
                is_late = dice.random() < 0.8
                log.unlink(missing_ok=True)
                if not is_late:
                    storage.lie(seed, rate, 0)
                trust = [f"--roothash={subject.root_hash.hex()}", f"--hash-offset={subject.hash_offset}"]
                mount = mystfuse("mount", *trust, *subject.key_options, f"--io-timeout={IO_TIMEOUT}",
                                 f"--log-file={log}", storage.image, mountpoint, timeout=60)  # fmt: skip
                try:
                    if mount.returncode:
                        assert not is_late and mount.returncode in (1, 4, 6), (seed, mount)
                        assert mount.stderr.startswith("mystfuse: ") and mount.stderr.count("\n") == 1, (seed, mount)
                        refused += 1
                        continue
                    if is_late:
                        storage.lie(seed, rate, hangs)
                    readers = [Reader(mountpoint, subject, seed, number) for number in range(dice.choice((1, 2, 4)))]
                    for reader in readers:
                        reader.start()
                    for reader in readers:
                        reader.join(200)
                        assert not reader.is_alive(), (seed, "hung")
                        assert not reader.wrong, (seed, reader.wrong)
                        right, slowest = right + reader.right, max(slowest, reader.slowest)
                        errors += reader.errors
                    assert slowest <= IO_TIMEOUT + 5, seed
                    storage.behave()
                    if is_late:
                        for reader in readers:
                            reader.check_everything()
                    found = find_mount(str(mountpoint))
                    assert found is not None
                    daemon = find_daemon(found)
                    assert daemon is not None, seed
                    most = max(most, peak_memory(daemon))
                    os.close(daemon)
                finally:
                    storage.behave()
                    clear_mount(mountpoint)
                    said = log.read_text() if log.exists() else ""
                    assert "Traceback" not in said and "internal error" not in said, (seed, said)
    print(f"\n{kind}: {right} right, {errors}, {refused} refused, slowest {slowest:.1f} s, at most {most} KiB")
    assert right and most < 200 << 10


def peak_memory(daemon: int) -> int:
    """The most KiB in memory that a process (by its pidfd) has used."""
    found = re.search(r"^Pid:\s+(\d+)", Path(f"/proc/self/fdinfo/{daemon}").read_text(), re.MULTILINE)
    assert found
    peak = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{found[1]}/status").read_text(), re.MULTILINE)
    assert peak, "the daemon has ended"
    return int(peak[1])


# Directories whose blocks failed to read


async def test_directory_blocks_that_could_not_be_had_once_are_read_again(tmp_path: Path) -> None:
    """A regression: a lookup remembered the damage until the end of the mount."""
    for number in range(100):
        (tmp_path / f"tree/{number:03} {'x' * 60}").mkdir(parents=True)
    editor = Editor(make_image(tmp_path / "image", "-b", "1024", tree=tmp_path / "tree").read_bytes())
    start = editor.block(ROOT_INO, 4)
    device = MemoryDevice(editor.data, [range(start, start + 1024)])
    volume = await Volume.open(device, 1 << 20)
    assert await volume.lookup(ROOT_INO, b"lost+found")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            await volume.lookup(ROOT_INO, b"none")
    device.damaged = ()
    volume.cache._blocks.clear()
    assert await volume.lookup(ROOT_INO, b"none") is None
    for number in range(100):
        assert await volume.lookup(ROOT_INO, b"%03d %s" % (number, b"x" * 60))


@pytest.mark.parametrize("is_broken", [False, True])
async def test_looking_in_vain_into_a_damaged_directory_takes_no_memory(tmp_path: Path, is_broken: bool) -> None:
    """A regression: the cached error grew by all stack frames each time it was raised."""
    for number in range(100):
        (tmp_path / f"tree/{number:03} {'x' * 60}").mkdir(parents=True)
    editor = Editor(make_image(tmp_path / "image", "-b", "1024", tree=tmp_path / "tree").read_bytes())
    start = editor.block(ROOT_INO, 4)
    if is_broken:
        editor.put("<H", start + 4, 3)
    volume = await Volume.open(MemoryDevice(editor.data, [] if is_broken else [range(start, start + 1024)]))

    async def look(count: int) -> None:
        for number in range(count):
            with pytest.raises((CorruptFilesystem, IntegrityError)):
                await volume.lookup(ROOT_INO, b"none %d" % number)

    await look(50)
    tracemalloc.start()
    try:
        await look(50)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await look(500)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()

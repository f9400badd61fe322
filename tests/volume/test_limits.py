"""Bounds: memory, descriptors and the time that one request may hold up the others, whatever an image or a user does.

``MYSTFUSE_LIMIT_NAMES`` is how many names the large directory has, ``MYSTFUSE_LIMIT_HANDLES`` how many files are open
at once: a million, and 10,000, by hand.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.devices.reader import COLD_READS, MAX_ABANDONED, ImageReader
from mystfuse.devices.source import FileSource
from mystfuse.errors import ImageReadError, MountError, StorageTimeout
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.lookup_counts import LookupCounts
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting import session
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system import threads
from mystfuse.system.workers import Workers
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run, wait_until
from tests.support.ext2_editor import ROOT, FileDevice, make_image
from tests.support.huge_images import FIRST_INO, make_crowded_image, name_of
from tests.support.mounts import clear_mount
from tests.support.processes import is_running

NAMES = int(os.environ.get("MYSTFUSE_LIMIT_NAMES", "60000"))
HANDLES = int(os.environ.get("MYSTFUSE_LIMIT_HANDLES", "300"))
LONGEST_STEP = 0.5
"""Seconds of processor time that the event loop may be held up; a tenth of it is usual."""
CALLER = Caller(0, 0)


class Steps(trio.abc.Instrument):
    """Measures how long tasks keep the event loop to themselves, in seconds of processor time."""

    longest = 0.0
    _began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crowded_image(tmp_path_factory.mktemp("crowded") / "image", NAMES)


def in_steps(work: Callable[[], Awaitable[None]]) -> float:
    """Run something; how long its longest step took."""
    steps = Steps()

    async def main() -> None:
        await work()

    trio.run(main, instruments=[steps])
    return steps.longest


def daemon_of(mountpoint: Path) -> int:
    """The process that serves a mount."""
    mount = find_mount(str(mountpoint))
    assert mount is not None
    daemon = find_daemon(mount)
    assert daemon is not None
    found = re.search(r"^Pid:\s+(\d+)", Path(f"/proc/self/fdinfo/{daemon}").read_text(), re.MULTILINE)
    os.close(daemon)
    assert found
    return int(found[1])


def limit(pid: int, name: str, soft: int, hard: int) -> None:
    """Set a resource limit of a daemon, ``name`` as prlimit(1) calls it: as its user, since for another's root needs
    CAP_SYS_RESOURCE."""
    user, group = os.stat(f"/proc/{pid}").st_uid, os.stat(f"/proc/{pid}").st_gid
    words = [str(value) if value >= 0 else "unlimited" for value in (soft, hard)]
    run("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "prlimit", f"--pid={pid}",
        f"--{name}={words[0]}:{words[1]}")  # fmt: skip


def memory(pid: int, field: str) -> int:
    """Bytes, by a field of /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


# Time


def test_a_huge_directory_holds_nobody_up(crowded: Path) -> None:
    """Found once: the names were sorted in one step, a second for a million."""

    async def work() -> None:
        volume = await Volume.open(FileDevice(crowded), 64 << 20)
        for number in (NAMES - 1, 0, NAMES // 2):
            inode = await volume.lookup(FIRST_INO, name_of(number))
            await trio.lowlevel.checkpoint()
            assert inode is not None and inode.ino == FIRST_INO + 1 + number
        assert await volume.lookup(FIRST_INO, b"none") is None
        for number in range(200):
            await volume.create(FIRST_INO, b"new%d" % number, 0o100644, CALLER)
            assert await volume.lookup(FIRST_INO, b"new%d" % number)
            await trio.lowlevel.checkpoint()
        index = volume._filesystem.name_indexes._indexes[FIRST_INO]
        size = sum(keys.itemsize * len(keys) for keys in index._keys) + len(index._room)
        assert size < 9 * len(index) and len(index) == NAMES + 200
        names, offset, end = 0, 0, (await volume.inode(FIRST_INO)).size
        while offset < end:
            entries, offset = await volume.entries(FIRST_INO, offset, 512)
            names += len(entries)
            await trio.lowlevel.checkpoint()
        assert names == NAMES + 200

    longest = in_steps(work)
    print(f"\nlongest step {longest * 1000:.0f} ms")
    assert longest < LONGEST_STEP


def test_a_huge_sparse_file_holds_nobody_up(tmp_path: Path) -> None:
    """Blocks at the ends of all levels of indirection, looked for, cut off and released."""
    path = make_image(tmp_path / "image", "-b", "4096", size="32M")

    async def work() -> None:
        volume = await Volume.open(FileDevice(path), 64 << 20)
        inode = await volume.create(ROOT, b"sparse", 0o100644, CALLER)
        end = 2_196_000_000_000
        for offset in (0, 48 << 10, 4 << 20, 5 << 30, 1 << 40, end - 1):
            assert await volume.write(inode.ino, offset, b"x", CALLER) == 1
        assert bytes(await volume.read(inode.ino, end - 1, 10)) == b"x"
        assert not any(await volume.read(inode.ino, (1 << 40) + 4096, 1 << 20))
        data = position = 0
        while position < end:
            stretch = await volume.stretch(inode.ino, position)
            data += stretch.is_data
            position += stretch.length
        assert data == 6
        await volume.set_attributes(inode.ino, AttributeChanges(size=1), CALLER)
        await volume.set_attributes(inode.ino, AttributeChanges(size=end), CALLER)
        await volume.remove(ROOT, b"sparse", False)
        await volume.release(inode.ino)
        assert not volume.orphans

    longest = in_steps(work)
    print(f"\nlongest step {longest * 1000:.0f} ms")
    assert longest < LONGEST_STEP


async def test_a_rename_far_below_lets_others_have_their_turns(tmp_path: Path) -> None:
    volume = await Volume.open(FileDevice(make_image(tmp_path / "image", "-b", "1024", size="8M")), 64 << 20)
    parent = ROOT
    for _ in range(1000):
        parent = (await volume.create(parent, b"d", 0o40755, CALLER)).ino
    await volume.create(parent, b"file", 0o100644, CALLER)
    turns = 0

    async def count(done: trio.Event) -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(count, done)
        await volume.rename(parent, b"file", ROOT, b"file", 0, CALLER)
        done.set()
    # One for every hundred directories; whether before the first or behind the last, the order of tasks decides.
    assert turns >= 9
    assert await volume.lookup(ROOT, b"file")


async def test_a_directory_that_grows_large_gets_the_index_of_a_large_one(tmp_path: Path) -> None:
    """Found once: one array for ever, sorted as a whole again and again."""
    volume = await Volume.open(FileDevice(make_image(tmp_path / "image", "-b", "1024", size="8M")), 64 << 20)
    directory = (await volume.create(ROOT, b"d", 0o40755, CALLER)).ino
    for number in range(300):
        await volume.create(directory, b"%0250d" % number, 0o100644, CALLER)
    assert (await volume.inode(directory)).size > 80 << 10
    for number in range(300):
        assert await volume.lookup(directory, b"%0250d" % number)
    assert volume._filesystem.name_indexes._indexes[directory].bits > 0


# Memory


async def test_inodes_as_large_as_blocks_take_no_more_memory_than_others(tmp_path: Path) -> None:
    """Found once: what was remembered was bounded by their number alone, and one may have 32 KiB."""
    (tmp_path / "tree").mkdir()
    for number in range(300):
        (tmp_path / f"tree/{number}").write_bytes(b"x")
    path = make_image(tmp_path / "image", "-b", "65536", "-I", "32768", "-N", "700", size="64M", tree=tmp_path / "tree")
    volume = await Volume.open(FileDevice(path))
    assert volume.superblock.s_inode_size == 32768
    for number in range(300):
        inode = await volume.lookup(ROOT, b"%d" % number)
        assert inode is not None and len(inode.extra) > 32000
        assert bytes(await volume.read(inode.ino, 0, 10)) == b"x"
    parsed = sum(len(raw) + len(inode.extra) for raw, inode in volume._filesystem.inode_table._parsed.values())
    mapped = sum(len(inode.extra) for inode in volume._files._maps._inodes.values())
    assert 0 < parsed <= 4 << 20 and 0 < mapped <= 8 << 20


def test_counts_of_scattered_inodes_cost_no_more_than_the_kernel_pays() -> None:
    references = LookupCounts()
    tracemalloc.start()
    try:
        for ino in range(1, 2000 * 100_000, 100_000):
            references.known(ino)
        assert tracemalloc.get_traced_memory()[0] < 2000 * 1500
    finally:
        tracemalloc.stop()


class FailingSource(FileSource):
    """A source for whose answers there is no memory, or no thread."""

    failure: BaseException | None = None

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if isinstance(self.failure, OSError):
            raise self.failure
        return False

    def read(self, offset: int, length: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        return super().read(offset, length)


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "no memory")]
)
async def test_the_reader_goes_on_when_there_was_no_memory(failure: Exception, tmp_path: Path) -> None:
    """Found once: the task ended, and with it the mount."""
    (tmp_path / "image").write_bytes(bytes(range(256)))
    source = FailingSource(tmp_path / "image")
    reader = ImageReader(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        source.failure = failure
        with pytest.raises(ImageReadError):
            await reader.read([Extent(0, 10)])
        source.failure = None
        assert bytes((await reader.read([Extent(5, 3)]))[0]) == b"\5\6\7"
        nursery.cancel_scope.cancel()
    source.close()


@pytest.mark.parametrize("begins", [False, True])
async def test_a_thread_that_never_begins_costs_a_time_out(
    begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found once: threading.Thread.start waits for a thread to begin, and one without memory does not: the loop with
    it, for ever."""
    (tmp_path / "image").write_bytes(bytes(range(256)))
    source = FailingSource(tmp_path / "image")
    reader = ImageReader(source, io_timeout=0.05)
    late: list[Callable[[], object]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        with monkeypatch.context() as patch:
            patch.setattr("_thread.start_new_thread", lambda work, arguments: late.append(work))
            for _ in range(MAX_ABANDONED + COLD_READS + 3):
                with trio.fail_after(10), pytest.raises(StorageTimeout):
                    await reader.read([Extent(0, 10)])
        if begins:
            for work in late:
                work()
        assert not reader._threads
        assert bytes((await reader.read([Extent(5, 3)]))[0]) == b"\5\6\7"
        nursery.cancel_scope.cancel()
    source.close()


def asking_session(ask: Callable[[], bool]) -> session.Session:
    """A session that asks its keeper by ``ask``."""
    nothing: Any = None
    keeper: Any = SimpleNamespace(unmount=lambda lazy: ask())
    options = MountOptions(mountpoint="/mnt", fsname="none")
    return session.Session(nothing, nothing, options, keeper, nothing, nothing, nothing)


async def test_a_keeper_is_not_waited_for_when_there_is_no_thread_to_ask_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found once: a mount without memory took a minute to end, which is what a keeper gets to answer."""
    monkeypatch.setattr("_thread.start_new_thread", lambda work, arguments: None)
    with pytest.raises(MountError, match="cannot unmount: no thread"):
        await asking_session(lambda: True)._unmount_by_keeper()
    assert trio.current_time() < 5


async def test_a_keeper_that_is_being_asked_gets_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_THREAD_START", 0.5)
    assert await asking_session(lambda: not time.sleep(0.7))._unmount_by_keeper()


async def test_a_thread_without_memory_for_what_came_of_its_work_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], object]) -> None:
        raise MemoryError

    monkeypatch.setattr(threads, "outcome", SimpleNamespace(capture=refuse, Error=outcome.Error))
    with trio.fail_after(5), pytest.raises(MemoryError):
        await threads.call_in_thread(lambda: None)


class ForgetfulToken:
    """A trio token that finds no memory the first time, and then says the same thing twice."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._calls = 0

    def run_sync_soon(self, *arguments: Any) -> None:
        self._calls += 1
        if self._calls <= 2:
            if self._calls == 2:
                self._token.run_sync_soon(*arguments)
            raise MemoryError
        self._token.run_sync_soon(*arguments)


async def test_a_worker_without_memory_for_its_result_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found once: its thread ended, and the caller waited for ever, beyond cancelling."""
    workers = Workers(1)
    token: Any = ForgetfulToken()

    def refuse(work: Callable[[], object]) -> None:
        raise MemoryError

    try:
        with trio.fail_after(5):
            with monkeypatch.context() as patch:
                patch.setattr(trio.lowlevel, "current_trio_token", lambda: token)
                assert await workers.run(lambda: 5) == 5
            with monkeypatch.context() as patch:
                patch.setattr(threads, "outcome", SimpleNamespace(capture=refuse, Error=outcome.Error))
                ended = trio.Event()
                workers.submit(lambda: None, ended.set)
                await ended.wait()
            assert await workers.run(lambda: 6) == 6
        assert token._calls == 3
    finally:
        workers.close()


@pytest.mark.parametrize("begins", [False, True])
async def test_without_a_thread_the_work_is_done_all_the_same(begins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None can be started, or the one that was does not begin until later: then it serves nothing."""
    late: list[Callable[[], object]] = []

    def start(work: Callable[[], object], arguments: object) -> None:
        if not begins:
            raise RuntimeError("can't start new thread")
        late.append(work)

    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr("mystfuse.system.pool._BEGINNING", 0.01)
    workers = Workers(2)
    assert not workers.threads and await workers.run(lambda: 5) == 5
    assert len(late) == begins
    for work in late:
        # It would wait for the queue.
        work()
    workers.close()


@pytest.mark.parametrize("kind", ["AS", "DATA"])
@pytest.mark.parametrize("room", [0, 6 << 20])
def test_out_of_memory_is_an_error_or_an_orderly_end(
    kind: str, room: int, crowded: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """Whatever fails for want of memory: the request gets an error, or the mount ends and says why in a line."""
    log = tmp_path / "log"
    assert mystfuse("mount", "--insecure", f"--log-file={log}", crowded, mountpoint).returncode == 0
    pid, answers = daemon_of(mountpoint), Counter[str]()
    size = memory(pid, {"AS": "VmSize", "DATA": "VmData"}[kind]) + room
    limit(pid, kind.lower(), size, resource.RLIM_INFINITY)

    def attempt(work: Callable[[], object]) -> bool:
        try:
            work()
            answers["done"] += 1
            return True
        except OSError as error:
            answers[errno.errorcode[error.errno or 0]] += 1
            return False

    content, written = os.urandom(8 << 20), {}

    def use(number: int) -> None:
        new = mountpoint / f"new{number}"
        for step in range(2):
            path = mountpoint / "big" / os.fsdecode(name_of(number * 100 + step))
            attempt(path.stat)
            written[new] = attempt(lambda: new.write_bytes(content))
            attempt(lambda: next(os.scandir(mountpoint / "big")))

    threads = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "hung"
    print(f"\n{answers}")
    ended = {"ENOTCONN", "ECONNABORTED", "ENOENT"}
    assert set(answers) <= {"done", "ENOMEM", "EIO", "ENOSPC"} | ended
    found = find_mount(str(mountpoint))
    if found is None or set(answers) & ended:
        wait_until(lambda: find_mount(str(mountpoint)) is None and not is_running(pid))
        assert re.search(r"ERROR: .*memory", log.read_text(), re.IGNORECASE)
    else:
        limit(pid, kind.lower(), resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        assert (mountpoint / "big" / os.fsdecode(name_of(NAMES - 1))).stat().st_ino == FIRST_INO + NAMES
        # What was done is there, of what failed a beginning at most; and the file system is whole.
        for path, is_done in written.items():
            found_content = path.read_bytes() if path.exists() else b""
            assert content.startswith(found_content) and (not is_done or found_content == content), path
        (mountpoint / "afterwards").write_bytes(content)
        assert (mountpoint / "afterwards").read_bytes() == content
        run("cp", "--sparse=always", mountpoint / ".mystfuse/image", tmp_path / "merged")
        run("e2fsck", "-fn", tmp_path / "merged")
    assert "Traceback" not in log.read_text(), log.read_text()


def test_a_huge_directory_through_a_mount(crowded: Path, mountpoint: Path) -> None:
    assert mystfuse("mount", "--insecure", crowded, mountpoint).returncode == 0
    pid = daemon_of(mountpoint)
    before = memory(pid, "VmRSS")
    assert (mountpoint / "big" / os.fsdecode(name_of(1))).stat().st_ino == FIRST_INO + 2
    count = NAMES if "MYSTFUSE_LIMIT_NAMES" in os.environ else 20_000
    with os.scandir(mountpoint / "big") as entries:
        found = sum(entry.stat(follow_symlinks=False).st_ino > FIRST_INO for entry in islice(entries, count))
    assert found == count
    grown = memory(pid, "VmHWM") - before
    print(f"\n{grown >> 20} MiB more for {NAMES} names")
    # Two caches, an index of 9 bytes a name, counts of 8.
    assert grown < (48 << 20) + 30 * NAMES


# Handles


def test_open_and_removed_files_take_no_descriptors_and_little_memory(tmp_path: Path, mountpoint: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", "-N", str(HANDLES + 100), size="64M")
    assert mystfuse("mount", "--insecure", image, mountpoint).returncode == 0
    pid = daemon_of(mountpoint)
    # What it has open already, and a few more.
    descriptors = os.listdir(f"/proc/{pid}/fd")
    limit(pid, "nofile", most := max(map(int, descriptors)) + 4, most)
    before, free = memory(pid, "VmRSS"), os.statvfs(mountpoint).f_ffree
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(HANDLES + 200, hard), hard))
    handles: list[int] = []
    try:
        for number in range(HANDLES):
            path = mountpoint / f"file{number}"
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT))
            os.write(handles[-1], b"%d" % number)
            path.unlink()
        assert len(os.listdir(f"/proc/{pid}/fd")) <= len(descriptors) + 4
        assert os.statvfs(mountpoint).f_ffree == free - HANDLES
        for number in range(0, HANDLES, 7):
            assert os.pread(handles[number], 100, 0) == b"%d" % number
        grown = memory(pid, "VmHWM") - before
        print(f"\n{grown >> 10} KiB more for {HANDLES} open orphans")
        assert grown < (8 << 20) + HANDLES * 4096
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: os.statvfs(mountpoint).f_ffree == free, 60)
    clear_mount(mountpoint)

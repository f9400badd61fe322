"""Memory and descriptors stay bounded; without memory, a request gets an error or the mount ends cleanly."""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import trio

from mystfuse.devices.device import Extent
from mystfuse.devices.reader import ImageReader
from mystfuse.errors import ImageReadError
from mystfuse.fuse.lookup_counts import OwnLookupCounts
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run, wait_until
from tests.support.ext2_editor import ROOT, FileDevice, make_image
from tests.support.huge_images import FIRST_INO, name_of
from tests.support.limits import NAMES, FailingSource
from tests.support.mounts import clear_mount
from tests.support.processes import is_running

HANDLES = int(os.environ.get("MYSTFUSE_LIMIT_HANDLES", "300"))


def daemon_of(mountpoint: Path) -> int:
    """The daemon."""
    mount = find_mount(str(mountpoint))
    assert mount is not None
    daemon = find_daemon(mount)
    assert daemon is not None
    found = re.search(r"^Pid:\s+(\d+)", Path(f"/proc/self/fdinfo/{daemon}").read_text(), re.MULTILINE)
    os.close(daemon)
    assert found
    return int(found[1])


def limit(pid: int, name: str, soft: int, hard: int) -> None:
    """Set a resource limit of a daemon, ``name`` as prlimit(1) calls it; as the daemon's user, since changing it for
    another user takes CAP_SYS_RESOURCE."""
    user, group = os.stat(f"/proc/{pid}").st_uid, os.stat(f"/proc/{pid}").st_gid
    words = [str(value) if value >= 0 else "unlimited" for value in (soft, hard)]
    run("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "prlimit", f"--pid={pid}",
        f"--{name}={words[0]}:{words[1]}")  # fmt: skip


def memory(pid: int, field: str) -> int:
    """Bytes, by a field of /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


async def test_inodes_as_large_as_blocks_take_no_more_memory_than_others(tmp_path: Path) -> None:
    """A regression: only the number of cached inodes was bounded, and one may take 32 KiB."""
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
    references = OwnLookupCounts()
    tracemalloc.start()
    try:
        for ino in range(1, 2000 * 100_000, 100_000):
            references.known(ino)
        assert tracemalloc.get_traced_memory()[0] < 2000 * 1500
    finally:
        tracemalloc.stop()


@pytest.mark.logs(r"^mystfuse\.devices\.reader")
@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "no memory")]
)
async def test_the_reader_goes_on_when_there_was_no_memory(failure: Exception, tmp_path: Path) -> None:
    """A regression: the task ended, and with it the mount."""
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


@pytest.mark.parametrize("kind", ["AS", "DATA"])
@pytest.mark.parametrize("room", [0, 6 << 20])
def test_out_of_memory_is_an_error_or_an_orderly_end(
    kind: str, room: int, crowded: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """After any failed allocation the request gets an error, or the mount ends and says why in a line."""
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
        # Finished operations are complete, failed ones have left a beginning at most; and the file system is sound.
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


def test_open_and_removed_files_take_no_descriptors_and_little_memory(tmp_path: Path, mountpoint: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", "-N", str(HANDLES + 100), size="64M")
    assert mystfuse("mount", "--insecure", image, mountpoint).returncode == 0
    pid = daemon_of(mountpoint)
    # Its present descriptors, and a few more.
    descriptors = os.listdir(f"/proc/{pid}/fd")
    limit(pid, "nofile", most := max(map(int, descriptors)) + 4, most)
    before, free = memory(pid, "VmRSS"), os.statvfs(mountpoint).f_ffree
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + HANDLES + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(needed, hard)), hard))
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

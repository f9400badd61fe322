"""The overlay's store under real mounts: more data than the memory limit, disks that are full or lie, and endings."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mystfuse as api
from tests.support.commands import USER, assert_one_line, mystfuse, run, wait_until
from tests.support.memory import memory_of
from tests.support.mounts import clear_mount, drop_caches, logged, mounted, status_of
from tests.support.overlay_stores import flip, replay, truncate


@pytest.fixture(scope="module")
def roomy_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with 4 KiB blocks and much free space. Tests must not write to it."""
    image = tmp_path_factory.mktemp("roomy") / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096", image, "96M")
    return image


@pytest.fixture
def store(tmp_path: Path) -> Path:
    directory = tmp_path / "store"
    directory.mkdir()
    return directory


def store_descriptor(pid: int, directory: Path) -> str:
    (found,) = [
        path
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if os.readlink(path).startswith(f"{directory}/") and os.readlink(path).endswith("(deleted)")
    ]
    return str(found)


def write_file(path: Path, megabytes: int, seed: int) -> str:
    """Fill a file with random bytes; returns their digest."""
    chance, digest = random.Random(seed), hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for _ in range(megabytes):
            data = chance.randbytes(1 << 20)
            digest.update(data)
            assert file.write(data) == len(data)
        os.fsync(file.fileno())
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(("block_size", "limit"), [("4096", 4), ("1024", 4)])
def test_four_times_the_memory_limit_is_written_and_read_back(
    block_size: str, limit: int, store: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", block_size, image, "64M")
    options = ("--insecure", f"--overlay-limit={limit}M", f"--overlay-store={store}")
    with mounted(image, tmp_path / "mount", *options) as mountpoint:
        pid = status_of(mountpoint)["pid"]
        before = memory_of(pid, "VmRSS")
        digest = write_file(mountpoint / "file", 4 * limit, 1)
        status = status_of(mountpoint)
        assert status["overlay_used"] <= status["overlay_limit"] == limit << 20
        assert status["overlay_store_used"] > 3 * limit << 20
        drop_caches()
        assert digest_of(mountpoint / "file") == digest
        # Buffers of requests and of the store, and the allocator's overhead, come on top.
        assert memory_of(pid, "VmHWM") < before + (limit << 20) + (40 << 20)
        assert list(store.iterdir()) == []
        run("cp", "--sparse=always", mountpoint / ".mystfuse/image", tmp_path / "merged")
        assert run("e2fsck", "-fn", tmp_path / "merged", check=False).returncode == 0
        assert memory_of(pid, "VmHWM") < before + (limit << 20) + (50 << 20)
        committed = mystfuse("commit", mountpoint, tmp_path / "committed")
        assert committed.returncode == 0, committed.stderr
        (mountpoint / "file").unlink()
        wait_until(lambda: status_of(mountpoint)["overlay_store_used"] < 1 << 20)
        # The disk space itself is given back, not only the slot.
        descriptor = store_descriptor(pid, store)
        wait_until(lambda: os.stat(descriptor).st_blocks * 512 < limit << 20, 30)
        assert write_file(mountpoint / "again", 2 * limit, 2) == digest_of(mountpoint / "again")
    with mounted(tmp_path / "committed", tmp_path / "mount") as mountpoint:
        assert digest_of(mountpoint / "file") == digest


def zero_all(descriptor: int, older: bytes) -> None:
    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)


@pytest.mark.parametrize("tamper", [flip, truncate, zero_all, replay], ids=lambda tamper: tamper.__name__)
def test_a_tampered_store_is_an_error_and_never_wrong_bytes(
    tamper: Callable[[int, bytes], None], roomy_image: Path, store: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--insecure", "--overlay-limit=2M", f"--overlay-store={store}", f"--log-file={log}")
    with mounted(roomy_image, tmp_path / "mount", *options) as mountpoint:
        path, size = mountpoint / "file", 8 << 20
        content = random.Random(5).randbytes(size)
        path.write_bytes(random.Random(4).randbytes(size))
        pid = status_of(mountpoint)["pid"]
        descriptor = os.open(store_descriptor(pid, store), os.O_RDWR)
        older = os.pread(descriptor, 1 << 20, 0)
        path.write_bytes(content)
        (mountpoint / "other").write_text("other\n")
        tamper(descriptor, older)
        os.close(descriptor)
        drop_caches()
        wrong = failed = 0
        with path.open("rb", buffering=0) as file:
            for offset in range(0, size, 4096):
                try:
                    wrong += os.pread(file.fileno(), 4096, offset) != content[offset : offset + 4096]
                except OSError as error:
                    assert error.errno == errno.EIO
                    failed += 1
        assert not wrong
        # One damaged block may have been freed since.
        assert failed or tamper not in (truncate, zero_all)
        if failed:
            said = logged(mountpoint, log)
            assert "overlay store: " in said and "Traceback" not in said
        # The mount goes on.
        assert (mountpoint / "other").read_text() == "other\n"
        (mountpoint / "more").write_bytes(content)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
    try:
        yield directory
    finally:
        run("umount", "-l", directory)


@contextmanager
def small_ext4(directory: Path, size: str) -> Iterator[Path]:
    disk = directory.parent / "disk"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", disk, size)
    run("mount", "-o", "loop", disk, directory)
    try:
        yield directory
    finally:
        run("umount", "-l", directory)


@pytest.mark.parametrize("disk", [small_disk, small_ext4], ids=["tmpfs", "ext4"])
def test_a_full_disk_is_no_space_left_and_everything_stays(
    disk: Callable[[Path, str], Any], roomy_image: Path, store: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--insecure", "--overlay-limit=2M", f"--overlay-store={store}", f"--log-file={log}")
    with disk(store, "12M"), mounted(roomy_image, tmp_path / "mount", *options) as mountpoint:
        contents: dict[str, bytes] = {}
        with pytest.raises(OSError, match="No space left") as caught:
            for number in range(1000):
                content = random.Random(number).randbytes(200_000)
                (mountpoint / f"f{number}").write_bytes(content)
                contents[f"f{number}"] = content
        assert caught.value.errno == errno.ENOSPC
        assert 8 << 20 < sum(map(len, contents.values())) < 15 << 20
        (mountpoint / f"f{len(contents)}").unlink()
        drop_caches()
        for name, content in contents.items():
            assert (mountpoint / name).read_bytes() == content
        # Existing files can be overwritten, and removed, and then there is room again.
        with (mountpoint / "f0").open("r+b", buffering=0) as file:
            file.write(contents["f1"])
        assert (mountpoint / "f0").read_bytes() == contents["f1"]
        for name in list(contents)[:20]:
            (mountpoint / name).unlink()
        (mountpoint / "again").write_bytes(bytes(2 << 20))
        run("cp", "--sparse=always", mountpoint / ".mystfuse/image", tmp_path / "merged")
        assert run("e2fsck", "-fn", tmp_path / "merged", check=False).returncode == 0
        for name in list(contents)[20:]:
            assert (mountpoint / name).read_bytes() == contents[name]
        assert "Traceback" not in logged(mountpoint, log)


def test_a_limit_on_file_sizes_is_no_space_left(roomy_image: Path, store: Path, tmp_path: Path) -> None:
    limited = [sys.executable, "-c",
               "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20));"
               "os.execv(sys.executable, [sys.executable, '-m', 'mystfuse', *sys.argv[1:]])"]  # fmt: skip
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    options = ("--insecure", "--overlay-limit=2M", f"--overlay-store={store}")
    try:
        assert run(*limited, "mount", *options, roomy_image, mountpoint).returncode == 0
        content = random.Random(1).randbytes(6 << 20)
        (mountpoint / "file").write_bytes(content)
        with pytest.raises(OSError, match="No space left"):
            (mountpoint / "more").write_bytes(content)
        drop_caches()
        assert (mountpoint / "file").read_bytes() == content
    finally:
        clear_mount(mountpoint)


def test_nothing_is_left_when_the_daemon_is_killed(roomy_image: Path, store: Path, tmp_path: Path) -> None:
    options = ("--insecure", "--overlay-limit=2M", f"--overlay-store={store}")
    with small_disk(store, "32M"), mounted(roomy_image, tmp_path / "mount", *options) as mountpoint:
        pid = status_of(mountpoint)["pid"]
        (mountpoint / "file").write_bytes(os.urandom(8 << 20))
        assert os.statvfs(store).f_bfree < os.statvfs(store).f_blocks
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or memory_is_gone(pid))
        wait_until(lambda: os.statvfs(store).f_bfree >= os.statvfs(store).f_blocks - 1)
        assert list(store.iterdir()) == []


def memory_is_gone(pid: int) -> bool:
    return "zombie" in Path(f"/proc/{pid}/status").read_text()


def test_unmounting_in_the_middle_of_it_ends_at_once(roomy_image: Path, store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--insecure", "--overlay-limit=2M", f"--overlay-store={store}", f"--log-file={log}")
    with mounted(roomy_image, tmp_path / "mount", *options) as mountpoint:
        writer = subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={mountpoint}/file", "bs=1M", "count=40"], stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: status_of(mountpoint)["overlay_store_used"] > 0)
            result = mystfuse("umount", "--lazy", mountpoint)
            assert result.returncode == 0, result.stderr
        finally:
            writer.kill()
            writer.wait()
    assert "Traceback" not in log.read_text()


def test_many_files_mapped_truncated_and_renamed_with_little_memory(
    roomy_image: Path, store: Path, tmp_path: Path
) -> None:
    import mmap

    with mounted(
        roomy_image, tmp_path / "mount", "--insecure", "--overlay-limit=1M", "-o", f"overlay_store={store}"
    ) as mountpoint:
        contents: dict[str, bytearray] = {}
        chance = random.Random(9)
        for number in range(120):
            name = f"f{number}"
            contents[name] = bytearray(chance.randbytes(chance.randrange(1, 100_000)))
            (mountpoint / name).write_bytes(contents[name])
            other = chance.choice(list(contents))
            content = contents[other]
            if number % 3 == 0 and len(content) > 5000:
                with (mountpoint / other).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                    memory[100:4500] = content[100:4500] = chance.randbytes(4400)
                    memory.flush()
            elif number % 3 == 1:
                size = chance.randrange(150_000)
                os.truncate(mountpoint / other, size)
                contents[other] = content[:size] + bytes(max(size - len(content), 0))
            else:
                (mountpoint / other).rename(mountpoint / f"r{number}")
                contents[f"r{number}"] = contents.pop(other)
        assert status_of(mountpoint)["overlay_store_used"] > 1 << 20
        drop_caches()
        for name, content in contents.items():
            assert (mountpoint / name).read_bytes() == content
        run("cp", "--sparse=always", mountpoint / ".mystfuse/image", tmp_path / "merged")
        assert run("e2fsck", "-fn", tmp_path / "merged", check=False).returncode == 0


@pytest.mark.parametrize("way", ["-o", "--overlay-store"])
def test_an_unsuitable_directory_is_reported_before_mounting(
    way: str, roomy_image: Path, store: Path, tmp_path: Path
) -> None:
    mountpoint, file = tmp_path / "mount", tmp_path / "file"
    mountpoint.mkdir()
    file.touch()

    def attempt(directory: Path | str) -> subprocess.CompletedProcess[str]:
        option = [f"--overlay-store={directory}"] if way != "-o" else ["-o", f"overlay_store={directory}"]
        return mystfuse("mount", "--roothash=" + "0" * 64, *option, roomy_image, mountpoint, cwd=tmp_path)

    assert_one_line(attempt("missing"), 2, "--overlay-store missing: no such directory")
    assert_one_line(attempt(file), 2, "not a directory")
    assert_one_line(attempt(""), 2, "it is empty")
    assert_one_line(attempt("/proc"), 1, "nothing can be written there")
    with small_disk(store, "8k"):
        (store / "all").write_bytes(bytes(8192))
        assert_one_line(attempt(store), 1, "No space left")
    assert not os.path.ismount(mountpoint)


def test_a_directory_without_write_permission_is_reported(
    small_image: Path, ordinary_user: list[str], open_tmp_path: Path
) -> None:
    mountpoint, directory = open_tmp_path / "mount", open_tmp_path / "store"
    for path in (mountpoint, directory):
        path.mkdir()
    os.chown(mountpoint, USER, -1)
    image = open_tmp_path / "image"
    run("cp", small_image, image)
    words = [*ordinary_user, "mount", "--insecure", "--overlay-limit=2M", f"--overlay-store={directory}"]
    result = run(*words, image, mountpoint, check=False)
    assert_one_line(result, 1, "nothing can be written there: Permission denied")
    os.chown(directory, USER, -1)
    try:
        result = run(*words, image, mountpoint, check=False)
        assert result.returncode == 0, result.stderr
    finally:
        clear_mount(mountpoint)


def test_the_api_has_it_and_a_relative_directory_is_the_callers(
    roomy_image: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    with api.mount(roomy_image, mountpoint, insecure=True, overlay_limit=1 << 20, overlay_store="store") as mount:
        digest = write_file(mountpoint / "file", 4, 3)
        assert digest_of(mountpoint / "file") == digest
        status = mount.status()
        assert status["overlay_store_used"] > 2 << 20
        assert store_descriptor(status["pid"], store)


def test_a_read_only_mount_makes_no_file(roomy_image: Path, tmp_path: Path) -> None:
    with mounted(roomy_image, tmp_path / "mount", "--insecure", "-r", "--overlay-store=/nowhere") as mountpoint:
        assert status_of(mountpoint)["overlay_store_used"] == 0

"""How mounts end: unmounting, signals, idle mounts, hung storage. Mounts of other programs stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import caches_kept, clear_mount, daemon_pid, mounted
from tests.support.processes import is_running


def test_umount_returns_when_the_daemon_is_gone(small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    assert mystfuse("umount", mountpoint).returncode == 0
    assert not is_running(pid)
    assert find_mount(str(mountpoint)) is None


@pytest.mark.parametrize("command", [("umount",), ("fusermount3", "-u")])
def test_other_unmounters_end_the_daemon_too(command: tuple[str, ...], small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    run(*command, mountpoint)
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_mount_in_order(number: int, small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    os.kill(pid, number)
    wait_until(lambda: not is_running(pid))
    assert find_mount(str(mountpoint)) is None


def test_a_signal_ends_a_busy_mount_lazily(small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    with (mountpoint / "hello.txt").open("rb"):
        result = mystfuse("umount", "--timeout=0.1", mountpoint)
        assert_one_line(result, 7, "busy")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_running(pid))
        assert find_mount(str(mountpoint)) is None


def test_lazy_umount_of_a_busy_mount_leaves_open_files_readable(small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    with (mountpoint / "sub/deep/data.bin").open("rb") as file:
        run("umount", "-l", mountpoint)
        assert find_mount(str(mountpoint)) is None
        assert len(file.read()) == 307_200
    wait_until(lambda: not is_running(pid))


def test_after_sigkill_umount_makes_the_mountpoint_usable_again(small_image: Path, mountpoint: Path) -> None:
    mystfuse(small_image, mountpoint)
    pid = daemon_pid(mountpoint)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mountpoint)
    assert_one_line(mystfuse("status", mountpoint), 7, "mystfuse umount")
    assert_one_line(mystfuse(small_image, mountpoint), 7, "mystfuse umount")
    assert mystfuse("umount", mountpoint).returncode == 0
    with mounted(small_image, mountpoint):
        assert (mountpoint / "hello.txt").exists()


def test_the_same_image_can_be_mounted_twice(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "one") as one, mounted(small_image, tmp_path / "two") as two:
        assert (one / "hello.txt").read_text() == (two / "hello.txt").read_text()
        assert_one_line(mystfuse(small_image, one), 7, "is already mounted there")


def test_an_idle_mount_unmounts_itself_but_not_while_it_is_in_use(small_image: Path, mountpoint: Path) -> None:
    mystfuse("mount", "--idle-timeout=0.5", small_image, mountpoint)
    with (mountpoint / "hello.txt").open():
        pid = daemon_pid(mountpoint)
        time.sleep(1.5)
        assert find_mount(str(mountpoint)) is not None
    wait_until(lambda: not is_running(pid))
    assert find_mount(str(mountpoint)) is None


def test_storage_that_hangs_gives_eio_and_works_again_when_it_answers(tmp_path: Path) -> None:
    """The storage is a file in another mount of ours, whose daemon is stopped."""
    source, outer_source = tmp_path / "source", tmp_path / "outer-source"
    source.mkdir()
    outer_source.mkdir()
    payload = os.urandom(6 << 20)
    (source / "payload").write_bytes(payload)
    (source / "small").write_bytes(b"small")
    assert mystfuse("mkext2", source, outer_source / "inner.img").returncode == 0
    assert mystfuse("mkext2", outer_source, tmp_path / "outer.img").returncode == 0
    # The page cache has what was read before.
    with caches_kept(), mounted(tmp_path / "outer.img", tmp_path / "outer") as outer:
        pid = daemon_pid(outer)
        with mounted(outer / "inner.img", tmp_path / "inner", "--io-timeout=1") as inner:
            assert (inner / "small").read_bytes() == b"small"
            os.kill(pid, signal.SIGSTOP)
            try:
                started = time.monotonic()
                with pytest.raises(OSError, match="Input/output error"), (inner / "payload").open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    os.pread(file.fileno(), 4096, 5 << 20)
                assert 0.9 < time.monotonic() - started < 8
                assert (inner / "small").read_bytes() == b"small"
                status = json.loads((inner / ".mystfuse/status.json").read_text())
                assert status["read_failures"] > 0
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (inner / "payload").read_bytes() == payload


def test_a_signal_ends_a_mount_of_which_the_kernel_knows_many_inodes(tmp_path: Path, mountpoint: Path) -> None:
    """Unmounting then takes the kernel a while, and pyfuse3's loop ends by itself meanwhile."""
    source = tmp_path / "source"
    for number in range(20_000):
        if number % 1000 == 0:
            directory = source / str(number)
            directory.mkdir(parents=True)
        (directory / str(number)).touch()
    assert mystfuse("mkext2", source, tmp_path / "image").returncode == 0
    for _ in range(2):
        daemon = subprocess.Popen([sys.executable, "-m", "mystfuse", "-f", tmp_path / "image", mountpoint])
        try:
            wait_until(lambda: find_mount(str(mountpoint)) is not None)
            run("ls", "-lR", mountpoint)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(10) == 0
            assert find_mount(str(mountpoint)) is None
        finally:
            daemon.kill()
            daemon.wait()


def test_a_daemon_never_unmounts_what_is_not_its_own(small_image: Path, mountpoint: Path) -> None:
    def tmpfs_mounts() -> int:
        return sum(f" {mountpoint} tmpfs " in line for line in Path("/proc/mounts").read_text().splitlines())

    run("mount", "-t", "tmpfs", "below", mountpoint)
    try:
        # Another program's mount below ours, while ours is in use.
        mystfuse("mount", small_image, mountpoint)
        pid = daemon_pid(mountpoint)
        with (mountpoint / "hello.txt").open():
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not is_running(pid))
        assert find_mount(str(mountpoint)) is None
        assert tmpfs_mounts() == 1
        # Another program's mount on top of ours.
        mystfuse("mount", small_image, mountpoint)
        pid = daemon_pid(mountpoint)
        run("mount", "-t", "tmpfs", "above", mountpoint)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_running(pid))
        assert tmpfs_mounts() == 2
        run("umount", mountpoint)
        assert find_mount(str(mountpoint)) is not None
        assert mystfuse("umount", mountpoint).returncode == 0
        assert tmpfs_mounts() == 1
    finally:
        clear_mount(mountpoint)
        while tmpfs_mounts():
            run("umount", "-l", mountpoint)


def test_odd_processes_and_mountpoints_of_others_do_not_matter(small_image: Path, tmp_path: Path) -> None:
    odd = tmp_path / "form\x0cfeed\x85"
    odd.mkdir()
    run("mount", "-t", "tmpfs", "odd", odd)
    process = subprocess.Popen(
        [sys.executable, "-c", "open('/proc/self/comm','wb').write(b'\\xff\\xfe\\x80'); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with mounted(small_image, tmp_path / "mount") as mountpoint:
            assert mystfuse("status", mountpoint).returncode == 0
            assert mystfuse("umount", mountpoint).returncode == 0
    finally:
        process.kill()
        process.communicate()
        run("umount", odd)


def test_hung_storage_does_not_keep_a_daemon_alive(tmp_path: Path) -> None:
    source, outer_source = tmp_path / "source", tmp_path / "outer-source"
    source.mkdir()
    outer_source.mkdir()
    (source / "payload").write_bytes(os.urandom(4 << 20))
    assert mystfuse("mkext2", source, outer_source / "inner.img").returncode == 0
    assert mystfuse("mkext2", outer_source, tmp_path / "outer.img").returncode == 0
    with mounted(tmp_path / "outer.img", tmp_path / "outer") as outer:
        outer_pid = daemon_pid(outer)
        with mounted(outer / "inner.img", tmp_path / "inner", "--io-timeout=0") as inner:
            inner_pid = daemon_pid(inner)
            reader = None
            os.kill(outer_pid, signal.SIGSTOP)
            try:
                reader = subprocess.Popen(
                    ["cat", inner / "payload"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                time.sleep(0.5)
                os.kill(inner_pid, signal.SIGTERM)
                wait_until(lambda: not is_running(inner_pid) and find_mount(str(inner)) is None)
                assert reader.wait(10) != 0
            finally:
                os.kill(outer_pid, signal.SIGCONT)
                if reader:
                    reader.kill()
                    reader.wait()

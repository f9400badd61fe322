"""What the processes of a mount may do, which descriptors they hold open, and what their children inherit."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system.landlock import restrict_file_access
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import clear_mount, daemon_pid, mounted
from tests.support.processes import NO_CAPABILITIES, descriptors_of, is_running, keeper_of, needs_landlock, proc_status


def test_every_thread_of_the_daemon_is_without_privileges(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint) as path:
        # With requests pending, so that there are threads.
        (path / "sub/deep/data.bin").read_bytes()
        pid = daemon_pid(mountpoint)
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        assert tasks
        for task in tasks:
            status = proc_status(task)
            for name in "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
                assert status[name] == NO_CAPABILITIES, (task, name)
            assert status["NoNewPrivs"] == "1"
        assert proc_status(Path(f"/proc/{pid}"))["Umask"] == "0077"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


@needs_landlock
def test_the_status_says_which_landlock_is_in_force(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        landlock = json.loads(mystfuse("status", "--json", mountpoint).stdout)["landlock"]
        assert landlock == int(
            run(sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))").stdout
        )


def test_a_kernel_without_landlock_mounts_all_the_same(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    """An old kernel answers ENOSYS, a filter that forbids it EPERM."""
    for number in errno.ENOSYS, errno.EPERM:
        (tmp_path / "sitecustomize.py").write_text(
            "import ctypes, os\n"
            "class Old(ctypes.CDLL):\n"
            "    def __init__(self, *words, **options):\n"
            "        super().__init__(*words, **options)\n"
            "        inner = self.syscall\n"
            "        def syscall(call, *words):\n"
            f"            ctypes.set_errno({number})\n"
            "            return -1 if call in (444, 445, 446) else inner(call, *words)\n"
            "        self.syscall = syscall\n"
            "ctypes.CDLL = Old\n"
        )
        with mounted(small_image, mountpoint, env={"PYTHONPATH": str(tmp_path)}):
            status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
            assert status["landlock"] is None
            assert proc_status(Path(f"/proc/{status['pid']}"))["NoNewPrivs"] == "1"


def test_without_landlock_the_log_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*words: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("mystfuse.system.libc.system_call", fail)
    with caplog.at_level("INFO", "mystfuse"):
        assert restrict_file_access(None) == 0
    assert "no Landlock" in caplog.text


def test_the_keeper_holds_nothing_but_its_end_of_the_talk(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        keeper = keeper_of(daemon_pid(mountpoint))
        assert descriptors_of(keeper) <= {"socket", str(mountpoint)}
        assert os.readlink(f"/proc/{keeper}/cwd") == "/"
    wait_until(lambda: not is_running(keeper))


def test_signals_to_all_processes_of_a_service_end_it_in_order(small_image: Path, mountpoint: Path) -> None:
    """A service manager and a terminal signal every process: the keeper stays until the daemon no longer needs it."""
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        assert mystfuse(small_image, mountpoint).returncode == 0
        pid = daemon_pid(mountpoint)
        keeper = keeper_of(pid)
        for each in keeper, pid:
            os.kill(each, number)
        wait_until(lambda pid=pid, keeper=keeper: not is_running(pid) and not is_running(keeper))  # type: ignore[misc]
        assert find_mount(str(mountpoint)) is None


def test_a_killed_keeper_leaves_a_mount_that_works_and_can_be_unmounted(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint) as path:
        pid = daemon_pid(mountpoint)
        os.kill(keeper_of(pid), signal.SIGKILL)
        assert (path / "hello.txt").read_text() == "hello\n"
        assert mystfuse("umount", mountpoint).returncode == 0
        assert not is_running(pid)


def test_a_killed_daemon_takes_its_keeper_with_it(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        pid = daemon_pid(mountpoint)
        keeper = keeper_of(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid) and not is_running(keeper))
        # The directory below must not appear by itself (docs/adr/0019).
        assert find_mount(str(mountpoint)) is not None
        assert mystfuse("umount", mountpoint).returncode == 0


def test_an_ordinary_users_daemon_is_confined_and_unmounts_by_itself(
    small_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    shutil.copy(small_image, image)
    image.chmod(0o644)
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    try:
        run(*ordinary_user, image, mountpoint, cwd=open_tmp_path)
        mount = find_mount(str(mountpoint))
        assert mount is not None
        pidfd = find_daemon(mount)
        assert pidfd is not None
        try:
            pid = int(re.findall(r"^Pid:\s*(\d+)", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.M)[0])
            assert proc_status(Path(f"/proc/{pid}"))["NoNewPrivs"] == "1"
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        finally:
            os.close(pidfd)
        # fusermount3, which is set-user-ID root, unmounts: the daemon itself could not run it.
        wait_until(lambda: find_mount(str(mountpoint)) is None and not is_running(pid))
    finally:
        clear_mount(mountpoint)


# Descriptors, environment, modes


@pytest.fixture
def extra(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors that a careless caller leaves open and inheritable."""
    path = tmp_path / "extra"
    path.touch()
    descriptors = [os.open(path, os.O_RDONLY) for _ in range(5)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_callers_descriptors_are_not_kept(
    small_image: Path, mountpoint: Path, extra: list[int], tmp_path: Path
) -> None:
    receiver, sender = os.pipe()
    foreground = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mount", "-f", f"--ready-fd={sender}", small_image, mountpoint],
        pass_fds=[*extra, sender], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(sender)
    try:
        with os.fdopen(receiver, "rb") as stream:
            assert stream.read() == b"ready\n"
        for pid in foreground.pid, keeper_of(foreground.pid):
            assert str(tmp_path / "extra") not in descriptors_of(pid)
    finally:
        foreground.terminate()
        assert foreground.wait(20) == 0
    log = tmp_path / "log"
    with mounted(small_image, mountpoint, f"--log-file={log}", pass_fds=extra):
        pid = daemon_pid(mountpoint)
        allowed = {str(small_image), "socket", "pipe", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/fuse"}
        # The mount of /proc that is mounted nowhere.
        assert descriptors_of(pid) <= {*allowed, str(log), "/dev/null", "/"}
        assert descriptors_of(keeper_of(pid)) <= {"socket", str(mountpoint)}


def test_mke2fs_gets_the_image_and_nothing_else(tmp_path: Path, extra: list[int]) -> None:
    """A stand-in for mke2fs notes its descriptors and runs the real mke2fs."""
    source, tools = tmp_path / "source", tmp_path / "tools"
    source.mkdir()
    tools.mkdir()
    real = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    (tools / "mke2fs").write_text(f'#!/bin/sh\nls -l /proc/$$/fd > "{tmp_path}/said"\nexec {real} "$@"\n')
    (tools / "mke2fs").chmod(0o755)
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    for options in (), ("--encrypt", str(tmp_path / "key")):
        environment = {"PATH": f"{tools}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        command = [sys.executable, "-m", "mystfuse", "mkext2", "--force", *options, source, tmp_path / "image"]
        result = subprocess.run(
            command, env={**os.environ, **environment}, pass_fds=extra, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        opened = re.findall(r" (\d+) -> (.*)", (tmp_path / "said").read_text())
        # Descriptors from 10 on are the shell's own.
        others = [target for number, target in opened if 2 < int(number) < 10]
        assert "/extra" not in str(opened)
        assert len(others) == 1 and ("(deleted)" in others[0] or "/plaintext" in others[0]), opened


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_is_made_follows_the_umask(small_image: Path, tmp_path: Path, mask: int) -> None:
    (tmp_path / "source").mkdir()
    made = tmp_path / "image"
    for where in tmp_path, Path("/dev/shm"):  # noqa: S108
        target = where / f"mystfuse-umask-{os.getpid()}"
        try:
            result = mystfuse("mkext2", tmp_path / "source", target, umask=mask)
            assert result.returncode == 0, result.stderr
            assert target.stat().st_mode & 0o777 == 0o666 & ~mask
        finally:
            target.unlink(missing_ok=True)
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        assert mystfuse("commit", mountpoint, made, umask=mask).returncode == 0
    assert made.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_daemons_umask_is_not_that_of_files_in_the_mount(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, umask=0o077) as path:
        run("sh", "-c", f"umask 022; echo > '{path}/new'; umask 0; echo > '{path}/open'")
        assert (path / "new").stat().st_mode & 0o777 == 0o644
        assert (path / "open").stat().st_mode & 0o777 == 0o666


def test_what_a_program_inherits(tmp_path: Path, extra: list[int]) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    assert mystfuse("mkext2", tree, tmp_path / "image").returncode == 0
    script = "/bin/busybox cat /proc/self/status; /bin/busybox ls -l /proc/$$/fd; /bin/busybox env"
    result = mystfuse(
        "exec", tmp_path / "image", "/bin/sh", "-c", script, pass_fds=extra, env={"SECRET_KEY": "in the environment"}
    )
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^NoNewPrivs:\t(\d)", result.stdout, re.M) == ["1"]
    sets = dict(re.findall(r"^(Cap\w+):\t(\w+)", result.stdout, re.M))
    # The capabilities that break out of a container: CAP_SYS_MODULE, RAWIO, PTRACE, ADMIN, BOOT, TIME; MKNOD;
    # MAC_ADMIN. With no-new-privileges the bounding set gives nothing back.
    for name in "CapEff", "CapPrm", "CapInh", "CapAmb":
        for capability in 16, 17, 19, 21, 22, 25, 27, 33:
            assert not int(sets[name], 16) >> capability & 1, (name, capability)
    assert {int(number) for number in re.findall(r" (\d+) -> ", result.stdout)} <= {0, 1, 2, 10}
    assert "extra" not in result.stdout and "SECRET_KEY" not in result.stdout


# What mystfuse umount removes


def test_umount_refuses_what_is_not_ours(tmp_path: Path) -> None:
    directory = tmp_path / "tmpfs"
    directory.mkdir()
    # Its source says mystfuse; only the type counts.
    run("mount", "-t", "tmpfs", "mystfuse", directory)
    try:
        assert_one_line(mystfuse("umount", directory), 7, "nothing of mystfuse's is mounted")
        assert mystfuse("umount", "--stale", directory).returncode == 0
        assert f" {directory} tmpfs " in Path("/proc/mounts").read_text()
    finally:
        run("umount", directory)


PRETENDER = r"""
import ctypes, os, socket, subprocess, sys
mountpoint, name = sys.argv[1:]
receiver, sender = socket.socketpair()
options = "rw,nosuid,nodev,subtype=mystfuse,fsname=/srv/app.img"
subprocess.run(["fusermount3", "-o", options, "--", mountpoint], pass_fds=[sender.fileno()], check=True,
               env={**os.environ, "_FUSE_COMMFD": str(sender.fileno())})
_, descriptors, _, _ = socket.recv_fds(receiver, 1, 1)
if name == "daemon":
    fields = [line.split() for line in open("/proc/self/mountinfo") if f" {mountpoint} " in line]
    name = f"mystfuse:{fields[0][2]}"
ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
print("mounted", flush=True)
sys.stdin.read()
"""


def test_umount_leaves_a_mount_that_another_program_serves(open_tmp_path: Path) -> None:
    """An ordinary user's mount, whose source says mystfuse."""
    mountpoint = open_tmp_path / "mount"
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    process = subprocess.Popen(
        ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", "/usr/bin/python3", "-c", PRETENDER,
         mountpoint, "other"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == b"mounted\n"
        mount = find_mount(str(mountpoint))
        assert mount is not None and mount.user_id == USER and find_daemon(mount) is None
        fdinfo = run("sh", "-c", f"cat /proc/{process.pid}/fdinfo/*").stdout
        if "fuse_connection" not in fdinfo:
            pytest.skip("this kernel does not say who serves which mount")
        for options in ((), ("--lazy",)):
            result = mystfuse("umount", *options, mountpoint)
            assert_one_line(result, 7, f"process {process.pid} (other) serves it")
        assert mystfuse("umount", "--stale", mountpoint).returncode == 0
        assert find_mount(str(mountpoint)) is not None and process.poll() is None
    finally:
        run("umount", "-l", mountpoint, check=False)
        process.communicate(timeout=20)


def test_no_process_passes_itself_off_as_the_daemon_of_a_mount(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        pid = daemon_pid(mountpoint)
        mount = find_mount(str(mountpoint))
        assert mount is not None
        code = (
            "import ctypes, sys; ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)\nprint(flush=True); input()"
        )
        pretender = subprocess.Popen(
            [sys.executable, "-c", code, mount.daemon_name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert pretender.stdout is not None
            pretender.stdout.readline()
            assert Path(f"/proc/{pretender.pid}/comm").read_text() == f"{mount.daemon_name}\n"
            found = find_daemon(mount)
            assert found is not None
            assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{found}").read_text()
            os.close(found)
            assert mystfuse("umount", "--timeout=5", mountpoint).returncode == 0
            assert pretender.poll() is None
        finally:
            pretender.communicate(b"\n", timeout=20)

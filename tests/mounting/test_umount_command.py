"""``mystfuse umount``: what it says, keeps and ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.mounting import unmount as unmounting
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import Mount, find_mount
from mystfuse.system.wait_readable import wait_readable
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import daemon_pid, mounted, status_of


@contextmanager
def visitor(mountpoint: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in a mount that has a file open, makes another when told, and says how that went."""
    program = (
        "import os, sys\n"
        "os.chdir(sys.argv[1]); file = os.open('hello.txt', os.O_RDONLY); print('in', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try: os.close(os.open(line.strip(), os.O_CREAT | os.O_WRONLY)); print(0, flush=True)\n"
        "    except OSError as error: print(error.errno, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, mountpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def errno_of(process: subprocess.Popen[str]) -> int:
    """The errno of the visitor's next access; 0 for none. Not one that the kernel answers from its caches."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"file{time.monotonic_ns()}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def said_by(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return result.returncode, result.stdout, result.stderr


# What is forgotten


def test_it_says_how_much_is_forgotten(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        (mountpoint / "new").write_bytes(bytes(5 << 20))
        assert said_by(mystfuse("umount", mountpoint)) == (
            0,
            f"{mountpoint}: unmounted; 5 MiB of writes are forgotten\n",
            "",
        )


@pytest.mark.parametrize(
    ("options", "writes"), [((), False), (("--quiet",), True), (("-q",), True), (("--quiet", "--lazy"), True)]
)
def test_it_says_nothing_when_nothing_was_written_or_when_told(
    small_image: Path, mountpoint: Path, options: tuple[str, ...], writes: bool
) -> None:
    with mounted(small_image, mountpoint):
        if writes:
            (mountpoint / "new").write_bytes(bytes(1 << 20))
        else:
            (mountpoint / "hello.txt").read_bytes()
        assert said_by(mystfuse("umount", *options, mountpoint)) == (0, "", "")


def test_writes_in_the_store_count(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    with mounted(small_image, mountpoint, "--overlay-limit=2M", f"--overlay-store={tmp_path}", "-o", "noxattr"):
        (mountpoint / "new").write_bytes(os.urandom(4 << 20))
        assert status_of(mountpoint)["overlay_store_used"] > 1 << 20
        said = mystfuse("umount", mountpoint).stdout
        assert "unmounted; 4" in said and "MiB of writes" in said


def test_a_mount_that_says_nothing_is_unmounted(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, "-o", "nocontrol"):
        (mountpoint / "new").touch()
        assert said_by(mystfuse("umount", mountpoint)) == (0, "", "")


def test_a_mount_that_hangs_is_not_waited_for(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        pid = daemon_pid(mountpoint)
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            result = mystfuse("umount", "--timeout=0.5", mountpoint)
            assert time.monotonic() - started < 5
            assert_one_line(result, 7, "unmounted, but still in use: its daemon has not ended after 0.5 s")
            assert find_mount(str(mountpoint)) is None
        finally:
            os.kill(pid, signal.SIGCONT)


# --commit


def test_commit_keeps_what_was_written(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.img"
    with mounted(small_image, mountpoint):
        (mountpoint / "new").write_text("new\n")
        result = mystfuse("umount", "--commit", new, mountpoint)
        assert result.returncode == 0 and f"{mountpoint}: unmounted; {new} has what was written\n" in result.stdout
        assert find_mount(str(mountpoint)) is None
    assert mystfuse("cat", new, "new").stdout == "new\n"
    with mounted(new, mountpoint):
        result = mystfuse("umount", "--quiet", "--commit", new, "--overwrite", mountpoint)
        assert result.returncode == 0 and "unmounted" not in result.stdout
    assert mystfuse("verify", new).returncode == 0


def test_options_of_commit_are_its_own(
    small_image: Path, mountpoint: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    public, private = keys
    with mounted(small_image, mountpoint):
        words = ("--commit", tmp_path / "new.img", "--sign", f"{public}:{private}")
        assert mystfuse("umount", *words, mountpoint).returncode == 0
    assert mystfuse("verify", "--pubkey", public, tmp_path / "new.img").returncode == 0


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A key pair to sign with: public and private."""
    public, private = tmp_path / "public.pem", tmp_path / "private.pem"
    run("openssl", "genrsa", "-out", private, "-3", "2048")
    run("openssl", "rsa", "-in", private, "-pubout", "-out", public)
    return public, private


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        (("--commit", "EXISTS"), 1, "already exists (--overwrite overwrites it)"),
        (("--commit", "nowhere/new"), 1, "there is no directory"),
        (("--commit", "new", "--sign", "nonsense"), 2, "umount: --sign nonsense"),
        (("--commit", "new", "--decrypt", "--luks2"), 2, "--luks2 goes with --encrypt"),
        (("--sign", "a:b"), 2, "umount: --sign goes with --commit NEWIMAGE"),
        (("--overwrite",), 2, "umount: --overwrite goes with --commit NEWIMAGE"),
    ],
)
def test_what_fails_leaves_the_mount(
    small_image: Path, mountpoint: Path, tmp_path: Path, words: tuple[str, ...], status: int, part: str
) -> None:
    (tmp_path / "EXISTS").write_text("precious")
    with mounted(small_image, mountpoint):
        assert_one_line(mystfuse("umount", *words, mountpoint, cwd=tmp_path), status, part)
        assert find_mount(str(mountpoint)) is not None and status_of(mountpoint)["pid"]
    assert (tmp_path / "EXISTS").read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["EXISTS", "mount"]


def test_what_is_written_meanwhile_is_not_lost(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.005):
            (mountpoint / "busy").write_text("x")

    with mounted(small_image, mountpoint):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            result = mystfuse("umount", "--commit", tmp_path / "new.img", mountpoint)
        finally:
            done.set()
            writer.join()
        assert_one_line(result, 7, "not unmounted: it was written to while", "--overwrite")
        assert (mountpoint / "busy").exists()
        result = mystfuse("umount", "--commit", tmp_path / "new.img", "--overwrite", mountpoint)
        assert result.returncode == 0, result.stderr


def test_files_that_were_removed_before_are_no_change(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    """The kernel forgets them a moment later: that frees their blocks, but changes nothing that anybody sees."""
    with mounted(small_image, mountpoint):
        for number in range(50):
            (mountpoint / f"file{number}").write_bytes(bytes(100_000))
        shutil.rmtree(mountpoint / "sub")
        for number in range(50):
            (mountpoint / f"file{number}").unlink()
        result = mystfuse("umount", "--commit", tmp_path / "new.img", mountpoint)
        assert result.returncode == 0, result.stderr


def test_a_busy_mount_is_committed_and_stays(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.img"
    with mounted(small_image, mountpoint), visitor(mountpoint) as process:
        result = mystfuse("umount", "--timeout=0.1", "--commit", new, mountpoint)
        assert_one_line(result, 7, f"{new} is made, but: {mountpoint}: in use by process {process.pid}")
        assert errno_of(process) == 0
    assert mystfuse("verify", new).returncode == 0


# --force


def test_force_ends_it_for_its_users_and_names_them(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint), visitor(mountpoint) as process:
        (mountpoint / "new").write_bytes(bytes(1 << 20))
        mount = find_mount(str(mountpoint))
        assert mount is not None
        daemon = find_daemon(mount)
        assert daemon is not None and errno_of(process) == 0
        result = mystfuse("umount", "--force", mountpoint)
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{mountpoint}: unmounted; 1 MiB of writes are forgotten\n"
        assert (
            f"warning: {mountpoint}: ended for process {process.pid} ({name}: its current directory)" in result.stderr
        )
        assert find_mount(str(mountpoint)) is None and wait_readable([daemon], 0)
        os.close(daemon)
        assert errno_of(process) in (errno.ENOTCONN, errno.EIO)


def test_force_kills_a_daemon_that_hangs(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint), visitor(mountpoint) as process:
        os.kill(daemon_pid(mountpoint), signal.SIGSTOP)
        started = time.monotonic()
        result = mystfuse("umount", "-f", "--quiet", "--timeout=1", mountpoint)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert 1 <= time.monotonic() - started < 6
        assert errno_of(process) in (errno.ENOTCONN, errno.EIO)


def test_force_takes_what_is_mounted_below(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        run("mount", "-t", "tmpfs", "below", mountpoint / "sub")
        result = mystfuse("umount", "--force", mountpoint)
        assert result.returncode == 0 and f"{mountpoint}/sub below it" in result.stderr
        assert str(mountpoint) not in Path("/proc/self/mountinfo").read_text()


def test_force_clears_a_dead_mount_and_refuses_what_is_no_mount(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        os.kill(daemon_pid(mountpoint), signal.SIGKILL)
        assert mystfuse("umount", "--force", mountpoint).returncode == 0
        assert find_mount(str(mountpoint)) is None
    assert_one_line(mystfuse("umount", "--force", mountpoint), 7, "nothing of mystfuse's is mounted there")


def test_an_ordinary_user_forces_own_mounts_alone(
    small_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    shutil.copyfile(small_image, image)
    mountpoint.mkdir()
    with mounted(image, mountpoint, "--allow-other"):
        result = run(*ordinary_user, "umount", "--force", mountpoint, check=False)
        assert_one_line(result, 7, "user 0 has mounted it")
        assert status_of(mountpoint)["pid"]
    os.chown(mountpoint, USER, GROUP)
    run(*ordinary_user, image, mountpoint)
    identity = ordinary_user[: ordinary_user.index("env")]
    with subprocess.Popen([*identity, "sleep", "100"], cwd="/") as other:
        inside = subprocess.Popen(
            [*identity, "sh", "-c", f"cd {mountpoint} && echo && exec sleep 100"], stdout=subprocess.PIPE
        )
        try:
            assert inside.stdout is not None and inside.stdout.readline() == b"\n"
            result = run(*ordinary_user, "umount", "--force", mountpoint, check=False)
            assert result.returncode == 0 and f"process {inside.pid} (" in result.stderr, result.stderr
            assert str(other.pid) not in result.stderr and find_mount(str(mountpoint)) is None
        finally:
            inside.kill()
            inside.communicate()
            other.kill()


def test_other_programs_unmount_as_before(small_image: Path, mountpoint: Path) -> None:
    for words in ("umount",), ("fusermount3", "-u"), ("umount", "-l"):
        with mounted(small_image, mountpoint):
            (mountpoint / "new").touch()
            result = run(*words, mountpoint)
            assert result.stdout == result.stderr == "" and find_mount(str(mountpoint)) is None


def test_status_and_umount_agree(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        (mountpoint / "new").write_bytes(bytes(4 << 20))
        (entry,) = (e for e in json.loads(mystfuse("status", "--json").stdout) if e["mountpoint"] == str(mountpoint))
        assert 4 << 20 <= entry["status"]["overlay_written"] < (4 << 20) + (1 << 18)


def has_no_daemon(mountpoint: Path) -> bool:
    """Whether the kernel knows that nobody serves a mount any more: that takes a moment after SIGKILL."""
    try:
        os.stat(mountpoint / "any")
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


@pytest.mark.parametrize("how", ["in order", "by force", "a dead one"])
def test_a_mount_that_goes_by_itself_meanwhile_is_unmounted(
    how: str, small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmount = unmounting.unmount
    calls: list[str] = []

    def be_late(path: str, lazy: bool, expected: Mount) -> None:
        unmount(path, lazy=True, expected=expected)
        calls.append(path)
        # Between the look into the mount table and the system call.
        monkeypatch.setattr("mystfuse.mounting.unmount.find_mount", lambda path: expected if calls else None)
        try:
            unmount(path, lazy, expected)
        finally:
            calls.clear()

    with mounted(small_image, tmp_path / "mount") as mountpoint:
        if how == "a dead one":
            os.kill(daemon_pid(mountpoint), signal.SIGKILL)
            wait_until(lambda: has_no_daemon(mountpoint))
        monkeypatch.setattr("mystfuse.mounting.unmount.unmount", be_late)
        if how == "in order":
            unmounting.unmount_and_wait(str(mountpoint), False, 20)
        elif how == "by force":
            assert unmounting.unmount_by_force(str(mountpoint), 20) == ""
        else:
            unmounting.unmount_stale(str(mountpoint))
        monkeypatch.undo()
        assert find_mount(str(mountpoint)) is None

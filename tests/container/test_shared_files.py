"""What a program under ``exec`` shares with the host: device nodes, the terminal, files on its standard descriptors."""

from __future__ import annotations

import errno
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.attacks import NUMBERS, image, needs_filter, needs_root, said

__all__ = ["image"]


@needs_root
def test_the_hosts_device_nodes_stay_unchanged(image: Path) -> None:
    """User 0 owns them in every namespace. (The attack sets the values that they have already, except for a time.)"""
    nodes = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"]
    masks = ["/proc/keys"]
    before = [(os.stat(node).st_mode, os.stat(node).st_mtime_ns) for node in nodes]
    script = "for node; do touch $node; chown 0 $node; chmod 666 $node; done 2>&1; echo x > /dev/null && echo works"
    lines = said(image, "sh", "-c", script, "sh", *nodes, *masks).splitlines()
    assert [line for line in lines if "Read-only file system" not in line] == ["works"]
    assert len(lines) == 3 * len([*nodes, *masks]) + 1
    # The mode of /dev/null as it was opened by the caller.
    command = [sys.executable, "-m", "mystfuse", "exec", image, "attack", "call"]
    words = [word for fd in (0, 2) for word in (str(NUMBERS["fchmod"]), str(fd), "0666", "-")]
    with open("/dev/null", "rb") as read, open("/dev/null", "ab") as write:
        result = subprocess.run(
            [*command, *words], stdin=read, stdout=subprocess.PIPE, stderr=write, text=True, check=True, timeout=60
        )
    assert [line.split()[1] for line in result.stdout.splitlines()] == [str(errno.EROFS)] * 2
    assert [(os.stat(node).st_mode, os.stat(node).st_mtime_ns) for node in nodes] == before


def test_a_file_given_for_reading_is_read_only(image: Path, tmp_path: Path) -> None:
    """Nor can the program change its mode. It reads from the caller's position, and leaves its own position behind."""
    path = tmp_path / "input"
    path.write_text("1\n2\n3\n4\n")
    path.chmod(0o640)
    script = (
        "read x; echo got $x; (echo bad > /proc/self/fd/0) 2>&1; chmod 666 /proc/self/fd/0 2>&1; read x; echo got $x"
    )
    with path.open("rb", buffering=0) as file:
        assert file.read(2) == b"1\n"
        result = subprocess.run(
            [sys.executable, "-m", "mystfuse", "exec", image, "sh", "-c", script], stdin=file, capture_output=True,
            text=True, check=True, timeout=60,
        )  # fmt: skip
        assert file.read(2) == b"4\n"
    lines = result.stdout.splitlines()
    assert lines[0] == "got 2" and lines[3] == "got 3", lines
    assert all("Read-only file system" in line for line in lines[1:3])
    assert path.read_text() == "1\n2\n3\n4\n" and path.stat().st_mode & 0o777 == 0o640
    # A file that has been unlinked is read as well.
    with path.open("rb") as file:
        path.unlink()
        result = subprocess.run(
            [sys.executable, "-m", "mystfuse", "exec", image, "cat"], stdin=file, capture_output=True, timeout=60,
            check=True,
        )  # fmt: skip
    assert result.stdout == b"1\n2\n3\n4\n"


@needs_root
def test_a_file_without_protection_from_writes_is_refused(image: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "input", tmp_path / "other"
    path.write_text("x")
    with path.open("rb") as file:
        # It still has a name, but not the one that the caller opened.
        other.hardlink_to(path)
        path.unlink()
        path.write_text("y")
        result = subprocess.run(
            [sys.executable, "-m", "mystfuse", "exec", image, "cat"], stdin=file, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
    assert result.returncode == 7 and result.stderr.endswith(
        "standard input: cannot be kept from being written to (No such file or directory): use a pipe (cat)\n"
    )
    with open("/dev/kmsg", "rb") as device:
        result = subprocess.run(
            [sys.executable, "-m", "mystfuse", "exec", image, "true"], stdin=device, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
    assert result.returncode == 7 and "standard input: a device, " in result.stderr.splitlines()[-1]


@needs_filter
def test_the_program_types_nothing_into_the_callers_terminal(image: Path) -> None:
    """The attack: the program pushes bytes into the terminal's input, which the shell would execute later. Nor may the
    program give other users access to the terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        words = ["call", str(NUMBERS["ioctl"]), "0", "0x5412", "=x", "-"]
        for each in "0", "1", "2":
            words += [str(NUMBERS["fchmod"]), each, "0620", "-"]
        os.execv(sys.executable, [sys.executable, "-m", "mystfuse", "exec", str(image), "attack", *words])
    output = b""
    try:
        while select.select([fd], [], [], 30)[0]:
            output += os.read(fd, 4096)
    except OSError:
        # The other end of the terminal is closed.
        pass
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output
    # A kernel with TIOCSTI switched off answers EIO.
    assert f"{NUMBERS['ioctl']} {errno.EPERM}\r\n".encode() in output
    assert output.count(f"{NUMBERS['fchmod']} {errno.EROFS}\r\n".encode()) == 3


@needs_root
def test_the_program_that_starts_it_stays_unchanged(image: Path, tmp_path: Path) -> None:
    """/proc/1/exe is the host's bubblewrap, which user 0 of the namespace owns."""
    bubblewrap = tmp_path / "bwrap"
    shutil.copy(shutil.which("bwrap") or "", bubblewrap)
    os.utime(bubblewrap, (1, 1))
    before = bubblewrap.stat()
    script = "for each in /proc/[0-9]*/exe; do chmod 4777 $each; chown 1 $each; touch $each; done 2>&1"
    result = subprocess.run(
        [sys.executable, "-m", "mystfuse", "exec", image, "sh", "-c", script], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=60,
    )  # fmt: skip
    assert "/proc/1/exe: Read-only file system" in result.stdout, result
    after = bubblewrap.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime) == (before.st_mode, before.st_uid, before.st_mtime)


@needs_root
def test_a_null_device_of_another_directory_is_replaced_by_ours(image: Path, tmp_path: Path) -> None:
    """As in a chroot, or in a service with its own devices; opened in every way."""
    script = """mount -t tmpfs -o dev tmpfs "$0" && mknod -m 600 "$0/null" c 1 3 && shift 0 &&
        "$@" <> "$0/null" >&2 && "$@" < "$0/null" >&2; stat -c %a "$0/null" """
    command = [sys.executable, "-m", "mystfuse", "exec", image, "sh", "-c", "! chmod 666 /proc/self/fd/0"]
    (tmp_path / "dev").mkdir()
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, tmp_path / "dev", *command], capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert result.stdout == "600\n", result
    assert result.stderr.count("Read-only file system") == 2, result


@needs_root
def test_a_file_below_what_the_image_covers_is_read(image: Path, tmp_path: Path) -> None:
    script = """mount -t tmpfs tmpfs /mnt && echo hello > /mnt/file && exec "$@" < /mnt/file"""
    command = [sys.executable, "-m", "mystfuse", "exec", image, "cat"]
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "hello\n"), result

"""Commands without what they need from the system: room, descriptors, processes, memory, a reader, a current directory.
Each ends with one line and its exit status, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mystfuse.build.mkext2 import Mkext2Options, mkext2
from mystfuse.build.tree_source import DirectorySource
from mystfuse.errors import MystfuseError, explain
from mystfuse.image.progress import Progress
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system.atomic_file import AtomicFile
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.kill_place import take_away
from tests.support.mounts import OWN_MOUNTS, clear_mount

START = "from mystfuse.cli.start import mystfuse; mystfuse()"
STORM = (
    "import signal; signal.signal(signal.SIGALRM, lambda *_: None);"
    "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001);" + START
)
"""A caught signal every millisecond interrupts every wait in the kernel (EINTR)."""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, a key, a key pair, a package's settings."""
    root = tmp_path_factory.mktemp("kit")
    (root / "tree").mkdir()
    (root / "tree/data").write_bytes(os.urandom(300_000))
    (root / "key").write_bytes(os.urandom(64))
    (root / "key").chmod(0o600)
    run("openssl", "genrsa", "-3", "-out", root / "private.pem", "3072")
    run("openssl", "rsa", "-in", root / "private.pem", "-pubout", "-out", root / "public.pem")
    (root / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/sh"}')
    return root


@pytest.fixture(scope="module")
def mount(small_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("mount")
    assert mystfuse("mount", small_image, path).returncode == 0
    try:
        yield path
    finally:
        take_away(path)


@pytest.fixture
def making(kit: Path, mount: Path, small_image: Path) -> dict[str, Callable[[Path], list[str | Path]]]:
    """The commands that write a file: target -> arguments."""
    return {
        "mkext2": lambda target: ["mkext2", "--force", kit / "tree", target],
        "encrypt": lambda target: ["mkext2", "--force", "--encrypt", kit / "key", kit / "tree", target],
        "commit": lambda target: ["commit", "--force", mount, target],
        "package": lambda target: [
            "package", "--force", "--pubkey", kit / "public.pem", "-o", target, kit / "private.pem", kit / "config.json"
        ],
        "extract": lambda target: ["extract", small_image, "/", target],
    }  # fmt: skip


def python(code: str, *arguments: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python process with mystfuse's arguments."""
    return run(sys.executable, "-c", code, *arguments, check=False, **kwargs)


MAKERS = ("mkext2", "encrypt", "commit", "package")


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device"])
def test_only_regular_files_are_replaced(
    kind: str, making: dict[str, Callable[[Path], list[str | Path]]], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "device":
        os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        target.symlink_to("/dev/null")
    before = target.lstat()
    for name in MAKERS:
        assert_one_line(mystfuse(*making[name](target)), 1, f"{target}: ", "not replaced")
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(tmp_path) == ["target"]


def test_a_full_disk(making: dict[str, Callable[[Path], list[str | Path]]], small_image: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    # A package is small.
    for size, name in (("200k", "commit"), ("8k", "package"), ("200k", "extract")):
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", full)
        try:
            if name == "package":
                (full / "taken").write_bytes(bytes(8192))
            result = mystfuse(*making[name](full / "target"))
            assert result.returncode == 1 and "No space left" in result.stderr, result.stderr
            assert [line for line in result.stderr.splitlines() if "warning: " not in line][1:] == []
            assert set(os.listdir(full)) <= {"taken"}
            with (full / "archive").open("wb") as archive:
                command = [sys.executable, "-m", "mystfuse", "tar", small_image]
                result = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, text=True, check=False)
            assert result.returncode == 1
            assert result.stderr.endswith("mystfuse: the output cannot be written: No space left on device\n")
        finally:
            run("umount", full)


def test_files_may_not_be_so_large(making: dict[str, Callable[[Path], list[str | Path]]], tmp_path: Path) -> None:
    for name in (*MAKERS, "extract"):
        limit = 1024 if name == "package" else 100_000
        result = mystfuse(
            *making[name](tmp_path / "target"),
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert result.returncode == 1 and "File too large" in result.stderr, (name, result.stderr)
        assert not list(tmp_path.iterdir()), name


READING = (
    ("ls", "-lR", "IMAGE"), ("cat", "IMAGE", "sub/deep/data.bin"), ("tar", "IMAGE"), ("fssig", "--json", "IMAGE"),
    ("sign", "--print-digest", "IMAGE"), ("verify", "--json", "IMAGE"), ("status", "--json", "MOUNT"), ("--help",),
)  # fmt: skip


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
def test_output_that_is_not_read(arguments: tuple[str, ...], small_image: Path, mount: Path) -> None:
    places = {"IMAGE": str(small_image), "MOUNT": str(mount)}
    words = " ".join(places.get(word, word) for word in arguments)
    command = f"'{sys.executable}' -m mystfuse {words}"
    # A full disk is an error; a reader that has gone away is none, nor is a descriptor that the caller has closed.
    for redirection, status, line in (
        ("> /dev/full", 1, "mystfuse: the output cannot be written: No space left on device\n"),
        (">&-", 0, ""),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full 2> /dev/full", 1, ""),
    ):
        result = run("sh", "-c", f"{command} {redirection}", check=False)
        said = "".join(line for line in result.stderr.splitlines(keepends=True) if "warning: " not in line)
        assert (result.returncode, said) == (status, line), redirection
    receiver, sender = os.pipe()
    os.close(receiver)
    result = subprocess.run(["sh", "-c", command], stdout=sender, stderr=subprocess.PIPE, text=True, check=False)
    os.close(sender)
    said = [line for line in result.stderr.splitlines() if "warning: " not in line]
    assert (result.returncode, said) == (1, [])


def test_the_current_directory_is_gone(
    making: dict[str, Callable[[Path], list[str | Path]]], small_image: Path, mount: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"

    def from_nowhere(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        gone.mkdir()
        words = " ".join(
            f"'{word}'" for word in (shutil.which("mystfuse", path=os.path.dirname(sys.executable)), *arguments)
        )
        return run("sh", "-c", f"cd '{gone}' && rmdir '{gone}' && exec {words}", check=False)

    for name, make in making.items():
        result = from_nowhere(*make(tmp_path / name))
        assert result.returncode == 0 and (tmp_path / name).exists(), result.stderr
    for name in MAKERS:
        assert_one_line(
            from_nowhere(*making[name](Path("relative"))), 1, "relative: ", "its directory has been removed"
        )
    for arguments in (("umount", "m"), ("status", "m"), ("mount", small_image, "m"), ("mkext2", ".", tmp_path / "x")):
        assert_one_line(from_nowhere(*arguments), 1, "the current directory is gone")
    assert_one_line(from_nowhere("ls", "x.img"), 1, "x.img: No such file or directory")


def test_few_descriptors(kit: Path, small_image: Path, tmp_path: Path, mountpoint: Path) -> None:
    """With some number of descriptors a command works; with fewer it says so, and never anything else."""
    for limit in (5, 6, 7, 10, 12, 14, 16, 18, 24):
        for arguments in (("mkext2", kit / "tree", tmp_path / "x"), ("mount", small_image, mountpoint)):
            result = mystfuse(
                *arguments,
                preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
            )
            lines = [line for line in result.stderr.splitlines() if "warning: " not in line]
            assert "internal error" not in result.stderr
            if result.returncode:
                assert result.returncode in (1, 7) and len(lines) == 1 and lines[0].startswith("mystfuse: "), lines
                assert not (tmp_path / "x").exists() and not list(mountpoint.iterdir())
            (tmp_path / "x").unlink(missing_ok=True)
            clear_mount(mountpoint)
    assert result.returncode == 0


def test_little_memory(small_image: Path, mountpoint: Path) -> None:
    """Memory beyond what Python itself takes."""
    code = (
        "import re, resource, sys; size = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "limit = (size << 10) + (int(sys.argv.pop(1)) << 20);"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit));" + START
    )
    failed = 0
    for megabytes in (1, 3, 6, 10, 16, 24, 400):
        for arguments in (("verify", small_image), ("ls", small_image), ("mount", small_image, mountpoint)):
            result = python(code, str(megabytes), *arguments)
            lines = [line for line in result.stderr.splitlines() if "warning: " not in line]
            assert "Traceback" not in result.stderr and "internal error" not in result.stderr, (arguments, megabytes)
            if result.returncode:
                failed += 1
                assert len(lines) == 1 and lines[0].startswith("mystfuse: "), result.stderr
                assert find_mount(str(mountpoint)) is None
            clear_mount(mountpoint)
    assert failed and result.returncode == 0


def test_few_processes(small_image: Path, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    # A user without other processes.
    user, *rest = ordinary_user[4:]
    nobody_else = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", user, *rest]
    shutil.copy(small_image, open_tmp_path / "image")
    (open_tmp_path / "tree").mkdir()
    (open_tmp_path / "mount").mkdir()
    os.chown(open_tmp_path / "mount", 54321, 54321)
    os.chown(open_tmp_path, 54321, 54321)
    for arguments in (
        ("verify", "image"), ("ls", "image"), ("mkext2", "tree", "new"), ("mount", "image", "mount"),
        ("extract", "image", "/", "new"), ("exec", "image", "/bin/true"), ("sign", "--remove", "image"),
    ):  # fmt: skip
        result = run("prlimit", "--nproc=1", *nobody_else, *arguments, check=False, cwd=open_tmp_path)
        lines = [line for line in result.stderr.splitlines() if "warning: " not in line]
        assert result.returncode == 1 and len(lines) == 1, (arguments, result.stderr)
        assert lines[0].startswith("mystfuse: no further "), lines
    assert sorted(os.listdir(open_tmp_path)) == ["image", "mount", "tree"]


def test_every_call_is_interrupted(kit: Path, small_image: Path, tmp_path: Path, mountpoint: Path) -> None:
    for options in ((), ("--encrypt", kit / "key")):
        assert python(STORM, "mkext2", "--force", *options, kit / "tree", tmp_path / "x").returncode == 0
        assert mystfuse("verify", *(("--key-file", kit / "key") if options else ()), tmp_path / "x").returncode == 0
    for arguments in (("ls", "-lR", small_image), ("cat", small_image, "sub/deep/data.bin")):
        calm, interrupted = (run(sys.executable, *how, *arguments) for how in (("-m", "mystfuse"), ("-c", STORM)))
        assert calm.stdout == interrupted.stdout
    assert python(STORM, "mount", small_image, mountpoint).returncode == 0
    assert python(STORM, "commit", mountpoint, tmp_path / "y").returncode == 0
    assert mystfuse("verify", tmp_path / "y").returncode == 0
    assert python(STORM, "umount", mountpoint).returncode == 0


def test_a_daemon_is_stopped_again_and_again(small_image: Path, mountpoint: Path) -> None:
    assert mystfuse("mount", small_image, mountpoint).returncode == 0
    pid = int(json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"])
    ended = threading.Event()

    def storm() -> None:
        while not ended.is_set():
            for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH, signal.SIGCHLD):
                os.kill(pid, number)
                time.sleep(0.001)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        data = os.urandom(500_000)
        for number in range(5):
            (mountpoint / f"new{number}").write_bytes(data)
            assert (mountpoint / f"new{number}").read_bytes() == data
        assert (mountpoint / "sub/deep/data.bin").read_bytes() == bytes(range(256)) * 1200
    finally:
        ended.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)
    assert mystfuse("umount", mountpoint).returncode == 0


def test_nothing_can_be_imported() -> None:
    for what, status, line in (
        ("raise KeyboardInterrupt", 1, "interrupted"),
        ("raise MemoryError", 1, "out of memory"),
        ("raise ImportError('no click\\n')", 1, "cannot be started: no click"),
        ("raise OSError(24, 'Too many open files', 'click.py')", 1, "cannot be started: click.py: Too many open files"),
    ):
        code = (
            "import sys\nclass Finder:\n    def find_spec(self, name, *rest):\n"
            f"        if name == 'click': {what}\nsys.meta_path.insert(0, Finder())\n"
        )
        assert_one_line(python(code + START), status, f"mystfuse: {line}\n")
    code = code.replace("click", "getopt") + START.replace("mystfuse;", "mount_helper;").replace(
        "mystfuse()", "mount_helper()"
    )
    assert_one_line(python(code), 2, "cannot be started")


def test_without_proc(making: dict[str, Callable[[Path], list[str | Path]]], tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in making["package"](tmp_path / "x"))
    command = f"mount -t tmpfs tmpfs /proc && exec '{sys.executable}' -m mystfuse {words}"
    assert_one_line(run("unshare", "-m", *OWN_MOUNTS, "sh", "-c", command, check=False), 1, "/proc is not mounted")
    assert not list(tmp_path.iterdir())


def test_namespaces_of_others_hold_nothing_up(kit: Path, tmp_path: Path) -> None:
    """A private mount namespace that another process makes meanwhile has a copy of the mount that mke2fs writes into,
    and keeps it."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/big").write_bytes(os.urandom(24 << 20))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "mystfuse", "mkext2", "--encrypt", kit / "key", tmp_path / "tree", tmp_path / "x"]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)})
    other = None
    try:
        mounts = Path("/proc/self/mountinfo")
        wait_until(lambda: str(temporary) in mounts.read_text() or process.poll() is not None, 60)
        assert process.poll() is None
        # Without the mounts of other tests.
        let_go = (
            """awk -v own="$1" '$3 == "fuse.mystfuse" && index($2, own) != 1 { print $2 }' /proc/self/mounts |"""
            " xargs -r umount -l -i"
        )
        words = [
            "unshare",
            "-m",
            "--propagation=private",
            "sh",
            "-c",
            f"{let_go}; echo; exec sleep 300",
            "sh",
            temporary,
        ]
        other = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        held = str(temporary) in Path(f"/proc/{other.pid}/mountinfo").read_text()
        assert process.wait(50) == 0
        assert held, "too late"
        assert not list(temporary.iterdir())
    finally:
        for each in (process, other):
            if each is not None:
                each.kill()
                each.communicate()
    assert mystfuse("verify", "--key-file", kit / "key", tmp_path / "x").returncode == 0


def test_mke2fs_does_not_begin_for_a_parent_that_is_gone(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_progress: Progress
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(MystfuseError, match="mke2fs failed: exit status 1"):
        mkext2(
            DirectorySource(kit / "tree"),
            tmp_path / "x",
            Mkext2Options(),
            False,
            no_progress,
            lambda *_: pytest.fail("not encrypted"),
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_progress() -> Progress:
    from mystfuse.cli.progress import progress

    return progress


def test_what_the_system_says_is_explained() -> None:
    assert explain(OSError(errno.EMFILE, "Too many open files")) == "Too many open files (ulimit -n)"
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", b"x\xe9")) == "x\udce9: No such file"
    assert explain(MemoryError()) == "out of memory"
    assert explain(ValueError("a bug")) is None


def test_a_file_is_written_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write(2) may take only some of the bytes."""
    real, room = os.write, 1 << 20

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[: min(room, 7000)])
        room -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with AtomicFile(tmp_path / "x", False) as file:
        file.write(b"abc" * 100_000)
        file.commit()
    assert (tmp_path / "x").read_bytes() == b"abc" * 100_000
    with (
        pytest.raises(MystfuseError, match="y: cannot be written: No space left"),
        AtomicFile(tmp_path / "y", False) as file,
    ):
        file.write(bytes(1 << 20))
    assert os.listdir(tmp_path) == ["x"]

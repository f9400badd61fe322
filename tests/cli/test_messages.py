"""Messages about wrong arguments: one line that names the mistake and the remedy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.mounts import mounted

DIGITS = "0123456789abcdef" * 4


# Root hashes


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "--roothash is empty"),
        ("  ", "--roothash is empty"),
        (DIGITS[:62], "62 hex digits, not the 64 hex digits of a root hash"),
        (DIGITS + "0", "65 hex digits, not the 64"),
        (DIGITS[:40], "40 hex digits, not the 64"),
        (f"0x{DIGITS}", "leave out 0x in front"),
        (f"sha256:{DIGITS}", "leave out sha256: in front"),
        (f"SHA512:{DIGITS}{DIGITS}", "leave out SHA512: in front"),
        (f"sha1:{DIGITS[:40]}", "not the 64 hex digits"),
        (f"{DIGITS[:-1]}g", "not the 64 hex digits"),
        (f"{DIGITS[:-1]}O", "not the 64 hex digits"),
        ("root.hash", "No such file or directory"),
        (f"/{DIGITS}", "No such file or directory"),
    ],
)
def test_a_wrong_root_hash_is_named(small_image: Path, value: str, said: str) -> None:
    assert_one_line(in_process("verify", f"--roothash={value}", small_image), 2, said)


@pytest.mark.parametrize("name", [DIGITS[:62], f"0x{DIGITS}", f"sha256:{DIGITS}", DIGITS[:40]])
def test_a_file_of_such_a_name_is_read(
    small_image: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(in_process("fssig", "--roothash", small_image).stdout)
    assert in_process("verify", f"--roothash={name}", small_image).returncode == 0
    Path(name).write_text(f"sha256:{DIGITS}\n")
    assert_one_line(
        in_process("verify", f"--roothash={name}", small_image), 2, name, "what is in it: leave out sha256:"
    )


# Misspelt commands


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("unmount", "m"), "umount"),
        (("mont", "image", "m"), "mount"),
        (("Mount", "image", "m"), "mount"),
        (("verfy", "image"), "verify"),
        (("stat", "m"), "status"),
        (("extrct", "image", "/", "out"), "extract"),
        (("lss", "image"), "ls"),
        (("execute", "image", "true"), "exec"),
        (("fsck", "image"), "verify"),
        (("mkfs", "directory", "image"), "mkext2"),
        (("hlep", "mount"), "help"),
        (("version",), "--version"),
    ],
)
def test_a_command_with_a_slip_of_the_pen_is_no_image(
    words: tuple[str, ...], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(in_process(*words), 2, f"{words[0]}: neither a command nor an image", f"; did you mean {meant}?")


def test_an_image_whose_name_is_like_a_commands_is_mounted(small_image: Path, tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "mont").symlink_to(small_image)
    result = mystfuse("mont", mountpoint, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert mystfuse("umount", mountpoint).returncode == 0


def test_a_missing_image_is_reported_as_a_file(tmp_path: Path) -> None:
    for words in (tmp_path / "app.img", tmp_path), (tmp_path / "mount", tmp_path):
        assert_one_line(in_process(*words), 1, f"{words[0]}: No such file")


# Empty arguments


@pytest.mark.parametrize(
    "words",
    [
        ("mount", "", "m"),
        ("mount", "IMAGE", ""),
        ("mount", "--log-file=", "IMAGE", "m"),
        ("mount", "--overlay-store=", "IMAGE", "m"),
        ("mount", "-o", "log_file=", "IMAGE", "m"),
        ("mount", "-o", "roothash=", "IMAGE", "m"),
        ("umount", ""),
        ("status", ""),
        ("commit", "m", ""),
        ("mkext2", "", "out"),
        ("mkext2", ".", ""),
        ("package", "", "config"),
        ("package", "-o", "", "key", "config"),
        ("extract", "IMAGE", "/", ""),
        ("verify", ""),
        ("fssig", ""),
        ("ls", ""),
        ("ls", "IMAGE", ""),
        ("cat", "IMAGE", ""),
        ("tar", "IMAGE", ""),
        ("extract", "IMAGE", "", "out"),
        ("exec", "", "true"),
        ("exec", "IMAGE", ""),
        ("run", ""),
    ],
)
def test_an_empty_argument_is_named(
    small_image: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = in_process(*(small_image if word == "IMAGE" else word for word in words))
    assert_one_line(result, 2, "empty (a variable that is not set?)")
    assert not os.listdir(tmp_path)


# Other names


@pytest.mark.parametrize(
    ("option", "meant"), [("alow_other", "allow_other"), ("readonly", "read_only"), ("keyfil=x", "keyfile"), ("x", "")]
)
def test_a_mount_option_with_a_slip_of_the_pen(small_image: Path, tmp_path: Path, option: str, meant: str) -> None:
    result = in_process("mount", "-o", option, small_image, tmp_path)
    assert_one_line(result, 2, f"-o {option}: no such mount option", f"did you mean {meant}?" if meant else "")
    assert ("did you mean" in result.stderr) == bool(meant)


def test_a_directory_that_is_not_there_is_named(small_tree: Path, small_image: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for words in (("mkext2", small_tree, missing / "out"), ("extract", small_image, "/hello.txt", missing / "out")):
        result = in_process(*words)
        assert result.returncode == 1 and f"there is no directory {missing}\n" in result.stderr, result.stderr


# exec


def test_exec_takes_what_other_programs_have_before_a_command(small_image: Path) -> None:
    assert_one_line(in_process("exec", small_image, "--"), 2, "PROGRAM is missing behind --")
    assert_one_line(
        in_process("exec", small_image, "--no-network", "true"), 2, "--no-network: options come before IMAGE"
    )
    for words in ("--", "nothing"), ("--", "--nothing"), ("nothing",):
        result = mystfuse("exec", small_image, *words)
        assert result.returncode == 127 and f"{words[-1]}: not found in the image" in result.stderr, result.stderr


def test_a_link_to_nothing_as_a_target_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to("nothing/there")
    assert in_process("mkext2", tmp_path / "source", tmp_path / "image").returncode == 0
    for target in "/link", "/link/below":
        result = mystfuse("exec", "--mount", f"{tmp_path}={target}", tmp_path / "image", "/true")
        assert result.returncode == 7, result.stderr
        assert f"{target}: a link in the image that leads to nothing" in result.stderr


# Files that are not images


def test_insecure_is_suggested_for_nothing(tmp_path: Path) -> None:
    program, file_system, luks, empty = (tmp_path / name for name in ("program", "file-system", "luks", "empty"))
    program.write_bytes(os.urandom(1 << 16).replace(b"\x53\xef", b""))
    file_system.write_bytes(bytes(1 << 20))
    run("mke2fs", "-qFt", "ext2", file_system)
    luks.write_bytes(b"LUKS\xba\xbe\0\1" + bytes(1 << 16))
    empty.write_bytes(b"")
    for command in "verify", "ls", "fssig":
        for path in program, empty, file_system, luks:
            result = in_process(command, path)
            assert_one_line(result, 6, str(path))
            assert "--insecure" not in result.stderr
        assert_one_line(in_process(command, file_system), 6, "an EXT2 file system (1 MiB) without a hash tree")
        assert_one_line(in_process(command, luks), 6, "a detached LUKS1 header")


# Mounts


@contextmanager
def stopped(mountpoint: Path) -> Iterator[None]:
    """The daemon of a mount is stopped until the block ends."""
    mount = find_mount(str(mountpoint))
    assert mount is not None
    daemon = find_daemon(mount)
    assert daemon is not None
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    try:
        yield
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGCONT)
        os.close(daemon)


def test_mounting_twice_is_reported_without_looking_into_the_mount(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        with stopped(mountpoint):
            result = mystfuse("mount", small_image, mountpoint, timeout=20)
        assert_one_line(result, 7, f"{mountpoint}: {small_image} is already mounted there")
        assert mystfuse("mount", "-o", "nonempty", small_image, mountpoint).returncode == 0
        assert mystfuse("umount", mountpoint).returncode == 0


def test_umount_asks_nothing_of_a_mount_that_hangs(small_image: Path, mountpoint: Path) -> None:
    """Not even attributes that the kernel does not know yet."""
    with mounted(small_image, mountpoint), stopped(mountpoint):
        result = mystfuse("umount", "--lazy", "--timeout=0.1", mountpoint, timeout=20)
        assert_one_line(result, 7, "unmounted, but still in use: its daemon has not ended")


@contextmanager
def using(code: str, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has run a function inside a mount, until the block ends."""
    program = f"import mmap, os, sys, time; {code}; print(flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.chdir(sys.argv[1])", "its current directory"),
        ("f = open(sys.argv[1] + '/hello.txt')", "/hello.txt is open"),
        (
            "f = open(sys.argv[1] + '/hello.txt'); m = mmap.mmap(f.fileno(), 6, prot=1); os.closerange(3, 50)",
            "is mapped",
        ),
    ],
)
def test_a_busy_mount_names_its_users(small_image: Path, mountpoint: Path, code: str, said: str) -> None:
    with mounted(small_image, mountpoint), using(code, mountpoint) as process:
        result = mystfuse("umount", mountpoint)
        assert_one_line(result, 7, f"{mountpoint}: in use by process {process.pid} (", said, "--lazy")
        # Neither our keeper, which has the directory under the mount open, nor paths that only look alike.
        assert result.stderr.count("process ") == 1, result.stderr


def test_a_busy_mount_that_hangs_is_not_asked(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint), using("os.chdir(sys.argv[1])", mountpoint) as process:
        with stopped(mountpoint):
            result = mystfuse("umount", mountpoint, timeout=20)
        assert_one_line(result, 7, f"process {process.pid} (")


def test_a_mount_below_is_named(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        run("mount", "-t", "tmpfs", "below", mountpoint / "sub")
        try:
            result = mystfuse("umount", mountpoint)
        finally:
            run("umount", mountpoint / "sub")
        assert_one_line(result, 7, f"{mountpoint}/sub is mounted below it: unmount that first")


def test_other_paths_than_mountpoints_are_named(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    with mounted(small_image, mountpoint):
        for words in ("umount",), ("status",), ("commit",):
            more = (tmp_path / "new",) if words[0] == "commit" else ()
            inside = in_process(*words, mountpoint / "sub/deep", *more)
            assert_one_line(inside, 7, f"it lies in what is mounted on {mountpoint}")
            image = in_process(*words, small_image, *more)
            assert_one_line(image, 7, f"it is the image that is mounted on {mountpoint}")


def test_another_users_mount_is_named(small_image: Path, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    with mounted(small_image, open_tmp_path / "mount", "--allow-other") as mountpoint:
        result = run(*ordinary_user, "umount", mountpoint, check=False)
        assert_one_line(result, 7, "user 0 has mounted it")

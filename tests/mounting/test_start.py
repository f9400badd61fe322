"""How commands start: with closed standard descriptors, with little memory, in an environment that misleads Python."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mystfuse.cli import start
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system.memory import group_limit
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import clear_mount, daemon_pid
from tests.support.processes import keeper_of

SCRIPT = Path(sys.executable).with_name("mystfuse")
PROGRAMS = Path(__file__).parents[2] / "bin"
CLOSED = list(product((False, True), repeat=3))
"""Each subset of descriptors 0 to 2."""


def closing(closed: tuple[bool, ...]) -> Callable[[], None]:
    """A ``preexec_fn`` that closes these descriptors."""

    def close() -> None:
        for number in range(3):
            if closed[number]:
                os.close(number)

    return close


# Standard descriptors


@pytest.mark.parametrize("how", ["foreground", "background"])
def test_mounts_with_each_choice_of_closed_descriptors(how: str, small_image: Path, tmp_path: Path) -> None:
    """The 8 mounts start side by side: each answers, and daemon and keeper have /dev/null for each closed
    descriptor."""
    places = [tmp_path / "".join("cC"[is_closed] for is_closed in closed) for closed in CLOSED]
    processes = []
    try:
        for closed, place in zip(CLOSED, places, strict=True):
            place.mkdir()
            command = [sys.executable, "-m", "mystfuse", "mount", *(["-f"] if how == "foreground" else [])]
            processes.append(
                subprocess.Popen(
                    [*command, small_image, place],
                    stdin=subprocess.PIPE,
                    stdout=(tmp_path / "out").open("wb"),
                    stderr=(tmp_path / "err").open("wb"),
                    preexec_fn=closing(closed),
                )
            )
        for closed, place, process in zip(CLOSED, places, processes, strict=True):
            if how == "background":
                assert process.wait(60) == 0, closed
            wait_until(lambda place=place: (place / "hello.txt").exists(), 60)  # type: ignore[misc]
            assert (place / "hello.txt").read_text() == "hello\n", closed
            pid = daemon_pid(place)
            for number in range(3):
                if closed[number] or how == "background":
                    assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null", (closed, number)
                assert os.readlink(f"/proc/{keeper_of(pid)}/fd/{number}") == "/dev/null", (closed, number)
            assert mystfuse("umount", place).returncode == 0, closed
            assert process.wait(60) == 0, closed
    finally:
        for place, process in zip(places, processes, strict=False):
            clear_mount(place)
            process.kill()
            process.communicate()


def test_files_of_python_are_the_descriptors_themselves() -> None:
    """A daemon closes all descriptors above 2: if sys.stderr were one of those, other files would get its number
    later."""
    code = (
        "import fcntl, os, sys; from mystfuse.cli.start import open_standard_descriptors; open_standard_descriptors()\n"
        "numbers = [file.fileno() for file in (sys.stdin, sys.stdout, sys.stderr)]\n"
        "modes = [fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE for number in numbers]\n"
        "sys.exit((numbers, modes) != ([0, 1, 2], [os.O_RDONLY, os.O_WRONLY, os.O_WRONLY]))"
    )
    assert run(sys.executable, "-c", code, check=False, preexec_fn=closing((True, True, True))).returncode == 0


@pytest.fixture
def words(
    small_image: Path, small_tree: Path, make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> dict[str, list[Any]]:
    """Every command's name and arguments."""
    public, private = make_keys("start")
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/true"}')
    (tmp_path / "tree/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tmp_path / "tree/bin/true")
    (tmp_path / "mount").mkdir()
    for arguments in (
        ("mkext2", tmp_path / "tree", tmp_path / "root.img"),
        ("package", "--pubkey", public, "-o", tmp_path / "package", private, tmp_path / "config.json"),
        ("mkext2", "--force", "--sign", f"{public}:{private}", tmp_path / "tree", tmp_path / "signed.img"),
    ):
        assert mystfuse(*arguments).returncode == 0
    return {
        "ls": ["ls", small_image],
        "cat": ["cat", small_image, "hello.txt"],
        "tar": ["tar", small_image],
        "extract": ["extract", small_image, "/", tmp_path / "extracted"],
        "verify": ["verify", small_image],
        "fssig": ["fssig", small_image],
        "mkext2": ["mkext2", small_tree, tmp_path / "made"],
        "package": ["package", "--pubkey", public, "-o", tmp_path / "packed", private, tmp_path / "config.json"],
        "sign": ["sign", "--sign", f"{public}:{private}", tmp_path / "signed.img"],
        "mount": [small_image, tmp_path / "mount"],
        "status": ["status", tmp_path / "mount"],
        "commit": ["commit", tmp_path / "mount", tmp_path / "committed"],
        "umount": ["umount", tmp_path / "mount"],
        "exec": ["exec", tmp_path / "root.img", "/bin/true"],
        "run": ["run", "--rootfs", tmp_path / "signed.img", tmp_path / "package"],
        "--version": ["--version"],
    }  # fmt: skip


def test_every_command_with_all_of_them_closed(words: dict[str, list[Any]], tmp_path: Path) -> None:
    everything, package = closing((True, True, True)), words["run"][-1]
    environment = {"PATH": f"{SCRIPT.parent}:{os.environ['PATH']}", "MYST_ROOTFS": str(tmp_path / "signed.img")}
    try:
        for name, arguments in words.items():
            result = mystfuse(*arguments, preexec_fn=everything)
            assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), name
        for command in ([SCRIPT, "ls", words["ls"][1]], [package], [f"{SCRIPT.parent}/mount.mystfuse", "-V"]):
            assert run(*command, env=environment, preexec_fn=everything, check=False).returncode == 0, command
    finally:
        clear_mount(tmp_path / "mount")
    for made in ("extracted/hello.txt", "made", "packed", "committed"):
        assert (tmp_path / made).stat().st_size, made
    for image in "made", "committed":
        assert mystfuse("verify", tmp_path / image).returncode == 0


API = """
import os, sys
import mystfuse
os.close(0), os.close(1), os.close(2)
with mystfuse.mount(sys.argv[1], sys.argv[2], key=bytes(range(64)), trust="self") as m:
    text = (m.mountpoint / "hello.txt").read_text()
os._exit(0 if text == "hello\\n" else 1)
"""


def test_the_interface_in_a_program_that_has_closed_them(small_tree: Path, mountpoint: Path, tmp_path: Path) -> None:
    """Without care, the key's pipe would get the number of a standard descriptor."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(bytes(range(64)))
    assert mystfuse("mkext2", "--encrypt", tmp_path / "key", small_tree, tmp_path / "image").returncode == 0
    assert run(sys.executable, "-c", API, tmp_path / "image", mountpoint, check=False).returncode == 0
    assert find_mount(str(mountpoint)) is None


# Memory


def limited(kind: int, megabytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (megabytes << 20, megabytes << 20))


def test_little_memory_is_one_line_for_every_command(words: dict[str, list[Any]], tmp_path: Path) -> None:
    for name, arguments in words.items():
        result = mystfuse(*arguments, preexec_fn=limited(resource.RLIMIT_AS, 62))
        assert_one_line(result, 1, "needs at least 96 MB of address space to start, and may have 62 (ulimit -v)"), name
    for megabytes in (24, 40, 57, 66, 95):
        assert_one_line(mystfuse("--help", preexec_fn=limited(resource.RLIMIT_AS, megabytes)), 1, f"{megabytes} (ulim")
    assert_one_line(mystfuse("--help", preexec_fn=limited(resource.RLIMIT_DATA, 13)), 1, "80 MB of data", "(ulimit -d)")
    helper = run(SCRIPT.with_name("mount.mystfuse"), "-V", check=False, preexec_fn=limited(resource.RLIMIT_AS, 62))
    assert_one_line(helper, 2, "ulimit -v")
    assert find_mount(str(tmp_path / "mount")) is None


@pytest.mark.parametrize("kind, least", [(resource.RLIMIT_AS, 96), (resource.RLIMIT_DATA, 80)], ids=["AS", "DATA"])
def test_what_is_stated_is_enough_to_end_in_order(
    kind: int, least: int, words: dict[str, list[Any]], small_tree: Path, tmp_path: Path
) -> None:
    """On a machine with many processors, threads may be too many; no library may end us by a signal."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(os.urandom(64))
    secret, opening = tmp_path / "secret", ("--key-file", tmp_path / "key")
    for arguments in (
        ("mkext2", "--encrypt", tmp_path / "key", small_tree, secret), ("ls", *opening, secret),
        ("mount", *opening, secret, tmp_path / "mount"), ("umount", tmp_path / "mount"), words["package"],
        ("verify", "--pubkey", words["package"][2], tmp_path / "signed.img"),
    ):  # fmt: skip
        result = mystfuse(*arguments, preexec_fn=limited(kind, least))
        said = [line for line in result.stderr.splitlines() if "warning: " not in line]
        assert (result.returncode, said) == (0, []) or (result.returncode == 1 and "thread" in said[0]), said


def test_a_small_control_group_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (groups / "above/ours").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/above/ours\n")
    (groups / "above/ours/memory.max").write_text("max\n")
    assert group_limit(proc, groups) is None
    (groups / "above/memory.max").write_text(f"{32 << 20}\n")
    assert group_limit(proc, groups) == 32 << 20
    for megabytes, is_enough in ((39, False), (40, True)):
        monkeypatch.setattr("mystfuse.system.memory.group_limit", lambda megabytes=megabytes: megabytes << 20)
        message = start.too_little_memory()
        assert (message is None) == is_enough and (is_enough or "may have 39 (memory.max)" in str(message))


# The caller's Python environment


@pytest.fixture
def traps(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory of modules that no command may import, and an environment that makes Python import them."""
    directory = tmp_path / "traps"
    directory.mkdir()
    for name in ("click", "trio", "sitecustomize", "usercustomize", "startup", "re", "mystfuse"):
        (directory / f"{name}.py").write_text(f"import os; os.write(2, b'TRAPPED by {name}\\n'); os._exit(99)\n")
    return directory, {
        "PYTHONPATH": f"{directory}:.", "PYTHONHOME": str(directory), "PYTHONSTARTUP": str(directory / "startup.py"),
        "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error", "PYTHONUSERBASE": str(directory), "PYTHONVERBOSE": "1",
        "PYTHONBREAKPOINT": "startup.main", "PYTHONPLATLIBDIR": "nowhere",
    }  # fmt: skip


def test_the_callers_environment_does_not_decide_what_runs(
    traps: tuple[Path, dict[str, str]], small_image: Path, mountpoint: Path
) -> None:
    directory, environment = traps
    for name, value in environment.items():
        result = run(SCRIPT, "--version", env={name: value}, cwd=directory, stdin=subprocess.DEVNULL, check=False)
        assert (result.returncode, result.stderr) == (0, ""), name
    helper = SCRIPT.with_name("mount.mystfuse")
    # By another name, as PREFIX/bin/mystfuse and /sbin/mount.mystfuse are.
    (directory / "linked").symlink_to(helper)
    for command in ([SCRIPT, "mount"], [helper], [directory / "linked"]):
        trust = ["-o", "trust_self"]
        result = run(*command, small_image, mountpoint, *trust, env=environment, cwd=directory, check=False)
        try:
            assert result.returncode == 0 and "TRAPPED" not in result.stderr, result.stderr
            assert (mountpoint / "hello.txt").read_text() == "hello\n"
        finally:
            clear_mount(mountpoint)


def test_a_relative_path_of_a_current_directory_that_is_gone(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd '{tmp_path / 'gone'}' && rmdir '{tmp_path / 'gone'}' && exec '{SCRIPT}' ls '{small_image}'"
    assert "hello.txt" in run("sh", "-c", command, env={"PYTHONPATH": "lib:."}).stdout


def test_a_key_in_the_options_starts_us_again_as_isolated(
    traps: tuple[Path, dict[str, str]], small_tree: Path, mountpoint: Path, tmp_path: Path
) -> None:
    directory, environment = traps
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(bytes(range(64)))
    assert mystfuse("mkext2", "--encrypt", tmp_path / "key", small_tree, tmp_path / "image").returncode == 0
    options = ["-o", f"trust_self,key={bytes(range(64)).hex()}"]
    helper = SCRIPT.with_name("mount.mystfuse")
    result = run(helper, tmp_path / "image", mountpoint, *options, env=environment, cwd=directory, check=False)
    assert result.returncode == 0 and "TRAPPED" not in result.stderr
    words = Path(f"/proc/{daemon_pid(mountpoint)}/cmdline").read_bytes().split(b"\0")
    assert b"-I" in words and not any(bytes(range(64)).hex().encode() in word for word in words)


def test_the_interface_imports_nothing_from_the_current_directory(
    traps: tuple[Path, dict[str, str]], small_image: Path, mountpoint: Path
) -> None:
    """The program's own environment stays as it is; but for -m, Python must not put the current directory into the
    path."""
    code = (
        "import sys; sys.path.remove(''); import mystfuse\n"
        "with mystfuse.mount(*sys.argv[1:], trust='self') as m: print((m.mountpoint / 'hello.txt').read_text())"
    )
    assert run(sys.executable, "-c", code, small_image, mountpoint, cwd=traps[0]).stdout == "hello\n\n"


def test_what_is_installed_is_what_is_here() -> None:
    for name in "mystfuse", "mount.mystfuse":
        first, rest = SCRIPT.with_name(name).read_text().split("\n", 1)
        assert first in ("#!/bin/sh", f"#!{SCRIPT.with_name('python3')} -I")
        assert rest == (PROGRAMS / name).read_text().partition("\n")[2]


def test_as_pip_installs_them(traps: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """The scripts are run by sh and start the Python beside them, also through a link; without one, the Python in
    PATH."""
    directory, environment = traps
    prefix = tmp_path / "a prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/python3").symlink_to(SCRIPT.with_name("python3").resolve())
    (prefix / "lib").symlink_to(SCRIPT.parents[1] / "lib")
    shutil.copy(SCRIPT.parents[1] / "pyvenv.cfg", prefix)
    (tmp_path / "alone").mkdir()
    for name, words in ("mystfuse", ["--version"]), ("mount.mystfuse", ["-V"]):
        shutil.copy(PROGRAMS / name, prefix / "bin" / name)
        shutil.copy(PROGRAMS / name, tmp_path / "alone" / name)
        (tmp_path / name).symlink_to(prefix / "bin" / name)
        environment["PATH"] = f"{SCRIPT.parent}:{os.environ['PATH']}"
        for place in prefix / "bin", tmp_path, tmp_path / "alone":
            result = run(place / name, *words, env=environment, cwd=directory, check=False)
            assert result.returncode == 0 and "mystfuse" in result.stdout and result.stderr == "", place


def test_children_that_the_caller_ignores_are_waited_for(tmp_path: Path) -> None:
    """Some supervisors start programs with SIGCHLD ignored: mke2fs's failure went unnoticed, and exec hung."""
    (tmp_path / "mke2fs").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "mke2fs").chmod(0o755)
    (tmp_path / "tree").mkdir()
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'mystfuse', *sys.argv[1:]])"
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = run(
        sys.executable, "-c", code, "mkext2", tmp_path / "tree", tmp_path / "image", env=environment, check=False
    )
    assert_one_line(result, 1, "mke2fs failed")

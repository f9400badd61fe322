"""``mystfuse exec``: programs from an image, as root and as an ordinary user, and that nothing is left of them."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, mystfuse, run, wait_until

APPLETS = (
    "sh", "ls", "cat", "sleep", "echo", "ps", "env", "pwd", "touch", "wc", "true", "stty", "ifconfig", "rm", "id",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: busybox, C programs, python3 with what it needs, scripts good and bad."""
    root = tmp_path_factory.mktemp("root") / "tree"
    for name in "bin", "root", "etc", "usr/bin", "work":
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    source = root.parent / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello from C"); return 3; }\n')
    run("gcc", "-static", "-o", root / "bin/static", source)
    run("gcc", "-o", root / "bin/dynamic", source)
    libraries: set[str] = set()
    for program in root / "bin/dynamic", Path("/usr/bin/python3").resolve():
        libraries |= set(re.findall(r"(/\S+) \(0x", run("ldd", program).stdout))
    for library in libraries:
        target = root / library[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    version = f"python3.{run('/usr/bin/python3', '-c', 'import sys; print(sys.version_info.minor)').stdout.strip()}"
    shutil.copy(Path("/usr/bin/python3").resolve(), root / "usr/bin/python3")
    ignored = shutil.ignore_patterns(
        "__pycache__", "test*", "idlelib", "config-*", "dist-packages", "tkinter", "lib2to3"
    )
    shutil.copytree(f"/usr/lib/{version}", root / "usr/lib" / version, ignore=ignored, symlinks=True)
    without_loader = root / "bin/without-loader"
    without_loader.write_bytes((root / "bin/dynamic").read_bytes().replace(b"/lib64/ld-", b"/nope6/ld-"))
    foreign = bytearray((root / "bin/static").read_bytes())
    foreign[18:20] = struct.pack("<H", 8)  # MIPS
    (root / "bin/foreign").write_bytes(foreign)
    (root / "bin/script").write_text('#!/bin/sh\necho "script $1"\nexit 4\n')
    (root / "bin/no-interpreter").write_text("#!/usr/bin/perl5\n")
    (root / "bin/no-line").write_text("echo hello\n")
    (root / "bin/cut").write_bytes(b"\x7fELF\2\1")
    for name in "without-loader", "foreign", "script", "no-interpreter", "no-line", "cut":
        (root / "bin" / name).chmod(0o755)
    (root / "bin/plain").write_text("#!/bin/sh\n")
    (root / "etc/marker").write_text("from the image\n")
    (root / "dangling").symlink_to("/nowhere/at/all")
    return root


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of ``tree``. Never write to it."""
    path = tmp_path_factory.mktemp("image") / "root.img"
    assert mystfuse("mkext2", tree, path).returncode == 0
    return path


def run_in(image: Path, *command: str, options: tuple[str | Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    return mystfuse("exec", *options, image, *command, timeout=60)


def output(image: Path, *command: str, options: tuple[str | Path, ...] = ()) -> str:
    result = run_in(image, *command, options=options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "command, status, said",
    [
        (("true",), 0, ""),
        (("/bin/static",), 3, "hello from C\n"),
        (("dynamic",), 3, "hello from C\n"),
        (("script", "an argument"), 4, "script an argument\n"),
        (("/usr/bin/python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(9)", "-o", "--x"),
         9, '["-o", "--x"]\n'),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
    ],
    ids=["true", "static", "dynamic", "script", "python3", "killed", "terminated"],
)  # fmt: skip
def test_the_exit_status_is_the_programs(image: Path, command: tuple[str, ...], status: int, said: str) -> None:
    result = run_in(image, *command)
    assert (result.returncode, result.stdout) == (status, said), result.stderr


@pytest.mark.parametrize(
    "program, status, because",
    [
        ("nope", 127, "not found in the image"),
        ("/bin/nope", 127, "no such program"),
        ("/bin/sh/x", 127, "no such program"),
        ("bin/nope", 127, "no such program"),
        ("without-loader", 127, "its loader /nope6/ld-"),
        ("no-interpreter", 127, "its interpreter /usr/bin/perl5"),
        ("plain", 126, "not executable (mode 0644)"),
        ("/bin", 126, "is a directory"),
        ("no-line", 126, "neither a program nor a script"),
        ("foreign", 126, "another machine"),
        ("cut", 126, "broken ELF"),
    ],
)
def test_what_cannot_be_executed_is_told_in_one_line(image: Path, program: str, status: int, because: str) -> None:
    result = run_in(image, program)
    assert result.returncode == status
    lines = [line for line in result.stderr.splitlines() if "trusted by nobody" not in line]
    assert len(lines) == 1 and because in lines[0], result.stderr


def test_a_hundred_megabytes_go_through(image: Path) -> None:
    with subprocess.Popen(["head", "-c", "100M", "/dev/urandom"], stdout=subprocess.PIPE) as source:
        digest = hashlib.sha256()
        with subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "exec", image, "cat"], stdin=source.stdout, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            count = 0
            while data := program.stdout.read(1 << 20):
                digest.update(data)
                count += len(data)
    assert program.returncode == 0 and count == 100 << 20


def test_the_program_is_alone_with_the_image(image: Path) -> None:
    assert output(image, "cat", "/etc/marker") == "from the image\n"
    assert len(output(image, "ps").splitlines()) == 3
    assert output(image, "pwd") == "/\n"
    assert output(image, "pwd", options=("--cwd", "/work")) == "/work\n"
    assert output(image, "sh", "-c", "echo x > /tmp/x && ls /tmp && ls /dev | wc -l && cat /proc/1/comm").startswith(
        "x\n"
    )
    hidden = output(image, "sh", "-c", f"test -e {Path(__file__)} || echo hidden")
    assert hidden == "hidden\n"
    ours = os.readlink("/proc/self/ns/ipc")
    assert output(image, "ls", "-l", "/proc/self/ns/ipc").split()[-1] != ours


def test_it_runs_where_few_processes_are(image: Path) -> None:
    """As in a container: no process has the numbers that bubblewrap's have in their own namespace."""
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    result = run(*alone, sys.executable, "-m", "mystfuse", "exec", image, "/bin/sh", "-c", "echo $$", check=False)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


def test_the_environment_is_what_is_said(image: Path) -> None:
    os.environ["MYSTFUSE_TEST_SECRET"] = "not to be seen"
    try:
        seen = output(image, "env").splitlines()
        assert {line.partition("=")[0] for line in seen} <= {"PATH", "HOME", "TERM", "LANG", "TZ", "PWD"}
        passed = output(
            image, "env", options=("--env", "MYSTFUSE_TEST_SECRET", "--env", "A=b=c", "--env", "E=")
        ).splitlines()
        assert {"MYSTFUSE_TEST_SECRET=not to be seen", "A=b=c", "E="} <= set(passed)
    finally:
        del os.environ["MYSTFUSE_TEST_SECRET"]
    assert run_in(image, "env", options=("--env", "=x")).returncode == 2
    assert run_in(image, "pwd", options=("--cwd", "work")).returncode == 2


def test_the_network_is_the_hosts_unless_told_otherwise(image: Path) -> None:
    assert output(image, "ls", "-l", "/proc/self/ns/net").split()[-1] == os.readlink("/proc/self/ns/net")
    assert output(image, "ifconfig", "-a", options=("--no-network",)).count("Link encap") == 1


def test_writes_are_forgotten(image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).digest()
    assert output(image, "sh", "-c", "echo new > /work/new; rm /etc/marker; cat /work/new") == "new\n"
    assert output(image, "ls", "/work") == ""
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_directories_and_images_are_mounted(image: Path, small_tree: Path, small_image: Path, tmp_path: Path) -> None:
    key, encrypted, host = tmp_path / "key", tmp_path / "encrypted.img", tmp_path / "host"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(64))
    assert mystfuse("mkext2", "--encrypt", key, small_tree, encrypted).returncode == 0
    host.mkdir()
    (host / "file").write_text("of the host\n")
    options: tuple[str | Path, ...] = (
        "--mount", f"{host}=/made/for/it", "--mount", f"{small_image}=/data,ro",
        "--mount", f"{encrypted}=/work/secret,keyfile={key}", "--mount", f"{host}=/tmp/host",
    )  # fmt: skip
    script = (
        "cat /made/for/it/file /data/hello.txt /work/secret/hello.txt /tmp/host/file; echo new > /made/for/it/new;"
        "echo new > /work/secret/new && touch /data/new || echo read-only"
    )
    result = run_in(image, "sh", "-c", script, options=options)
    assert result.stdout == "of the host\nhello\nhello\nof the host\nread-only\n", result.stderr
    assert (host / "new").read_text() == "new\n"
    assert run_in(image, "true", options=("--mount", f"{encrypted}=/work")).returncode == 5
    root_hash = mystfuse("fssig", "--roothash", image).stdout.strip()
    assert run_in(image, "true", options=("--mount", f"{small_image}=/data,roothash={root_hash}")).returncode == 3


@pytest.mark.parametrize(
    "text, status",
    [("/usr", 2), ("/usr=", 2), ("/usr=relative", 2), ("/nowhere=/x", 1), ("/usr=/proc/x", 7), ("/usr=/dev", 7),
     ("/usr=/", 7), ("/usr=/etc/marker/x", 7), ("/usr=/x,keyfile=k", 2), ("/usr=/x,ro,rw", 2),
     ("/etc/passwd=/etc", 7), ("/etc/passwd=/proc/x", 7), ("/etc/passwd=/", 7), ("/etc/passwd=/etc/marker/x", 7),
     ("/etc/passwd=/dangling", 7), ("/dev/null=/x", 6)],
)  # fmt: skip
def test_mounts_that_cannot_be(image: Path, text: str, status: int) -> None:
    result = run_in(image, "true", options=("--mount", text))
    assert result.returncode == status, result.stderr
    assert len([line for line in result.stderr.splitlines() if ": warning: " not in line]) == 1, result.stderr


def test_single_files_are_mounted(image: Path, small_image: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.write_text("of the host\n")
    options: tuple[str | Path, ...] = (
        "--mount", f"{host}=/etc/marker,rw", "--mount", f"{host}=/top", "--mount", f"{host}=/made/for/it,ro",
        "--mount", f"{host}=/tmp/file",
        "--mount", f"{tmp_path}=/dir,ro", "--mount", f"{tmp_path}=/dir-rw,rw", "--mount", f"{small_image}=/image,ro",
    )  # fmt: skip
    script = (
        "cat /etc/marker /top /made/for/it /tmp/file /dir/host /image/hello.txt;"
        "echo x >> /made/for/it || echo ro; touch /dir/new || echo ro; touch /dir-rw/new; echo new >> /etc/marker"
    )
    result = run_in(image, "sh", "-c", script, options=options)
    assert result.stdout == "of the host\n" * 5 + "hello\nro\nro\n", result.stderr
    assert host.read_text() == "of the host\nnew\n" and (tmp_path / "new").exists()


def test_what_is_no_image_any_more_cannot_be_written_to_by_mistake(
    image: Path, small_image: Path, tmp_path: Path
) -> None:
    """A carrier can make a file of an image that is named without a word more: it is told, and not changed."""
    cut = tmp_path / "cut"
    cut.write_bytes(bytes(4096) + small_image.read_bytes()[4096:-4096])
    before = cut.read_bytes()
    result = run_in(image, "sh", "-c", "echo x >> /data || echo refused", options=("--mount", f"{cut}=/data"))
    assert result.stdout == "refused\n" and f"warning: {cut} is no image: /data is the file as it is" in result.stderr
    assert cut.read_bytes() == before


def test_a_link_of_another_user_is_not_followed_by_root(image: Path, open_tmp_path: Path) -> None:
    (open_tmp_path / "victim").mkdir()
    (open_tmp_path / "out").symlink_to(open_tmp_path / "victim")
    assert run_in(image, "true", options=("--mount", f"{open_tmp_path}/out=/out")).returncode == 0
    os.lchown(open_tmp_path / "out", USER, GROUP)
    result = run_in(image, "true", options=("--mount", f"{open_tmp_path}/out=/out"))
    assert result.returncode != 0 and "link" in result.stderr, result


@pytest.mark.parametrize("damage", ["fssig", "nothing but it", "LUKS"])
def test_what_looks_like_an_image_is_not_shown_as_a_file(
    image: Path, small_image: Path, tmp_path: Path, damage: str
) -> None:
    """Damaged, it is refused as before: nobody takes what is in it for something that was verified."""
    data = bytearray(small_image.read_bytes())
    if damage == "fssig":
        del data[-4096:]
    elif damage == "LUKS":
        data = bytearray(b"LUKS\xba\xbe") + bytes(5000)
    else:
        data[:-4096] = bytes(len(data) - 4096)
    (tmp_path / "damaged").write_bytes(data)
    result = run_in(image, "cat", "/x", options=("--mount", f"{tmp_path / 'damaged'}=/x"))
    assert result.returncode in (4, 6) and result.stdout == "", result


def test_a_link_in_the_image_leads_nowhere_outside(tree: Path, tmp_path: Path) -> None:
    """Where to mount and what to run are resolved inside the image, as the program sees it."""
    victim, hostile = tmp_path / "victim", tmp_path / "hostile"
    victim.mkdir()
    shutil.copytree(tree / "bin", hostile / "bin", symlinks=True)
    (hostile / "away").symlink_to(victim)
    (hostile / "up").symlink_to("../../../.." + str(victim))
    (hostile / "bin/out").symlink_to("/../../usr/bin/env")
    image = tmp_path / "hostile.img"
    assert mystfuse("mkext2", hostile, image).returncode == 0
    for target in "/away/x", "/up/x":
        result = run_in(image, "true", options=("--mount", f"/usr/bin={target}"))
        assert result.returncode in (0, 7)
        assert list(victim.iterdir()) == []
    assert run_in(image, "out").returncode == 127


def test_nobody_is_trusted_who_is_not(image: Path) -> None:
    assert run_in(image, "true", options=("--roothash", "ab" * 32)).returncode == 3


# Signals and terminals


def processes_of(image: Path) -> list[int]:
    """All processes that belong to an ``exec`` of this image, by their command lines, or being below one that does."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.fsencode(image) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        found += [int(child) for child in children if int(child) not in found]
    return found


def comms_of(image: Path) -> list[str]:
    """What those processes call themselves, the deepest last."""
    names: list[str] = []
    for pid in processes_of(image):
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def start(image: Path, *command: str, **kwargs: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "exec", image, *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **kwargs,  # type: ignore[call-overload]
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def names_in_tmp() -> set[str]:
    """What is called as what mystfuse makes, but for the tests' own."""
    names = set(os.listdir("/tmp")) | set(os.listdir("/mnt"))
    return {name for name in names if name.startswith("mystfuse") and "test" not in name}


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


SLEEPING = ("sh", "-c", "echo ready; sleep 1000; true")


def test_a_signal_is_handed_on(image: Path) -> None:
    with start(image, "sh", "-c", 'trap "exit 7" TERM; echo ready; while true; do sleep 0.1; done') as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 7
    with start(image, *SLEEPING) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 128 + signal.SIGHUP
    assert processes_of(image) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_comes_before_the_program_is_handed_on_to_it(
    number: signal.Signals, image: Path, tmp_path: Path
) -> None:
    wrapper = tmp_path / "bwrap"
    wrapper.write_text(f'#!/bin/sh\necho > {tmp_path}/begun; sleep 0.5; exec {shutil.which("bwrap")} "$@"\n')
    wrapper.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "exec", image, "/bin/sh", "-c", "exec sleep 1000"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    try:
        wait_until((tmp_path / "begun").exists)
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.wait()


def test_nothing_is_left_whoever_is_killed(image: Path) -> None:
    names: list[str] = []
    index = 0
    while True:
        before = names_in_tmp()
        with start(image, *SLEEPING) as process:
            # A shell that has forked is still called "sh" in the child, until that runs "sleep".
            wait_until(lambda: len(chain := processes_of(image)) >= 7 and name_of(chain[-1]) == "sleep")
            # The daemon's keeper can be killed without anybody noticing: the mount is gone with the namespace.
            (keeper,) = (pid for pid in processes_of(image) if name_of(pid) == "mystfuse:keeper")
            chain = [pid for pid in processes_of(image) if pid != keeper]
            if index % 2:
                os.kill(keeper, signal.SIGKILL)
            if index == len(chain):
                process.terminate()
                process.wait(20)
                break
            names.append(name_of(chain[index]))
            os.kill(chain[index], signal.SIGKILL)
            status = process.wait(20)
            assert status != 0 or names[-1] == "sleep"
            wait_until(lambda: processes_of(image) == [])
        assert os.fsencode(image) not in Path("/proc/self/mountinfo").read_bytes()
        # Tests beside this one make such directories too, which do not stay.
        wait_until(lambda before=before: not names_in_tmp() - before)
        index += 1
    # Ourselves, the daemon, bubblewrap outside and inside, the shell, and what it runs.
    assert {"bwrap", "sh", "sleep"} <= set(names) and len(names) >= 6, names


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "-i"], {**os.environ, "PS1": "prompt> ", "HISTFILE": ""})
        self.said = ""

    def expect(self, pattern: str, seconds: float = 30) -> str:
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.said!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.said += os.read(self.fd, 4096).decode(errors="replace")
        self.said = self.said[match.end() :]
        return match[0]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    terminal.expect("prompt> ")
    try:
        yield terminal
    finally:
        os.close(terminal.fd)
        os.kill(terminal.pid, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)


def test_the_terminal_is_the_programs(image: Path, terminal: Terminal) -> None:
    ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 37, 119, 0, 0))
    mystfuse_exec = f"{sys.executable} -m mystfuse exec {image} "
    terminal.type(mystfuse_exec + "stty size\n")
    terminal.expect(r"\n37 119\r\n")
    # ^C ends it, and it alone.
    terminal.type(mystfuse_exec + "sh -c 'echo up; sleep 1000'; echo status $?\n")
    terminal.expect(r"\nup\r\n")
    wait_until(lambda: comms_of(image)[-1:] == ["sleep"])
    terminal.type("\x03")
    terminal.expect("status 130")
    # It may also do as it likes with it.
    terminal.type(
        mystfuse_exec + "sh -c 'trap \"echo caught\" INT; echo up; sleep 1000; echo after; exit 5'; echo status $?\n"
    )
    terminal.expect(r"\nup\r\n")
    wait_until(lambda: comms_of(image)[-1:] == ["sleep"])
    terminal.type("\x03")
    terminal.expect("caught")
    terminal.expect("after")
    terminal.expect("status 5")
    # ^Z and fg.
    terminal.type(mystfuse_exec + "sh -c 'echo up; read line; echo got $line'\n")
    terminal.expect(r"\nup\r\n")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.expect("exec")
    terminal.type("a line\n")
    terminal.expect("got a line")
    terminal.expect("prompt> ")
    wait_until(lambda: processes_of(image) == [])


# An ordinary user


@pytest.fixture
def as_user(ordinary_user: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *arguments, **kwargs: run(*ordinary_user, *arguments, check=False, timeout=60, **kwargs)


def test_an_ordinary_user_needs_nobody(
    image: Path, small_tree: Path, as_user: Callable[..., subprocess.CompletedProcess[str]], open_tmp_path: Path
) -> None:
    own = Path(shutil.copy(image, open_tmp_path / "own.img"))
    shared = open_tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, USER, GROUP)
    script = "id -u; id -g; touch /root/mine && ls -n /root; echo new > /shared/new; ps | wc -l; exit 6"
    result = as_user("exec", "--mount", f"{shared}=/shared", own, "sh", "-c", script)
    assert result.returncode == 6, result.stderr
    uid, gid, _, listed, processes = result.stdout.splitlines()
    assert (int(uid), int(gid), int(processes)) == (USER, GROUP, 5)
    assert listed.split()[2:4] == [str(USER), str(GROUP)]
    assert (shared / "new").read_text() == "new\n" and (shared / "new").stat().st_uid == USER
    assert as_user("exec", own, "dynamic").stdout == "hello from C\n"
    assert as_user("exec", own, "nope").returncode == 127
    assert as_user("exec", "--no-network", own, "ifconfig", "-a").stdout.count("Link encap") == 1
    assert as_user("exec", "--roothash", "ab" * 32, own, "true").returncode == 3
    assert os.fsencode(own) not in Path("/proc/self/mountinfo").read_bytes()

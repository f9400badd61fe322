"""Ends commands at any moment, and looks at what is left: the old state or the new one, and nothing else.

    python -m tests.support.kill_matrix [--rounds 200] [--signal KILL] [--by time|syscall] [--seed 1] [CASE...]

By time, each round ends the command, its process group, or one of its children at a random moment. By syscall, strace
lets each process die as it is about to make its Nth system call of those that change something, for every N.
``test_kills.py`` runs a few rounds of each case.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from removal import remove_tree, temporary_directory

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    "SOURCE_DATE_EPOCH": "1700000000",
}
MYSTFUSE = [sys.executable, "-m", "mystfuse"]
CHANGING = (
    "openat,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,rename,renameat,renameat2,symlinkat,write,pwrite64,"
    "ftruncate,fallocate,fsync,dup2,mount,umount2,fork,vfork,clone,clone3,execve,unshare,prctl,setsid,kill,"
    "pidfd_send_signal,exit_group"
)
"""What strace counts."""
PATIENCE = 30.0
"""Seconds that anything may take to come to its end, on a busy machine."""
HIDDEN = re.compile(r"\..+\.[0-9a-f]{12}\.(tmp|links)")
"""What a killed command may leave beside its output; docs/troubleshooting.md says so."""
PRIVATE = re.compile(r"mystfuse-\w+")
"""What it may leave in TMPDIR."""


def mystfuse(*arguments: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MYSTFUSE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
        **kwargs,  # type: ignore[call-overload]
    )  # fmt: skip


def made(*arguments: str | Path) -> str:
    """Run mystfuse; its stdout, when it has done what it was asked for."""
    result = mystfuse(*arguments)
    assert result.returncode == 0, (arguments, result.stderr)
    return str(result.stdout)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


def processes_with(token: str) -> dict[int, str]:
    """Every process that has ``token`` in its environment or on its command line, and is not dead; its comm."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if token.encode() in text:
                    found[int(entry.name)] = (entry / "comm").read_bytes().decode(errors="replace").strip()
    return found


def take_away(mountpoint: Path) -> None:
    """Unmount, and end the daemon: it would wait for the namespaces that others have made meanwhile."""
    mount = find_mount(str(mountpoint))
    daemon = find_daemon(mount) if mount is not None else None
    made("umount", "--lazy", "--timeout=0.01", mountpoint) if daemon is None else unmount(str(mountpoint), lazy=True)
    if daemon is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
        os.close(daemon)


def tree_digest(directory: Path) -> str:
    """A digest of the names, modes, times and contents of a tree."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        contents = b"" if not path.is_file() or path.is_symlink() else path.read_bytes()
        fields = (path.relative_to(directory), status.st_mode, status.st_mtime_ns, contents)
        digest.update(repr(fields).encode())
    return digest.hexdigest()


@dataclass
class Place:
    """Where the rounds of one case are played, and what they are played with."""

    root: Path
    token: str = field(default_factory=lambda: f"round-{secrets.token_hex(8)}")
    """In the environment of all that a round starts, and nowhere else."""

    def __post_init__(self) -> None:
        for directory in (self.out, self.temporary, self.mountpoint):
            directory.mkdir()
        self.tree.mkdir()
        (self.tree / "bin").mkdir()
        shutil.copy("/bin/busybox", self.tree / "bin/busybox")
        for applet in ("sh", "sleep"):
            (self.tree / "bin" / applet).symlink_to("busybox")
        (self.tree / "hello").write_text("hello\n")
        (self.tree / "sub").mkdir()
        for number in range(20):
            (self.tree / "sub" / f"file{number}").write_bytes(secrets.token_bytes(3000 * number))
        os.link(self.tree / "hello", self.tree / "sub/hard")
        self.key.write_bytes(secrets.token_bytes(64))
        self.key.chmod(0o600)
        for command in (
            ["openssl", "genrsa", "-3", "-out", self.private, "3072"],
            ["openssl", "rsa", "-in", self.private, "-pubout", "-out", self.public],
        ):
            subprocess.run(command, check=True, capture_output=True)
        made("mkext2", "--sign", f"{self.public}:{self.private}", "--free", "4M", self.tree, self.image)
        self.config.write_text(json.dumps({
            "version": "0.1", "ApplicationPath": "/bin/sh", "HostApplicationParameters": False,
            "ApplicationParameters": ["-c", "exec sleep 1000"], "HostEnvironmentVariables": ["KILL_MATRIX"],
        }))  # fmt: skip

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def target(self) -> Path:
        return self.out / "target"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    @property
    def mountpoint(self) -> Path:
        return self.root / "mount"

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    @property
    def image(self) -> Path:
        return self.root / "image"

    @property
    def key(self) -> Path:
        return self.root / "key"

    @property
    def public(self) -> Path:
        return self.root / "public.pem"

    @property
    def private(self) -> Path:
        return self.root / "private.pem"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "KILL_MATRIX": self.token, "TMPDIR": str(self.temporary)}

    def processes(self) -> dict[int, str]:
        return {pid: name for pid, name in processes_with(self.token).items() if name != "strace"}


class Case:
    """A command, in what state it begins, and what may be there when it has been ended."""

    name: str
    whom = ("command",) * 3 + ("group", "child")
    """Whom a round ends, by chance."""
    ends = True
    """Whether it comes to an end by itself."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def set_up(self) -> None:
        """Once, before all rounds."""

    def tear_down(self) -> None:
        """Once, after all rounds."""

    def begin(self) -> None:
        """Before each round."""

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Of what does not end by itself: whether it has got where it wants to."""
        return False

    def finish(self) -> None:
        """After the first round, which nothing ends: end what does not end by itself."""

    def check(self) -> str:
        """What is there: ``old`` or ``new``, or something between them that has a name. Asserts that it is whole."""
        raise NotImplementedError

    def stdout(self) -> int:
        return subprocess.DEVNULL


class Making(Case):
    """Makes ``place.target``, which may be there."""

    over = False
    is_reproducible = True

    def set_up(self) -> None:
        if self.over:
            made("mkext2", "--force", self.place.tree / "sub", self.place.root / "old")
        self.old = (self.place.root / "old").read_bytes() if self.over else None
        self.new = b""

    def begin(self) -> None:
        if self.over:
            shutil.copy(self.place.root / "old", self.place.target)

    def check(self) -> str:
        found = self.place.target.read_bytes() if self.place.target.exists() else None
        for path in self.place.out.iterdir():
            if path != self.place.target:
                assert HIDDEN.fullmatch(path.name), path
                # Named only when it was complete.
                assert self.is_new(path), path
        if found == self.old:
            return "old"
        assert found is not None and self.is_new(self.place.target)
        return "new"

    def is_new(self, path: Path) -> bool:
        if self.is_reproducible and self.new:
            return path.read_bytes() == self.new
        self.new = path.read_bytes()
        return mystfuse("verify", path).returncode == 0


class Mkext2(Making):
    name = "mkext2"

    def command(self) -> list[str | Path]:
        return ["mkext2", self.place.tree, self.place.target]


class Mkext2Signed(Making):
    name = "mkext2-signed"
    over = True

    def command(self) -> list[str | Path]:
        sign = f"{self.place.public}:{self.place.private}"
        return ["mkext2", "--force", "--sign", sign, self.place.tree, self.place.target]


class Mkext2Encrypted(Making):
    name = "mkext2-encrypted"
    over = True

    def command(self) -> list[str | Path]:
        return ["mkext2", "--force", "--encrypt", self.place.key, self.place.tree, self.place.target]


class Package(Making):
    name = "package"
    over = True

    def command(self) -> list[str | Path]:
        place = self.place
        return ["package", "--force", "--pubkey", place.public, "-o", place.target, place.private, place.config]

    def is_new(self, path: Path) -> bool:
        self.new = self.new or path.read_bytes()
        return path.read_bytes() == self.new


class Commit(Making):
    name = "commit"
    is_reproducible = False
    options: tuple[str | Path, ...] = ()

    def set_up(self) -> None:
        super().set_up()
        made("mount", self.place.image, self.place.mountpoint)
        (self.place.mountpoint / "written").write_bytes(secrets.token_bytes(1 << 20))
        self.merged = (self.place.mountpoint / ".mystfuse/image").read_bytes()
        self.used = self.overlay_used()

    def overlay_used(self) -> int:
        return int(json.loads(made("status", "--json", self.place.mountpoint))["overlay_used"])

    def tear_down(self) -> None:
        take_away(self.place.mountpoint)

    def command(self) -> list[str | Path]:
        return ["commit", *self.options, self.place.mountpoint, self.place.target]

    def check(self) -> str:
        # The snapshot that it read has been let go.
        wait_until(lambda: self.overlay_used() == self.used, "the overlay is as it was")
        return super().check()

    def is_new(self, path: Path) -> bool:
        return mystfuse("verify", path).returncode == 0 and path.read_bytes()[: len(self.merged)] == self.merged


class CommitOver(Commit):
    name = "commit-over"
    over = True
    options = ("--force",)


class CommitEncrypted(Commit):
    name = "commit-encrypted"
    over = True

    def command(self) -> list[str | Path]:
        return ["commit", "--force", "--encrypt", self.place.key, self.place.mountpoint, self.place.target]

    def is_new(self, path: Path) -> bool:
        with (self.place.mountpoint / "written").open("rb") as file:
            wanted = file.read()
        command = [*MYSTFUSE, "cat", "--key-file", str(self.place.key), str(path), "written"]
        verified = mystfuse("verify", "--key-file", self.place.key, path).returncode == 0
        return verified and subprocess.run(command, capture_output=True, check=False).stdout == wanted


class Extract(Case):
    name = "extract"

    def set_up(self) -> None:
        made("extract", self.place.image, "/", self.place.root / "whole")
        self.whole = tree_digest(self.place.root / "whole")

    def command(self) -> list[str | Path]:
        return ["extract", self.place.image, "/", self.place.target]

    def check(self) -> str:
        for path in self.place.out.iterdir():
            assert path == self.place.target or HIDDEN.fullmatch(path.name), path
        if not self.place.target.exists():
            return "old"
        assert tree_digest(self.place.target) == self.whole
        return "new"


class Tar(Case):
    name = "tar"

    def set_up(self) -> None:
        command = [*MYSTFUSE, "tar", str(self.place.image)]
        self.whole = subprocess.run(command, capture_output=True, check=True).stdout

    def command(self) -> list[str | Path]:
        return ["tar", self.place.image]

    def stdout(self) -> int:
        return os.open(self.place.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)

    def check(self) -> str:
        # Nobody but the exit status says that it is whole; what is there is a beginning of it.
        found = self.place.target.read_bytes()
        assert self.whole.startswith(found)
        return "new" if found == self.whole else "part"


class Mount(Case):
    """The mount is there and right, or it is not, or what is left of it can be cleared away."""

    name = "mount"
    ends = False
    options: tuple[str, ...] = ()

    def command(self) -> list[str | Path]:
        return ["mount", *self.options, self.place.image, self.place.mountpoint]

    def is_ready(self) -> bool:
        # The daemon is all there is.
        processes = self.place.processes().values()
        return find_mount(str(self.place.mountpoint)) is not None and all(name[:9] == "mystfuse:" for name in processes)

    def finish(self) -> None:
        take_away(self.place.mountpoint)

    def check(self) -> str:
        mountpoint = self.place.mountpoint
        # A daemon whose parent has been ended comes to its own end, or serves.
        wait_until(lambda: not self.place.processes() or Mount.is_ready(self), "gone, or serving")
        mount = find_mount(str(mountpoint))
        if mount is None:
            return "old"
        daemon = find_daemon(mount)
        if daemon is not None:
            os.close(daemon)
        outcome = "new"
        try:
            assert (mountpoint / "hello").read_text() == "hello\n"
        except OSError:
            wait_until(lambda: not self.place.processes(), "a daemon that does not answer ends")
            outcome = "stale"
        if outcome == "stale":
            made("umount", "--stale", mountpoint)
        else:
            result = mystfuse("umount", "--lazy", mountpoint)
            # It may have ended by itself meanwhile, or be in a namespace that somebody has just made.
            excuses = ("nothing of mystfuse's is mounted", "still in use")
            assert result.returncode == 0 or any(excuse in result.stderr for excuse in excuses), result.stderr
            if "still in use" in result.stderr and daemon is not None:
                for pid in self.place.processes():
                    os.kill(pid, signal.SIGTERM)
        assert find_mount(str(mountpoint)) is None
        assert not list(mountpoint.iterdir())
        return outcome


class ForegroundMount(Mount):
    name = "mount-foreground"
    options = ("-f",)

    def is_ready(self) -> bool:
        try:
            return (self.place.mountpoint / "hello").exists()
        except OSError:
            return False


class Umount(Mount):
    name = "umount"
    ends = True

    def begin(self) -> None:
        command = [*MYSTFUSE, "mount", str(self.place.image), str(self.place.mountpoint)]
        subprocess.run(command, env=self.place.environment(), check=True, capture_output=True)

    def command(self) -> list[str | Path]:
        return ["umount", self.place.mountpoint]

    def finish(self) -> None:
        """It is unmounted."""


class WrittenMount(Umount):
    """Unmounted, or its daemon ended, while it is written to."""

    name = "mount-written"
    whom = ("command", "child", "child")

    def begin(self) -> None:
        super().begin()
        self.writer = subprocess.Popen(
            ["sh", "-c", f"while dd if=/dev/zero of={self.place.mountpoint}/sub/new bs=64k count=40; do :; done"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def command(self) -> list[str | Path]:
        return ["umount", "--lazy", self.place.mountpoint]

    def check(self) -> str:
        with suppress(ProcessLookupError):
            os.killpg(self.writer.pid, signal.SIGKILL)
        self.writer.wait()
        return super().check()


class Exec(Case):
    """Everything is gone."""

    name = "exec"
    ends = False

    def command(self) -> list[str | Path]:
        return ["exec", "--env=KILL_MATRIX", self.place.image, "/bin/sh", "-c", "exec sleep 1000"]

    def is_ready(self) -> bool:
        return "sleep" in self.place.processes().values()

    def finish(self) -> None:
        pass

    def check(self) -> str:
        assert not list(self.place.out.iterdir())
        assert os.fsencode(self.place.image) not in Path("/proc/self/mountinfo").read_bytes()
        return "old"


class Run(Exec):
    name = "run"

    def set_up(self) -> None:
        place = self.place
        made("package", "--force", "--pubkey", place.public, "-o", place.root / "package", place.private, place.config)

    def command(self) -> list[str | Path]:
        return ["run", self.place.root / "package", "--rootfs", self.place.image]


CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        Mkext2, Mkext2Signed, Mkext2Encrypted, Commit, CommitOver, CommitEncrypted, Package, Extract, Tar,
        Mount, ForegroundMount, WrittenMount, Umount, Exec, Run,
    )
}  # fmt: skip


@dataclass
class Moment:
    """When a round ends its command, and whom of it."""

    number: int = signal.SIGKILL
    seconds: float | None = None
    whom: str = "command"
    """``command``, ``group``, or ``child``: one of the others that it has started."""
    syscall: tuple[str, int] | None = None
    """Before the Nth call of this name, in whichever process comes to it."""
    choice: float = 0.0
    """Which child, from 0 to 1."""


class Matrix:
    """The rounds of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.place = case.place
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[str] = collections.Counter()

    def measure(self) -> float:
        """Seconds that the command takes when nobody ends it; its end has to be the new state."""
        self.case.begin()
        started = time.monotonic()
        process = self._start([])
        try:
            if self.case.ends:
                assert process.wait(120) == 0, process.stderr and process.stderr.read()
            else:
                wait_until(lambda: self.case.is_ready() or process.poll() is not None, "ready")
            took = time.monotonic() - started
            if self.case.ends:
                outcome = self.case.check()
                assert outcome == ("old" if isinstance(self.case, Umount) else "new"), outcome
            self.case.finish()
        finally:
            self._end(process)
        self._clean()
        return took

    def syscalls(self) -> list[tuple[str, int]]:
        """Each of ``CHANGING``, 1 to as many times as one of its processes calls it."""
        self.case.begin()
        log = self.place.root / "log"
        process = self._start(["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CHANGING}"])
        try:
            if self.case.ends:
                process.wait(240)
            else:
                wait_until(lambda: self.case.is_ready() or process.poll() is not None, "ready", 120)
            self.case.finish()
        finally:
            self._end(process)
        self._clean()
        calls = re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE)
        most: dict[str, int] = {}
        for (_, name), count in collections.Counter(calls).items():
            most[name] = max(most.get(name, 0), count)
        return [(name, index) for name, count in sorted(most.items()) for index in range(1, count + 1)]

    def round(self, moment: Moment) -> str:
        """Play one round; returns what was there afterwards."""
        self.case.begin()
        wrap: list[str] = []
        if moment.syscall is not None:
            name = signal.Signals(moment.number).name.removeprefix("SIG")
            call, index = moment.syscall
            inject = f"inject={call}:signal={name}:when={index}"
            wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CHANGING}", "-e", inject]
        process = self._start(wrap)
        try:
            if moment.seconds is not None:
                time.sleep(moment.seconds)
                self._send(process, moment)
            if self.case.ends or (moment.seconds is not None and moment.whom != "child"):
                process.wait(PATIENCE)
            else:
                wait_until(lambda: process.poll() is not None or self.case.is_ready(), "ended or ready")
            if process.poll() is None and not isinstance(self.case, Mount):
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)
            outcome = self.case.check()
            # Nobody goes on: not the daemon, mke2fs, bubblewrap, nor the program.
            wait_until(lambda: not self.place.processes(), f"nobody left: {self.place.processes()}")
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self._where()}") from None
        finally:
            self._end(process)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        # Python itself cannot be interrupted gracefully before it runs any code of ours.
        if not said.startswith("Fatal Python error: init_import_site"):
            assert "Traceback" not in said and "internal error" not in said, said
            if moment.number != signal.SIGKILL:
                self._check_orderly_end(process.returncode, said, moment.number)
        self.statuses[str(process.returncode)] += 1
        if moment.number != signal.SIGKILL:
            assert not self._left(), self._left()
        self.left.update("hidden name" if HIDDEN.fullmatch(path.name) else path.name[:9] for path in self._left())
        self._clean()
        self.outcomes[outcome] += 1
        return outcome

    def _check_orderly_end(self, status: int, said: str, number: int) -> None:
        assert status in (0, 1, -number, 128 + number, 7), (status, said)
        lines = [
            line for line in said.split("\n") if line and not re.match("mystfuse: (warning|ending|unmounted)", line)
        ]
        # The signal may have ended a daemon while bubblewrap was just at work in its mount.
        names = ("mystfuse: ", "bwrap: ") if isinstance(self.case, Exec) else ("mystfuse: ",)
        assert len(lines) <= 1 and all(line.startswith(names) for line in lines), said

    def _start(self, wrap: list[str]) -> subprocess.Popen[str]:
        stdout = self.case.stdout()
        try:
            return subprocess.Popen(
                [*wrap, *MYSTFUSE, *map(str, self.case.command())],
                env=self.place.environment(), start_new_session=True, stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            if stdout >= 0:
                os.close(stdout)

    def _send(self, process: subprocess.Popen[str], moment: Moment) -> None:
        if moment.whom == "group":
            os.killpg(process.pid, moment.number)
        elif moment.whom == "child":
            children = sorted(self.place.processes().keys() - {process.pid})
            if children:
                with suppress(ProcessLookupError):
                    os.kill(children[int(moment.choice * len(children))], moment.number)
        elif process.poll() is None:
            process.send_signal(moment.number)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Nothing of a round outlives it, also when its check has failed."""
        deadline = time.monotonic() + 10
        while found := processes_with(self.place.token):
            assert time.monotonic() < deadline, found
            if not isinstance(self.case, Commit) or find_mount(str(self.place.mountpoint)) is None:
                mystfuse("umount", "--lazy", self.place.mountpoint)
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)
        process.wait(10)

    def _where(self) -> str:
        """Where in the kernel its processes are."""
        found = []
        for pid, name in processes_with(self.place.token).items():
            with suppress(OSError):
                status = re.findall(r"^(?:State|PPid):.*", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
                found.append(f"{pid} {name} {status} {call} {Path(f'/proc/{pid}/stack').read_text()}")
        return "\n".join(found)

    def _left(self) -> list[Path]:
        beside = [path for path in self.place.out.iterdir() if path != self.place.target]
        private = list(self.place.temporary.iterdir())
        assert all(PRIVATE.fullmatch(path.name) for path in private), private
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.place.temporary) not in mounts and str(self.place.out) not in mounts
        for path in private:
            # Never the plaintext.
            assert all(file.stat().st_size == 0 for file in path.iterdir()), list(path.iterdir())
        return beside + private

    def _clean(self) -> None:
        for directory in (self.place.out, self.place.temporary):
            remove_tree(directory)
            directory.mkdir()


@contextmanager
def open_matrix(name: str) -> Iterator[Matrix]:
    """The matrix of a case, everything set up for it."""
    with temporary_directory("kill-matrix-") as directory:
        case = CASES[name](Place(Path(directory).resolve()))
        case.set_up()
        try:
            yield Matrix(case)
        finally:
            case.tear_down()


def moments(case: Case, generator: random.Random, duration: float, rounds: int, number: int) -> Iterator[Moment]:
    """Moments spread over a command's duration, and a little more."""
    for index in range(rounds):
        whom = generator.choice(case.whom)
        seconds = duration * 1.05 * (index + generator.random()) / rounds
        yield Moment(number, seconds, whom, choice=generator.random())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="by time (default: %(default)s)")
    parser.add_argument("--each", type=int, default=20, help="by syscall: of each name at most (default: %(default)s)")
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--by", choices=("time", "syscall"), default="time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    number = signal.Signals[f"SIG{arguments.signal}"]
    # Mounts are taken away then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failures = 0
    for name in arguments.cases:
        with open_matrix(name) as matrix:
            generator = random.Random(f"{arguments.seed} {name}")
            if arguments.by == "time":
                planned = list(moments(matrix.case, generator, matrix.measure(), arguments.rounds, number))
            else:
                calls = matrix.syscalls()
                # Most open what is imported, or write blocks.
                planned = []
                for call in sorted({call for call, _ in calls}):
                    those = [Moment(number, syscall=each) for each in calls if each[0] == call]
                    step = max(len(those) / arguments.each, 1)
                    planned += [those[int(index * step)] for index in range(min(len(those), arguments.each))]
                print(f"{name}: {len(planned)} of {len(calls)} system calls", flush=True)
            failed = 0
            for moment in planned:
                try:
                    matrix.round(moment)
                except Exception as error:
                    failed += 1
                    print(f"{name}: {moment}: {type(error).__name__}: {error}", flush=True)
                    matrix._clean()
            print(
                f"{name}: {len(planned)} rounds, {failed} failed; {dict(matrix.outcomes)}; "
                f"left: {dict(matrix.left)}; statuses: {dict(matrix.statuses)}",
                flush=True,
            )
            failures += failed
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

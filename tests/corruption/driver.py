"""Seals a broken file system, mounts it for real, runs every operation in it, and judges the outcomes.

Each access to a mount is in a process of its own, with a time limit: so we find a hang, and nothing of it is left.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mystfuse.build.hash_tree import write_all, write_tree
from mystfuse.cli import main as command_line
from mystfuse.errors import ExitStatus, MountError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount, unmount_and_wait
from mystfuse.trust.signature import SigningKey
from tests.corruption.exercise import Outcomes, exercise, walk

# We import before forking what a command would import later, so that each fork does not import it again.
for name in (
    "mystfuse.mounting.session",
    *(f"mystfuse.cli.commands.{command}" for command in ("mount", "verify", "ls", "tar", "extract")),
):
    import_module(name)

STEP_SECONDS = 60.0
"""Seconds that any step may take on an idle machine; see ``patience``."""
MEMORY_LIMIT = 256 << 20
"""The daemon's maximum memory in bytes, its overlay of 16 MiB included."""
OVERLAY_LIMIT = "16M"

CORRUPT = frozenset({"EUCLEAN", "EIO"})
"""The errnos for a broken file system."""
READ_ERRNOS = {
    "stat": {"ELOOP", "ENOENT"},
    "list": set[str](),
    "dots": {"ENOENT", "ENOTDIR"},
    "missing": {"ENOENT"},
    "xattr": {"EOPNOTSUPP", "ENODATA"},
    "read": {"EFBIG"},
    "readlink": set[str](),
    "follow": {"ENOENT", "ELOOP", "ENOTDIR", "ENAMETOOLONG"},
}
"""Other errnos that reading may give, and why:

ENODATA: the kernel's answer for user attributes of an inode that has become a device (fs/xattr.c, xattr_permission).
ELOOP: the kernel's answer to a directory inside itself (fs/dcache.c, d_splice_alias), and to links in a circle. ENOENT,
ENOTDIR, ENAMETOOLONG: what a changed symlink leads to; for a path: a directory in two places has moved. """
WRITE_ERRNOS = {
    # ENOENT, ENOTDIR: an earlier step did not make it, or moved it. ENOSPC: the counts and bitmaps say so. EPERM:
    # immutable or append-only flags. EEXIST, ENOTEMPTY, EISDIR: it exists already, or contains something that the
    # kernel refuses to remove.
    "create": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EISDIR", "ELOOP", "EFBIG", "EEXIST", "ENXIO", "EMLINK"},
    "mkdir": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EEXIST", "EMLINK", "ELOOP"},
    "symlink": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EEXIST", "ELOOP"},
    "mknod": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EEXIST", "ELOOP"},
    "link": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EEXIST", "EMLINK", "ELOOP"},
    # EINVAL: into itself. EBUSY: a mountpoint. ESTALE: a directory that the kernel knows in another place; while
    # directories are locked for this rename, the kernel does not move it (fs/dcache.c, __d_unalias).
    "rename": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EEXIST", "EINVAL", "EISDIR", "ENOTEMPTY", "EMLINK", "ELOOP",
               "EBUSY", "ESTALE"},
    "unlink": {"ENOENT", "ENOTDIR", "EISDIR", "EPERM", "ELOOP"},
    "rmdir": {"ENOENT", "ENOTDIR", "ENOTEMPTY", "EPERM", "EBUSY", "ELOOP"},
    "append": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EFBIG", "ELOOP"},
    "write": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EFBIG", "ELOOP", "EEXIST", "EISDIR"},
    "truncate": {"ENOENT", "ENOTDIR", "EPERM", "EFBIG", "ENOSPC", "ELOOP"},
    "setxattr": {"ENOENT", "ENOTDIR", "ENOSPC", "EPERM", "EOPNOTSUPP", "ELOOP"},
    "removexattr": {"ENOENT", "ENOTDIR", "ENODATA", "EPERM", "ENOSPC", "ELOOP"},
    "chmod": {"ENOENT", "ENOTDIR", "EPERM", "ENOSPC", "ELOOP"},
    "chown": {"ENOENT", "ENOTDIR", "EPERM", "ELOOP"},
    "utime": {"ENOENT", "ENOTDIR", "EPERM", "ELOOP"},
    "lstat": {"ENOENT", "ENOTDIR", "ELOOP"},
    "list": {"ENOENT", "ENOTDIR", "ELOOP"},
}  # fmt: skip
TOOL_WORDS = {
    os.strerror(number) for number in (errno.EUCLEAN, errno.EIO, errno.ELOOP, errno.ENOENT, errno.EOPNOTSUPP)
} | {
    "No such attribute"  # ENODATA, in getfattr's words
}


@dataclass
class Report:
    """The outcomes of one image."""

    name: str
    damage: list[str]
    size: int
    """The size of the file system in bytes."""
    mount_status: int = -1
    said: str = ""
    """The mount's messages on stderr."""
    walk: Outcomes = field(default_factory=dict)
    walk_again: Outcomes = field(default_factory=dict)
    tools: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds that each step took."""
    peak: int = 0
    """Bytes: the daemon's VmHWM."""
    commands: dict[str, int] = field(default_factory=dict)
    """Exit statuses of the commands that need no mount."""
    kernel: Outcomes | str | None = None
    """What the kernel's own driver answered, or why it refused the mount."""
    faults: list[str] = field(default_factory=list)
    """The faults: broken promises."""

    @property
    def is_mounted(self) -> bool:
        return self.mount_status == 0

    def outcome(self, path: str, operation: str) -> str:
        return self.walk.get(path, {}).get(operation, "absent")


def seal(filesystem: bytes, path: Path, key: SigningKey) -> None:
    """Add a fresh hash tree and a valid signature to a file system, whatever its contents."""
    size = -(-len(filesystem) // 4096) * 4096
    superblock = VeritySuperblock(size // 4096, b"s" * 32, b"u" * 16, data_block_size=4096, hash_block_size=4096)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, filesystem.ljust(size, b"\0"), 0)
        root_hash = write_tree(descriptor, superblock, size)
        fssig = Fssig(size, root_hash, key.signer, key.sign(root_hash))
        end = TreeGeometry.of(superblock, size).end
        write_all(descriptor, fssig.pack(), end)
        os.ftruncate(descriptor, end + FSSIG_SIZE)
    finally:
        os.close(descriptor)


class Driver:
    """Works in one directory, with one trusted signer. Start it from a small process: it forks daemons and measures
    their memory."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "image"
        self._mountpoint = directory / "mount"
        self._kernel_mountpoint = directory / "kernel"
        self._log = directory / "log"
        self._stderr = directory / "stderr"
        self._public = directory / "public.pem"
        private = directory / "private.pem"
        for path in (self._mountpoint, self._kernel_mountpoint):
            path.mkdir()
        subprocess.run(["openssl", "genrsa", "-out", private, "-3", "3072"], check=True, capture_output=True)
        subprocess.run(["openssl", "rsa", "-in", private, "-pubout", "-out", self._public],
                       check=True, capture_output=True)  # fmt: skip
        self._key = SigningKey.from_pem(private.read_bytes(), "private.pem")

    def drive(
        self,
        name: str,
        filesystem: bytes,
        damage: list[str],
        seed: int,
        thorough: bool = True,
        commands: bool = False,
        kernel: bool = False,
    ) -> Report:
        """Everything for one file system.

        Args:
            thorough: see ``exercise``.
            commands: also the commands that need no mount: ls, extract, tar, verify.
            kernel: also read it through the kernel's driver, for ``Report.kernel``.
        """
        report = Report(name, damage, len(filesystem))
        seal(filesystem, self._image, self._key)
        self._log.unlink(missing_ok=True)
        self._mount(report)
        if report.is_mounted:
            try:
                self._exercise(report, seed, thorough)
            finally:
                self._end(report)
        self._judge(report)
        if commands:
            self._run_commands(report)
        if kernel:
            self._ask_kernel(report)
        # Where we are the first process, orphaned daemons become our children.
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return report

    def _mount(self, report: Report) -> None:
        started = time.monotonic()
        status = self._command(
            "mount", "--pubkey", self._public, "--overlay-limit", OVERLAY_LIMIT, "--log-file", self._log, self._image,
            self._mountpoint,
        )  # fmt: skip
        report.steps["mount"] = time.monotonic() - started
        report.said = self._stderr.read_text(errors="replace")
        if status is None:
            report.faults.append("the mount hangs")
            return
        report.mount_status = status
        if status:
            if status != ExitStatus.FORMAT:
                report.faults.append(f"refused with status {status}: {report.said}")
            errors = [line for line in report.said.splitlines() if not line.startswith("mystfuse: warning: ")]
            if not (report.said.startswith("mystfuse: ") and len(errors) == 1):
                report.faults.append(f"refused with more than one line: {report.said}")

    def _command(self, *arguments: str | Path, stdout: Path = Path(os.devnull)) -> int | None:
        """Run the command line in a process of its own; returns its exit status, or None if it did not end in time."""
        words = [os.fspath(argument) for argument in arguments]

        def run() -> None:
            for descriptor, path in ((1, stdout), (2, self._stderr)):
                opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(opened, descriptor)
                os.close(opened)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
            command_line.main(words)

        return _wait(_fork(run), patience())

    def _exercise(self, report: Report, seed: int, thorough: bool) -> None:
        receiving, sending = os.pipe()
        root = str(self._mountpoint)

        def work() -> None:
            os.close(receiving)
            with open(sending, "w") as pipe:

                def tell(message: dict[str, Any]) -> None:
                    pipe.write(json.dumps(message) + "\n")
                    pipe.flush()

                exercise(root, seed, thorough, tell)

        child = _fork(work)
        os.close(sending)
        values: dict[str, Any] = {}
        step, started = "start", time.monotonic()
        with open(receiving, "rb", buffering=0) as pipe:
            waiting = b""
            while True:
                if not select.select([pipe], [], [], max(started + patience() - time.monotonic(), 0))[0]:
                    report.faults.append(f"{step} hangs")
                    break
                part = pipe.read(1 << 20)
                if not part:
                    break
                *lines, waiting = (waiting + part).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "begin" in message:
                        step, started = message["begin"], time.monotonic()
                    else:
                        report.steps[message["end"]] = time.monotonic() - started
                        values[message["end"]] = message["value"]
        if _wait(child, 5) != 0 and not report.faults:
            report.faults.append(f"what works in the mount failed in {step}")
        report.walk, report.walk_again = values.get("walk", {}), values.get("walk again", {})
        report.tools = values.get("tools", {})
        report.counts = values.get("counts", {})
        report.images = [values.get("image", ""), values.get("image again", "")]
        if values.get("statfs", "ok") not in ("ok", *CORRUPT):
            report.faults.append(f"statfs: {values['statfs']}")
        if not report.faults and "pid" not in values.get("status", {}):
            report.faults.append("the daemon does not tell its status")

    def _end(self, report: Report) -> None:
        """Unmount; the daemon has to run until then, and to end afterwards."""
        mountpoint = str(self._mountpoint)
        mount = find_mount(mountpoint)
        daemon = find_daemon(mount) if mount else None
        if mount is None or daemon is None:
            report.faults.append("the daemon is gone")
            if mount:
                unmount(mountpoint, lazy=True)
            return
        pid = int(re.findall(r"^Pid:\s*(\d+)", Path(f"/proc/self/fdinfo/{daemon}").read_text(), re.M)[0])
        started = time.monotonic()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            report.peak = int(re.findall(r"^VmHWM:\s*(\d+) kB", status, re.M)[0]) << 10
            unmount_and_wait(mountpoint, False, patience())
        except (MountError, OSError) as error:
            report.faults.append(f"unmounting: {error}")
            with suppress(MountError):
                unmount(mountpoint, lazy=True)
            if not _has_ended(daemon, 5):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
        finally:
            os.close(daemon)
        report.steps["umount"] = time.monotonic() - started

    def _judge(self, report: Report) -> None:
        faults = report.faults
        if report.is_mounted:
            log = self._log.read_text(errors="replace")
            if "internal error" in log or "Traceback" in log:
                faults.append("the log tells of an internal error:\n" + _first_traceback(log))
        if report.peak > MEMORY_LIMIT:
            faults.append(f"the daemon took {report.peak >> 20} MiB")
        for outcomes in (report.walk, report.walk_again):
            for path, found in outcomes.items():
                for operation, outcome in found.items():
                    if not (outcome.startswith("ok") or outcome in CORRUPT or outcome in READ_ERRNOS[operation]):
                        faults.append(f"{operation} of {path!r}: {outcome}")
        # A feature that is only read makes the mount read-only.
        allowed = CORRUPT | ({"EROFS"} if "the mount is read-only" in report.said else set())
        for counted in report.counts:
            operation, outcome = counted.split()
            if not (outcome == "ok" or outcome in allowed or outcome in WRITE_ERRNOS[operation]):
                faults.append(f"{operation}: {outcome}")
        faults += [f"the merged image: {said}" for said in report.images if said not in ("ok", "", "ENOSPC", *CORRUPT)]
        for tool, words in report.tools.items():
            faults += [f"{tool}: {word}" for word in words if word not in TOOL_WORDS and "loop" not in word]

    def _run_commands(self, report: Report) -> None:
        """The commands that need no mount. Their exit statuses are documented, every line on stderr is ours, and they
        leave nothing behind."""
        target = self._image.with_name("extracted")
        trust = ("--pubkey", self._public)
        for name, words in {
            "verify": ("verify", *trust, self._image),
            "ls": ("ls", "-lRa", *trust, self._image),
            "tar": ("tar", *trust, self._image),
            "extract": ("extract", *trust, self._image, "/", target),
        }.items():
            started = time.monotonic()
            status = self._command(*words)
            report.steps[name] = time.monotonic() - started
            report.commands[name] = -1 if status is None else status
            said = self._stderr.read_text(errors="replace")
            if status not in (0, ExitStatus.FAILED, ExitStatus.FORMAT):
                report.faults.append(f"{name}: status {status}: {said}")
            elif any(not line.startswith("mystfuse: ") for line in said.splitlines()) or "internal error" in said:
                report.faults.append(f"{name}: {said}")
            errors = [line for line in said.splitlines() if not line.startswith("mystfuse: warning: ")]
            if bool(status) != bool(errors):
                report.faults.append(f"{name}: status {status}, and {said!r}")
            if target.exists() != (name == "extract" and status == 0):
                report.faults.append(f"{name}: status {status}, but {target.name} is {target.exists()}")
            subprocess.run(["rm", "-rf", target], check=True)

    def _ask_kernel(self, report: Report) -> None:
        """Read the same through the kernel's driver, read-only, in a process that we can abandon if it hangs."""
        mountpoint = str(self._kernel_mountpoint)
        mounted = subprocess.run(
            ["mount", "-t", "ext4", "-o", f"loop,sizelimit={report.size},ro,errors=continue", self._image, mountpoint],
            capture_output=True, text=True, timeout=patience(), check=False,
        )  # fmt: skip
        if mounted.returncode:
            report.kernel = "refused"
            return
        try:
            receiving, sending = os.pipe()

            def work() -> None:
                with open(sending, "w") as pipe:
                    json.dump(walk(mountpoint), pipe)

            child = _fork(work)
            os.close(sending)
            with open(receiving, "rb") as pipe:
                found = b""
                while select.select([pipe], [], [], patience())[0] and (part := pipe.read1(1 << 20)):
                    found += part
            report.kernel = json.loads(found) if _wait(child, 5) == 0 else "hangs"
        finally:
            subprocess.run(["umount", mountpoint], check=True)


def differences(report: Report) -> list[str]:
    """Where the kernel's driver answers a read otherwise than the mount did."""
    if report.kernel is None:
        return []
    ours = "mounted" if report.is_mounted else "refused"
    if isinstance(report.kernel, str):
        return [f"{ours} | kernel: {report.kernel}"] if ours != report.kernel else []
    if not report.is_mounted:
        return ["refused | kernel: mounted"]
    found: list[str] = []
    for path in sorted(report.walk.keys() | report.kernel.keys()):
        here, there = report.walk.get(path), report.kernel.get(path)
        if here is None or there is None:
            found.append(f"{path!r}: {'not ' if here is None else ''}seen | kernel: {'not ' * (there is None)}seen")
            continue
        for operation in sorted(here.keys() | there.keys()):
            one, other = (outcomes.get(operation, "absent") for outcomes in (here, there))
            if one != other:
                found.append(f"{operation} of {path!r}: {_short(one)} | kernel: {_short(other)}")
    return found


def _short(outcome: str) -> str:
    return "ok" if outcome.startswith("ok") else outcome


def _first_traceback(log: str) -> str:
    start = log.find("internal error")
    return log[max(start - 80, 0) : start + 2500]


def patience() -> float:
    """Seconds that a step may take now, given the machine's load."""
    return STEP_SECONDS * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1)


def _fork(function: Callable[[], None]) -> int:
    """Run a function in a child process, in a session of its own; returns a pidfd."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return os.pidfd_open(pid)
    status = 1
    try:
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _has_ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _wait(pidfd: int, seconds: float) -> int | None:
    """The exit status of a child; None if it does not end in time, and then it is killed."""
    try:
        in_time = _has_ended(pidfd, seconds)
        if not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not _has_ended(pidfd, seconds):
                return None
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        return result.si_status if in_time and result else None
    finally:
        os.close(pidfd)


def unmet(report: Report, expected: tuple[str, ...]) -> list[str]:
    """The expectations of a named case that did not come true; see ``named``."""
    missed: list[str] = []
    for line in expected:
        operation, _, rest = line.partition(" ")
        if operation == "refused":
            if report.mount_status != ExitStatus.FORMAT or rest not in report.said:
                missed.append(f"{line}, but status {report.mount_status}: {report.said}")
        elif operation == "writing":
            if rest not in report.counts:
                found = {key: count for key, count in report.counts.items() if key.split()[0] == rest.split()[0]}
                missed.append(f"{line}, but {found}")
        else:
            path, _, outcome = rest.rpartition(" ")
            found_outcome = report.outcome(path.strip("/"), operation)
            if found_outcome.partition(" ")[0] != outcome:
                missed.append(f"{line}, but {found_outcome}")
    return missed

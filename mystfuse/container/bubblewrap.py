"""bubblewrap: what it leaves a program (namespaces, capabilities, system calls, files of /proc), and running it.

Sources: bwrap(1); which files of /proc are masked or read-only, from the defaults of container engines (Docker's
daemon/pkg/oci/defaults.go, which runc applies as the OCI's ``maskedPaths`` and ``readonlyPaths``). Their list has files
of /sys too: there is no /sys here.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mystfuse.container.image_servers import ImageServers
from mystfuse.container.namespaces import shield_next_child
from mystfuse.container.shared_files import pass_positions_on
from mystfuse.errors import MystfuseError
from mystfuse.system.wait_readable import wait_readable

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
"""Empty for the program."""
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_SETFCAP",
)  # fmt: skip
"""Root's capabilities: those that containers usually leave it, without making devices."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""The terminal itself sends these to the program, once it has been started."""
_START_TIMEOUT = 10
"""Seconds that bubblewrap may take to start the program."""


def find_bubblewrap() -> str:
    """The path of bwrap(1); MystfuseError if it is not installed."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise MystfuseError("bubblewrap is not installed (apt install bubblewrap)")
    return bwrap


def bubblewrap_options(
    root: str,
    environment: Mapping[str, str],
    directory: str,
    has_network: bool,
    hostname: str | None,
    is_confined: bool,
    system_calls: int | None,
    user: tuple[int, int] | None = None,
) -> list[str]:
    """The options of bwrap(1) for a program that sees ``root``, in namespaces of its own.

    Args:
        is_confined: otherwise it may do what we may.
        system_calls: a descriptor of a file with the filter of its system calls; None for no filter.
        user: who runs it, if not this process's user: a user and a group.
    """
    options = ["--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"]
    options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if user is not None:
        options += ["--unshare-user", "--uid", str(user[0]), "--gid", str(user[1])]
    if hostname is not None:
        options += ["--hostname", hostname]
    if not has_network:
        options.append("--unshare-net")
    if system_calls is not None:
        options += ["--seccomp", str(system_calls)]
    if is_confined:
        options += _proc_options(MASKED, READ_ONLY)
        if os.geteuid() == 0 and user is None:
            # As root, bubblewrap leaves a program everything by default.
            options += ["--cap-drop", "ALL"]
            options += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
    options += ["--chdir", directory, "--clearenv"]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return options


def _proc_options(masked: Sequence[str], read_only: Sequence[str]) -> list[str]:
    """How to mask files and directories of /proc, as runc does, and make others read-only. Which of them exist depends
    on the kernel alone, so we look at our own /proc."""
    options: list[str] = []
    for path in masked:
        if os.path.isdir(path):
            options += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            options += ["--dev-bind", "/dev/null", path]
    for path in read_only:
        # Our own /proc, since bubblewrap has no name for the program's: it has the same files for all processes.
        options += ["--ro-bind-try", path, path]
    return options


def file_in_memory(name: str, data: bytes) -> int:
    """A descriptor of a file in memory."""
    fd = os.memfd_create(name)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def run_bubblewrap(
    bwrap: str,
    box: Sequence[str],
    command: Sequence[str],
    servers: ImageServers,
    begin: Callable[[], None],
    bound: Callable[[int], None] | None,
    standard: Sequence[int],
    inherited: Sequence[int],
) -> int:
    """Run a program under bubblewrap until it ends, or one of ``servers``; returns its exit status, 128+N for signal N.

    Args:
        box: the options of bwrap(1).
        command: the program and its arguments.
        begin: called in the new process before bubblewrap is executed.
        bound: called with the number of the first process in the program's namespaces, before the program starts; None
            if there is nothing to bound.
        standard: its standard descriptors.
        inherited: further ones, which are closed here.

    Raises:
        MystfuseError: starting it failed, or a server has ended, and the program with it.
    """
    reports, report = os.pipe()
    gate, open_gate = os.pipe()
    words = [*box, "--info-fd", str(report), "--block-fd", str(gate)]
    # In a file, where ps(1) does not show the environment.
    options = file_in_memory("bwrap-options", b"".join(os.fsencode(word) + b"\0" for word in words))
    inherited = (options, report, gate, *inherited)
    shield_next_child()
    try:
        child = subprocess.Popen(
            [bwrap, "--args", str(options), "--", *command],
            stdin=standard[0],
            stdout=standard[1],
            stderr=standard[2],
            pass_fds=inherited,
            preexec_fn=begin,
        )
    except subprocess.SubprocessError as error:
        raise MystfuseError("the program could not be bounded: its control group or user namespace is gone?") from error
    for fd in inherited:
        os.close(fd)
    # The handlers wait for the program, which waits for us.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, *_FROM_TERMINAL))

    def forward(number: int, frame: FrameType | None) -> None:
        # Not to bubblewrap, which would ignore it: the first process of a namespace gets only signals that it handles.
        deadline = time.monotonic() + _START_TIMEOUT
        while (pid := _program_pid(child.pid)) is None and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(OSError):
            os.kill(child.pid if pid is None else pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)

    def forward_early(number: int, frame: FrameType | None) -> None:
        if _program_pid(child.pid) is None:
            forward(number, frame)

    for number in _FROM_TERMINAL:
        # Not SIG_IGN, which the program would inherit.
        signal.signal(number, forward_early)
    with os.fdopen(reports) as file:
        # Complete when the process is there; empty if bubblewrap has failed.
        is_begun = bool(file.read())
    try:
        if is_begun and bound is not None:
            bound(_first_process(child.pid))
    except ProcessLookupError:
        # It has ended already.
        pass
    except OSError as error:
        child.kill()
        child.wait()
        raise MystfuseError(f"the number of processes cannot be bounded: {error.strerror}") from error
    finally:
        os.close(open_gate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FORWARDED, *_FROM_TERMINAL))
    pidfd = os.pidfd_open(child.pid)
    ended = wait_readable((pidfd, *servers.pidfds))
    os.close(pidfd)
    if pidfd not in ended:
        child.kill()
        child.wait()
        raise MystfuseError(f"{servers.name(ended.pop())}: its daemon has ended: the program was ended too")
    status = child.wait()
    pass_positions_on(standard)
    return 128 - status if status < 0 else status


def _first_process(bwrap: int) -> int:
    """The first process of the program's namespaces; OSError if /proc does not show it."""
    pid = _descendant(bwrap, 1)
    if pid is None:
        raise FileNotFoundError(errno.ENOENT, "/proc does not show bubblewrap's child")
    return pid


def _program_pid(bwrap: int) -> int | None:
    """The program: the first process of its namespace is below bubblewrap, and the program below that. None before it
    has been started."""
    return _descendant(bwrap, 2)


def _descendant(pid: int, generations: int) -> int | None:
    """The first child of a process, or of that; None if there is none."""
    try:
        for _ in range(generations):
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (OSError, IndexError):
        return None
    return pid

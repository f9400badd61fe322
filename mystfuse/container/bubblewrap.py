"""What bubblewrap leaves a program: its name spaces, capabilities, system calls, and what it sees of /proc.

Sources: bwrap(1); which files of /proc are masked or read-only, from the defaults of container engines (Docker's
daemon/pkg/oci/defaults.go, which runc applies as the OCI's ``maskedPaths`` and ``readonlyPaths``). Their list has files
of /sys too: there is no /sys here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from mystfuse.errors import MystfuseError

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
"""What root keeps: what containers usually leave it, without making devices."""


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
) -> list[str]:
    """The options of bwrap(1) for a program that sees ``root``, in name spaces of its own.

    Args:
        is_confined: otherwise it may do what we may.
        system_calls: a descriptor of a file with the filter of its system calls; None for no filter.
    """
    options = ["--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"]
    options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if hostname is not None:
        options += ["--hostname", hostname]
    if not has_network:
        options.append("--unshare-net")
    if system_calls is not None:
        options += ["--seccomp", str(system_calls)]
    if is_confined:
        options += _proc_options(MASKED, READ_ONLY)
        if os.geteuid() == 0:
            # As root, bubblewrap leaves a program everything unless told otherwise.
            options += ["--cap-drop", "ALL"]
            options += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
    options += ["--chdir", directory, "--clearenv"]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return options


def _proc_options(masked: Sequence[str], read_only: Sequence[str]) -> list[str]:
    """How to mask files and directories of /proc, as runc does, and make others read-only. Which of them are there
    depends on the kernel alone, so we look at our own /proc."""
    options: list[str] = []
    for path in masked:
        if os.path.isdir(path):
            options += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            options += ["--dev-bind", "/dev/null", path]
    for path in read_only:
        # Ours, since bubblewrap has no name for the program's: what is in there is the same for all processes, or goes
        # by who reads it.
        options += ["--ro-bind-try", path, path]
    return options

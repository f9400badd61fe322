"""Bounding a program and everything it starts: its memory, and how many processes it has.

A control group (version 2) bounds them together, files in memory included; for the number of processes, one of version
1 serves too. Without any, each process is bounded by itself: its private memory (RLIMIT_DATA), and the number of an
ordinary user's by RLIMIT_NPROC, which does not bind root. Sources: the kernel's cgroup-v2.rst and cgroup-v1/pids.rst,
setrlimit(2).
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mystfuse.errors import MystfuseError

_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where version 2 is mounted: alone, or beside version 1."""
_PIDS_ROOT = Path("/sys/fs/cgroup/pids")
"""Where version 1 counts processes."""
_PREFIX = "mystfuse-"
_USER_NAMESPACES_COUNT = (5, 14)
"""Since this version of Linux, RLIMIT_NPROC counts processes of a user namespace, not all of the user's."""
_OTHERS = 256
"""More than the processes and threads that serve a program's images, which count as well where a user namespace is
bounded."""


@dataclass
class ResourceLimits:
    """How a child process and all that it starts are bounded."""

    groups: list[Path] = field(default_factory=list)
    memory: int | None = None
    """Bytes of private memory of each process, where no control group bounds them together."""
    processes: int | None = None
    """Of the user namespace, where no control group bounds them."""

    def enter(self) -> None:
        """To be called in the child before it executes anything."""
        for group in self.groups:
            _write(group / "cgroup.procs", "0")
        if self.memory is not None:
            _lower(0, resource.RLIMIT_DATA, self.memory)

    def bound_processes(self, pid: int) -> None:
        """Bound a process that is in the user namespace which is to be bounded. Not before it is there: all of the
        user's processes would count, and our own threads."""
        assert self.processes is not None
        _lower(pid, resource.RLIMIT_NPROC, self.processes)


def _lower(pid: int, limit: int, value: int) -> None:
    _, most = resource.prlimit(pid, limit)
    lower = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.prlimit(pid, limit, (lower, lower))


def bound_user_namespace(processes: int) -> None:
    """Bound the number of processes in the user namespace that this process is about to make, whichever of its users
    they belong to: RLIMIT_NPROC counts each user's by themselves, and a program that is root has many users.

    The namespace gets the limit of the process that makes it (the kernel's ucounts). Before Linux 5.14, all
    processes of the user count, wherever they are: nothing is bounded there.
    """
    if _limits_count_by_namespace():
        _lower(0, resource.RLIMIT_NPROC, processes + _OTHERS)


@contextmanager
def limited_resources(
    memory: int | None, processes: int | None = None, must_bound_processes: bool = False, is_root: bool | None = None
) -> Iterator[ResourceLimits]:
    """Bound the memory, and the number of processes and threads, of a program.

    Args:
        memory: bytes; None for no bound.
        processes: how many; None for no bound. Root's are bounded only by a control group.
        must_bound_processes: fail if that is impossible.
        is_root: whether we are root outside of all user namespaces of ours; None: as our user number says.

    Yields:
        What bounds them. The program, and all that it has started, must have ended when the block ends.

    Raises:
        MystfuseError: the system has no means to bound the processes.
    """
    settings: dict[str, dict[str, str]] = {}
    if memory is not None:
        settings["memory"] = {"memory.max": str(memory), "memory.oom.group": "1", "memory.swap.max": "0"}
    if processes is not None:
        settings["pids"] = {"pids.max": str(processes)}
    limits = ResourceLimits()
    try:
        bounded: frozenset[str] = frozenset()
        if settings and (made := make_group(settings)) is not None:
            limits.groups.append(made[0])
            bounded = made[1]
        if "memory" not in bounded:
            limits.memory = memory
        if processes is not None and "pids" not in bounded:
            if (group := make_pids_group(processes)) is not None:
                limits.groups.append(group)
            elif _limit_counts_the_program_alone(os.geteuid() == 0 if is_root is None else is_root):
                limits.processes = processes
            elif must_bound_processes:
                raise MystfuseError("the number of processes cannot be bounded: there is no control group for them")

        yield limits
    finally:
        for group in limits.groups:
            _remove(group)


def _limit_counts_the_program_alone(is_root: bool) -> bool:
    """Whether RLIMIT_NPROC binds us, and counts no processes but those of the program's user namespace."""
    return not is_root and _limits_count_by_namespace()


def _limits_count_by_namespace() -> bool:
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= _USER_NAMESPACES_COUNT


def make_group(
    settings: Mapping[str, Mapping[str, str]],
    proc: Path = Path("/proc"),
    roots: tuple[Path, ...] = _CGROUP_ROOTS,
) -> tuple[Path, frozenset[str]] | None:
    """A new control group of version 2, beside our own or in it.

    Args:
        settings: by controller, what is to be written into which file.

    Returns:
        The group, and the controllers that work there; None if the system lets us have none of them.
    """
    own_name = _own_group(proc, "")
    root = next((root for root in roots if (root / "cgroup.controllers").exists()), None)
    if own_name is None or root is None:
        return None
    own = root / own_name
    # Only the root can have both processes and groups with controllers in it; elsewhere the parent is where there are.
    for place in (own, own.parent) if own != root else (own,):
        with suppress(OSError):
            controllers = settings.keys() & (place / "cgroup.subtree_control").read_text().split()
            if controllers:
                texts = {name: text for controller in controllers for name, text in settings[controller].items()}
                return _make_group(place, texts), frozenset(controllers)
    return None


def make_pids_group(processes: int, proc: Path = Path("/proc"), root: Path = _PIDS_ROOT) -> Path | None:
    """A new control group of version 1, in our own, for ``processes`` processes; None if the system does not let us."""
    own_name = _own_group(proc, "pids")
    if own_name is None:
        return None
    with suppress(OSError):
        return _make_group(root / own_name, {"pids.max": str(processes)})
    return None


def _own_group(proc: Path, controllers: str) -> str | None:
    """The group that we are in, as seen from where its hierarchy is mounted."""
    try:
        match = re.search(rf"^\d+:{controllers}:/(.*)$", (proc / "self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else match[1]


def _make_group(place: Path, texts: Mapping[str, str]) -> Path:
    """A new group in ``place``; OSError if making it fails, or it takes no process."""
    _remove_dead_groups(place)
    group = place / f"{_PREFIX}{os.getpid()}"
    group.mkdir()
    try:
        for name, text in texts.items():
            # Missing on a system without swap.
            with suppress(OSError) if name == "memory.swap.max" else nullcontext():
                _write(group / name, text)
        if not os.access(group / "cgroup.procs", os.W_OK) or not os.access(place / "cgroup.procs", os.W_OK):
            raise PermissionError
    except OSError:
        group.rmdir()
        raise
    return group


def _remove_dead_groups(place: Path) -> None:
    """Remove the groups of killed runs, including one that had our number. The kernel keeps groups in use."""
    for group in place.glob(f"{_PREFIX}*"):
        number = group.name.removeprefix(_PREFIX)
        if number == str(os.getpid()) or (number.isdecimal() and not Path(f"/proc/{number}").exists()):
            with suppress(OSError):
                group.rmdir()


def _remove(group: Path) -> None:
    """Remove a group whose processes have ended, or will in a moment. If that fails, the next run removes it."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.02)


def _write(path: Path, text: str) -> None:
    # Unbuffered and not created: these are not ordinary files.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

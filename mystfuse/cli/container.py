"""Running a program with an image as its root, and the mounts around it: what ``exec`` and ``run`` do."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mystfuse.cli.mount import make_job, parse_mount_options
from mystfuse.cli.mount_job import MountJob
from mystfuse.cli.text import complain
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, MountError, MystfuseError, UsageError, error_of
from mystfuse.fuse.daemon import run_in_background
from mystfuse.memory_limit import limited_memory
from mystfuse.program import find_program
from mystfuse.sandbox import (
    Root,
    bubblewrap_options,
    drop_mounts_of_ours,
    enter_private_namespace,
    find_bubblewrap,
    find_place,
    shield_next_child,
)

_PATIENCE = 10_000
"""Milliseconds that a daemon gets to end."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED = (signal.SIGINT, signal.SIGQUIT)
"""The program gets these from the terminal itself."""


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """A directory of the host, another image, or an empty directory, that the program sees at ``target``."""

    source: str | None
    """None for an empty directory in memory."""
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of an image: as those of ``mystfuse mount``."""
    is_image: bool = False
    is_read_only: bool = False
    """Of a directory."""

    @classmethod
    def parse(cls, text: str) -> ContainerMount:
        """Parse ``SOURCE=TARGET[,OPTION...]``; a directory is shown as it is, anything else must be an image.

        Raises:
            UsageError: it is neither.
        """
        source, equals, rest = text.partition("=")
        target, comma, options = rest.partition(",")
        if not source or not equals or not target.startswith("/"):
            raise UsageError(f"--mount {text}: must be SOURCE=/TARGET[,OPTION...]")
        given: dict[str, Any] = {"roothashes": (), "pubkeys": ()}
        if os.path.isdir(source):
            if comma:
                raise UsageError(f"--mount {text}: options are for images, and {source} is a directory")
            return cls(source, target)
        if parse_mount_options(options, given):
            raise UsageError(f"--mount {text}: an option that has no meaning here")
        return cls(source, target, given, is_image=True)


@dataclass(frozen=True, slots=True)
class Container:
    """A program and what it is to see."""

    image: str
    options: Mapping[str, Any]
    """Of the image: trust, keys, the overlay's limit and store, as those of ``mystfuse mount``."""
    program: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str = "/"
    mounts: Sequence[ContainerMount] = ()
    has_network: bool = True
    hostname: str | None = None
    memory_limit: int | None = None
    """Bytes that the program may take up."""


class _Daemons:
    """The processes that serve the mounts of a container."""

    def __init__(self) -> None:
        self.pidfds: list[int] = []
        self._names: list[str] = []

    def start(self, job: MountJob) -> None:
        """Mount; raises the error that the daemon reports."""
        started = run_in_background(job.serve, job.descriptors, dies_with_parent=True)
        job.close()
        if started.status is not ExitStatus.DONE:
            raise error_of(started.status, started.message)
        self.pidfds.append(os.pidfd_open(started.pid))
        self._names.append(job.source.name)

    def stop(self) -> None:
        """End them all, the last one first, and wait for it."""
        for pidfd in reversed(self.pidfds):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_PATIENCE):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.pidfds.clear()

    def name(self, pidfd: int) -> str:
        return self._names[self.pidfds.index(pidfd)]


def run_container(container: Container) -> int:
    """Mount everything, run the program, take everything down; returns its exit status, 128+N for signal N.

    The mounts are in a name space of our own, so nothing is left whatever ends us.

    Raises:
        MystfuseError: it could not be started.
    """
    bwrap = find_bubblewrap()
    enter_private_namespace()
    is_root = os.geteuid() == 0
    daemons = _Daemons()
    try:
        owner = {"allow_other": True} if is_root else {"map_root": True}
        job = make_job({**container.options, **owner}, frozenset(), FileSource(container.image), find_place())
        # Everything is opened before anything can hide it.
        sources = [_open_source(mount, owner) for mount in container.mounts]
        drop_mounts_of_ours(
            [mount.source for mount in container.mounts if mount.source is not None and not mount.is_image]
        )
        daemons.start(job)
        root = Root(job.options.mountpoint)
        # Whatever the image has there, everybody can write to it.
        root.mount_tmpfs("/tmp", container.options.get("overlay_limit"))  # noqa: S108
        for mount, source in zip(container.mounts, sources, strict=True):
            if isinstance(source, MountJob):
                target = root.make_directory(mount.target)
                daemons.start(replace(source, options=replace(source.options, mountpoint=target)))
            elif source is None:
                root.mount_tmpfs(mount.target, container.options.get("overlay_limit"), mount.is_read_only)
            else:
                root.bind(source, mount.target, mount.is_read_only)
                os.close(source)
        program = find_program(root, container.program, container.environment.get("PATH", ""), container.directory)
        box = bubblewrap_options(
            root, container.environment, container.directory, container.has_network, container.hostname
        )
        with limited_memory(container.memory_limit) as limit:
            return _run(bwrap, box, [program, *container.arguments], daemons, limit)
    finally:
        daemons.stop()


def _open_source(mount: ContainerMount, owner: Mapping[str, Any]) -> MountJob | int | None:
    """The job of mounting an image, its mountpoint still to be said, or a descriptor of a directory."""
    if mount.source is None:
        return None
    if mount.is_image:
        return make_job({**mount.options, **owner}, frozenset(), FileSource(mount.source), "")
    try:
        return os.open(mount.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{mount.source}: {error.strerror}") from error


def _run(
    bwrap: str, box: Sequence[str], command: Sequence[str], daemons: _Daemons, limit: Callable[[], None] | None
) -> int:
    """Run bubblewrap, which calls ``limit`` before it begins, until it ends, or a daemon that it cannot do without."""
    # In a file, where ps(1) does not show the environment.
    options = os.memfd_create("bwrap-options")
    os.write(options, b"".join(os.fsencode(word) + b"\0" for word in box))
    os.lseek(options, 0, os.SEEK_SET)
    shield_next_child()
    try:
        child = subprocess.Popen([bwrap, "--args", str(options), "--", *command], pass_fds=[options], preexec_fn=limit)
    except subprocess.SubprocessError as error:
        raise MystfuseError("the memory of the program could not be bounded: its control group is gone?") from error
    os.close(options)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.kill(_program_pid(child.pid), number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    for number in _IGNORED:
        # Not SIG_IGN, which the program would inherit.
        signal.signal(number, lambda number, frame: None)
    pidfd = os.pidfd_open(child.pid)
    poll = select.poll()
    for descriptor in (pidfd, *daemons.pidfds):
        poll.register(descriptor, select.POLLIN)
    ended = {descriptor for descriptor, _ in poll.poll()}
    os.close(pidfd)
    if pidfd not in ended:
        name = daemons.name(ended.pop())
        child.kill()
        child.wait()
        complain(f"{name}: its daemon has ended: the program was ended too", ExitStatus.FAILED)
        return ExitStatus.FAILED
    status = child.wait()
    return 128 - status if status < 0 else status


def _program_pid(bwrap: int) -> int:
    """The program: below bubblewrap is the first process of its name space, and below that the program. Before it has
    been started, the last of them that has been."""
    pid = bwrap
    with suppress(OSError, IndexError):
        for _ in range(2):
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid

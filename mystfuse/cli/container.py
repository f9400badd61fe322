"""Running a program with an image as its root, and the mounts around it: what ``exec`` and ``run`` do."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from mystfuse.cli.given_image import GivenImage
from mystfuse.cli.mount_jobs import make_job
from mystfuse.cli.mount_options import parse_mount_options
from mystfuse.cli.text import complain, warn
from mystfuse.container.bubblewrap import bubblewrap_options, find_bubblewrap
from mystfuse.container.namespaces import (
    drop_mounts_of_ours,
    enter_private_namespace,
    enter_user_namespace,
    leave_session_keyring,
    make_user_namespace,
    shield_next_child,
    show_own_processes,
)
from mystfuse.container.program import find_program
from mystfuse.container.resource_limits import limited_resources
from mystfuse.container.root_directory import Root, find_place
from mystfuse.container.seccomp_profile import program_filter
from mystfuse.container.shared_files import pass_positions_on, protect_shared_files, standard_names
from mystfuse.errors import ExitStatus, MountError, MystfuseError, UsageError, error_of
from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import run_in_background
from mystfuse.mounting.mount_job import MountJob
from mystfuse.system.landlock import leave_abstract_sockets
from mystfuse.system.output_paths import open_directory, read_trusted_link

DEFAULT_PROCESSES = 2048
"""As podman has it."""
RESOLVER = "/etc/resolv.conf"
"""s_magic of a superblock."""
_PATIENCE = 10_000
"""Milliseconds that a daemon gets to end."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED = (signal.SIGINT, signal.SIGQUIT)
"""The program gets these from the terminal itself, once it has been started."""
_STARTING = 10
"""Seconds that bubblewrap may take to start the program."""


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """A file or directory of the host, another image, or an empty directory, that the program sees at ``target``."""

    source: str | None
    """None for an empty directory in memory."""
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of an image: as those of ``mystfuse mount``."""
    is_image: bool = False
    is_read_only: bool = False
    """Of a file or directory."""
    is_guessed: bool = False
    """A file of which nobody has said that it is none but a file: it might have been an image once."""

    @classmethod
    def parse(cls, text: str, is_image: bool | None = None) -> ContainerMount:
        """Parse ``SOURCE=TARGET[,OPTION...]``.

        Args:
            is_image: whether SOURCE is to be an image, or to be shown as it is; None: an image is told by its contents,
                or by options that only images have.

        Raises:
            UsageError: it is neither, or has options without a meaning.
        """
        source, equals, rest = text.partition("=")
        target, _, options = rest.partition(",")
        if not source or not equals or not target.startswith("/"):
            raise UsageError(f"--mount {text}: must be SOURCE=/TARGET[,OPTION...]")
        words = set(options.split(",")) - {""}
        if is_image is None:
            is_image = not os.path.isdir(source) and (not words <= {"ro", "rw"} or not _is_plain_file(source))
        if not is_image:
            if not words <= {"ro", "rw"} or len(words) > 1:
                raise UsageError(f"--mount {text}: {source} is no image: ro or rw is all that can be said of it")
            is_guessed = not words and not os.path.isdir(source)
            return cls(source, target, is_read_only="ro" in words, is_guessed=is_guessed)
        given: dict[str, Any] = {"roothashes": (), "pubkeys": ()}
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
    process_limit: int | None = None
    """How many processes and threads it may have; None: ``DEFAULT_PROCESSES``, where that can be had; 0: no limit."""
    is_privileged: bool = False
    """It may do what we may."""


class _Daemons:
    """The processes that serve the mounts of a container."""

    def __init__(self) -> None:
        self.pidfds: list[int] = []
        self._names: list[str] = []

    def start(self, job: MountJob) -> None:
        """Mount; raises the error that the daemon reports."""
        started = run_in_background(partial(serve_mount, job), job.descriptors, dies_with_parent=True)
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
    leave_session_keyring()
    names = standard_names()
    enter_private_namespace()
    is_root = os.geteuid() == 0
    daemons = _Daemons()
    try:
        owner = {"allow_other": True} if is_root else {"map_root": True}
        image = GivenImage(container.image, {**container.options, **owner})
        # In our own name space: over whatever the host has mounted there.
        job = make_job(image, frozenset({"nonempty"}), find_place())
        # Everything is opened before anything can hide it.
        common = {"trust_self": container.options.get("trust_self")}
        if container.options.get("roothashes") or container.options.get("pubkeys"):
            # As soon as somebody is trusted, no image vouches for itself.
            common = {"trust_self": False}
        sources = [_open_source(mount, common, owner) for mount in container.mounts]
        resolver = _open_resolver() if container.has_network else None
        # As an ordinary user, bubblewrap makes one.
        user_namespace = make_user_namespace() if is_root and not container.is_privileged else None
        # Before anything hides a file, or takes away the mount that it is on.
        standard = [0, 1, 2] if container.is_privileged else protect_shared_files(bwrap, names)
        drop_mounts_of_ours(
            [mount.source for mount in container.mounts if mount.source is not None and not mount.is_image]
        )
        daemons.start(job)
        root = Root(job.options.mountpoint)
        if resolver is not None:
            # First: what --mount says comes over it.
            _give_resolver(root, resolver)
        # Whatever the image has there, everybody can write to it.
        root.mount_tmpfs("/tmp", container.options.get("overlay_limit"))  # noqa: S108
        for mount, source in zip(container.mounts, sources, strict=True):
            if isinstance(source, MountJob):
                target = root.make_directory(mount.target)
                daemons.start(replace(source, options=replace(source.options, mountpoint=target)))
            elif source is None:
                root.mount_tmpfs(mount.target, container.options.get("overlay_limit"), mount.is_read_only)
            else:
                root.bind(source, mount.target, mount.is_read_only or mount.is_guessed)
                os.close(source)
        system_calls = None
        if not container.is_privileged:
            system_calls = make_filter()
            if container.has_network:
                leave_abstract_sockets()
        program = find_program(
            root,
            container.program,
            container.environment.get("PATH", ""),
            container.directory,
            allows_32_bit=system_calls is None,
        )
        box = bubblewrap_options(
            root.path,
            container.environment,
            container.directory,
            container.has_network,
            container.hostname,
            is_confined=not container.is_privileged,
            system_calls=system_calls,
        )
        processes = DEFAULT_PROCESSES if container.process_limit is None else container.process_limit or None
        with limited_resources(container.memory_limit, processes, container.process_limit is not None) as limit:

            def begin() -> None:
                show_own_processes()
                if limit is not None:
                    limit()
                if user_namespace is not None:
                    enter_user_namespace(user_namespace)

            inherited = [] if system_calls is None else [system_calls]
            return _run(bwrap, box, [program, *container.arguments], daemons, begin, standard, inherited)
    finally:
        daemons.stop()


def _is_plain_file(path: str) -> bool:
    """Whether ``path`` is a file without anything of an image in it: no fssig at its end, no EXT2, no LUKS."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            start = file.read(FIRST_BYTES)
            file.seek(max(0, size - FSSIG_SIZE))
            end = file.read(8)
    except OSError:
        # The one who opens it as an image says why that cannot be.
        return False
    return not (has_fssig_magic(end) or is_luks(start) or is_ext2(start))


def _open_source(mount: ContainerMount, common: Mapping[str, Any], owner: Mapping[str, Any]) -> MountJob | int | None:
    """The job of mounting an image, its mountpoint still to be said, or a descriptor of a file or directory.

    Args:
        common: options that count for an image which does not have its own.
    """
    if mount.source is None:
        return None
    if mount.is_image:
        image = GivenImage(mount.source, {**common, **mount.options, **owner})
        return make_job(image, frozenset({"nonempty"}), "")
    if mount.is_guessed:
        # A damaged image is no image: its bytes are not to be taken for verified ones, nor to be changed.
        warn(f"{mount.source} is no image: {mount.target} is the file as it is, read-only (,ro or ,rw if it is meant)")
    try:
        fd = _open_as_it_is(mount.source)
    except OSError as error:
        raise MountError(f"{mount.source}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise MountError(f"{mount.source}: neither a file nor a directory")
    return fd


def _open_as_it_is(path: str) -> int:
    """A descriptor (O_PATH) of a file or directory; as root not through another user's link: what is mounted may be
    written to."""
    if os.path.isdir(path):
        return open_directory(path)
    directory, name = os.path.split(path)
    parent = open_directory(directory or ".")
    try:
        follow = 0 if read_trusted_link(name, parent) is not None else os.O_NOFOLLOW
        return os.open(name, os.O_PATH | os.O_CLOEXEC | follow, dir_fd=parent)
    finally:
        os.close(parent)


def _open_resolver() -> int | None:
    """A descriptor of the file that says who resolves names for the host; None if it has none."""
    with suppress(OSError):
        fd = os.open(RESOLVER, os.O_PATH | os.O_CLOEXEC)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return fd
        os.close(fd)
    return None


def _give_resolver(root: Root, resolver: int) -> None:
    """As container engines do: who resolves names for the host, does so for a program with the host's network, if the
    image says nothing about it."""
    try:
        if root.is_empty_or_absent(RESOLVER):
            # In images of systems with systemd-resolved it is a link into /run.
            root.remove_link(RESOLVER)
            root.bind(resolver, RESOLVER, read_only=True)
    except (OSError, MountError) as error:
        warn(f"names cannot be resolved: {error}")
    finally:
        os.close(resolver)


def make_filter() -> int | None:
    """A descriptor of a file with the filter of system calls for bubblewrap; None, with a warning, if we have none for
    this machine."""
    program = program_filter()
    if program is None:
        warn("this machine's system calls are not known: the program runs without a filter of them")
        return None
    return _as_file("bwrap-filter", program)


def _as_file(name: str, data: bytes) -> int:
    """A descriptor of a file in memory."""
    fd = os.memfd_create(name)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _run(
    bwrap: str,
    box: Sequence[str],
    command: Sequence[str],
    daemons: _Daemons,
    begin: Callable[[], None],
    standard: Sequence[int],
    inherited: Sequence[int],
) -> int:
    """Run bubblewrap, which calls ``begin`` before it begins, until it ends, or a daemon that it cannot do without.

    Args:
        standard: what it gets as its standard descriptors.
        inherited: further ones.
    """
    # In a file, where ps(1) does not show the environment.
    options = _as_file("bwrap-options", b"".join(os.fsencode(word) + b"\0" for word in box))
    shield_next_child()
    try:
        child = subprocess.Popen(
            [bwrap, "--args", str(options), "--", *command],
            stdin=standard[0],
            stdout=standard[1],
            stderr=standard[2],
            pass_fds=[options, *inherited],
            preexec_fn=begin,
        )
    except subprocess.SubprocessError as error:
        raise MystfuseError(
            "the program could not be bounded: its control group or user name space is gone?"
        ) from error
    for fd in (options, *inherited):
        os.close(fd)

    def forward(number: int, frame: FrameType | None) -> None:
        # To bubblewrap it would mean nothing: the first process of a name space ignores what it does not handle.
        deadline = time.monotonic() + _STARTING
        while (pid := _program_pid(child.pid)) is None and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(OSError):
            os.kill(child.pid if pid is None else pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)

    def forward_early(number: int, frame: FrameType | None) -> None:
        if _program_pid(child.pid) is None:
            forward(number, frame)

    for number in _IGNORED:
        # Not SIG_IGN, which the program would inherit.
        signal.signal(number, forward_early)
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
    pass_positions_on(standard)
    return 128 - status if status < 0 else status


def _program_pid(bwrap: int) -> int | None:
    """The program: below bubblewrap is the first process of its name space, and below that the program. None before it
    has been started."""
    pid = bwrap
    try:
        for _ in range(2):
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (OSError, IndexError):
        return None
    return pid

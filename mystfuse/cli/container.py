"""Running a program with an image as its root, and mounts in it: the common part of ``exec`` and ``run``."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mystfuse.cli.given_image import GivenImage
from mystfuse.cli.mount_jobs import make_job
from mystfuse.cli.mount_options import parse_mount_options
from mystfuse.cli.text import warn
from mystfuse.container.bubblewrap import bubblewrap_options, file_in_memory, find_bubblewrap, run_bubblewrap
from mystfuse.container.image_servers import ImageServers
from mystfuse.container.namespaces import (
    drop_mounts_of_ours,
    enter_private_namespace,
    enter_user_namespace,
    leave_session_keyring,
    make_user_namespace,
    show_own_processes,
)
from mystfuse.container.program import find_program
from mystfuse.container.resolv_conf import open_resolver, show_resolver
from mystfuse.container.resource_limits import limited_resources
from mystfuse.container.root_directory import Root, find_place
from mystfuse.container.seccomp_profile import program_filter
from mystfuse.container.shared_files import protect_shared_files, standard_names
from mystfuse.errors import MountError, UsageError
from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks
from mystfuse.mounting.mount_job import MountJob
from mystfuse.system.landlock import leave_abstract_sockets
from mystfuse.system.output_paths import open_directory, read_trusted_link

DEFAULT_PROCESSES = 2048
"""Like podman's default."""


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """A file or directory of the host, another image, or an empty directory, which the program sees at ``target``."""

    source: str | None
    """None for an empty directory in memory."""
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of an image: as those of ``mystfuse mount``."""
    is_image: bool = False
    is_read_only: bool = False
    """Of a file or directory."""
    is_guessed: bool = False
    """Given without options, and not like an image: it may be a damaged one."""

    @classmethod
    def parse(cls, text: str, is_image: bool | None = None) -> ContainerMount:
        """Parse ``SOURCE=TARGET[,OPTION...]``.

        Args:
            is_image: whether SOURCE is an image, or a plain file or directory; None: as its
                contents say, or options that only images have.

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
    """A program and what it sees."""

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
    """The program's memory limit in bytes."""
    process_limit: int | None = None
    """The maximum number of processes and threads; None: ``DEFAULT_PROCESSES``, where the system lets us; 0: no
    limit."""
    is_privileged: bool = False
    """It may do what we may."""


def run_container(container: Container) -> int:
    """Mount everything, run the program, unmount everything; returns its exit status, 128+N for signal N.

    The mounts are in a namespace of our own, so nothing is left in any case.

    Raises:
        MystfuseError: starting it failed.
    """
    bwrap = find_bubblewrap()
    leave_session_keyring()
    names = standard_names()
    enter_private_namespace()
    is_root = os.geteuid() == 0
    servers = ImageServers()
    try:
        owner = {"allow_other": True} if is_root else {"map_root": True}
        image = GivenImage(container.image, {**container.options, **owner})
        # In our own namespace, so it may hide a mount of the host.
        job = make_job(image, frozenset({"nonempty"}), find_place())
        # Open everything before a mount can hide it.
        common = {"trust_self": container.options.get("trust_self")}
        if container.options.get("roothashes") or container.options.get("pubkeys"):
            # Once a root hash or key is trusted, no image is trusted by itself.
            common = {"trust_self": False}
        sources = [_open_source(mount, common, owner) for mount in container.mounts]
        resolver = open_resolver() if container.has_network else None
        # As an ordinary user, bubblewrap makes one.
        user_namespace = make_user_namespace() if is_root and not container.is_privileged else None
        # Before a mount hides a file, or its own mount disappears.
        standard = [0, 1, 2] if container.is_privileged else protect_shared_files(bwrap, names)
        drop_mounts_of_ours(
            [mount.source for mount in container.mounts if mount.source is not None and not mount.is_image]
        )
        servers.start(job)
        root = Root(job.options.mountpoint)
        if resolver is not None:
            # First: mounts of --mount cover it.
            try:
                show_resolver(root, resolver)
            except (OSError, MountError) as error:
                warn(f"names cannot be resolved: {error}")
        # All users may write to it, whatever the image has there.
        root.mount_tmpfs("/tmp", container.options.get("overlay_limit"))  # noqa: S108
        for mount, source in zip(container.mounts, sources, strict=True):
            if isinstance(source, MountJob):
                target = root.make_directory(mount.target)
                servers.start(replace(source, options=replace(source.options, mountpoint=target)))
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
        with limited_resources(container.memory_limit, processes, container.process_limit is not None) as limits:

            def begin() -> None:
                show_own_processes()
                limits.enter()
                if user_namespace is not None:
                    enter_user_namespace(user_namespace)

            inherited = [] if system_calls is None else [system_calls]
            command = [program, *container.arguments]
            bound = None if limits.processes is None else limits.bound_processes
            return run_bubblewrap(bwrap, box, command, servers, begin, bound, standard, inherited)
    finally:
        servers.stop()


def _is_plain_file(path: str) -> bool:
    """Whether ``path`` is a file without the marks of an image: no fssig at its end, no EXT2, no LUKS."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            start = file.read(FIRST_BYTES)
            file.seek(max(0, size - FSSIG_SIZE))
            end = file.read(8)
    except OSError:
        # Opening it as an image reports why it does not open.
        return False
    return not (has_fssig_magic(end) or is_luks(start) or is_ext2(start))


def _open_source(mount: ContainerMount, common: Mapping[str, Any], owner: Mapping[str, Any]) -> MountJob | int | None:
    """The job of mounting an image, without its mountpoint yet, or a descriptor of a file or directory.

    Args:
        common: options that count for an image which does not have its own.
    """
    if mount.source is None:
        return None
    if mount.is_image:
        image = GivenImage(mount.source, {**common, **mount.options, **owner})
        return make_job(image, frozenset({"nonempty"}), "")
    if mount.is_guessed:
        # Refuse a damaged image: its bytes must not be mistaken for verified ones, nor be changed.
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
    """A descriptor (O_PATH) of a file or directory; for root not through another user's link, as the program may write
    to it."""
    if os.path.isdir(path):
        return open_directory(path)
    directory, name = os.path.split(path)
    parent = open_directory(directory or ".")
    try:
        follow = 0 if read_trusted_link(name, parent) is not None else os.O_NOFOLLOW
        return os.open(name, os.O_PATH | os.O_CLOEXEC | follow, dir_fd=parent)
    finally:
        os.close(parent)


def make_filter() -> int | None:
    """A descriptor of a file with the filter of system calls for bubblewrap; None, with a warning, if we have none for
    this machine."""
    program = program_filter()
    if program is None:
        warn("this machine's system calls are not known: the program runs without a filter of them")
        return None
    return file_in_memory("bwrap-filter", program)

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
from mystfuse.cli.remote_options import OF_ALL_IMAGES
from mystfuse.cli.text import warn
from mystfuse.container.after_program import Aftermath, Waiting
from mystfuse.container.bubblewrap import bubblewrap_options, file_in_memory, find_bubblewrap, run_bubblewrap
from mystfuse.container.image_config import find_image_user, read_config
from mystfuse.container.image_servers import ImageServers
from mystfuse.container.namespaces import (
    drop_mounts_of_ours,
    enter_private_namespace,
    leave_groups,
    leave_session_keyring,
    show_own_processes,
)
from mystfuse.container.program import find_program
from mystfuse.container.resolv_conf import open_resolver, show_resolver
from mystfuse.container.resource_limits import limited_resources
from mystfuse.container.root_directory import Root, find_place
from mystfuse.container.seccomp_profile import program_filter
from mystfuse.container.shared_files import protect_shared_files, standard_names
from mystfuse.container.subordinate_ids import NoSubordinateIds, find_subordinate_ids
from mystfuse.container.user_namespaces import (
    become,
    enter_user_namespace,
    make_callers_namespace,
    make_root_namespaces,
    make_user_namespace,
)
from mystfuse.devices.open_source import is_address
from mystfuse.errors import MountError, MystfuseError, UsageError
from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.formats.oci_config import User
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
        if is_address(text):
            # Which may have "=" in its query.
            source, equals, rest = text.partition("=/")
            rest = "/" + rest
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
    program: str | None
    """None: the image's own, in the directory, with the variables and as the user that its configuration names."""
    arguments: Sequence[str]
    environment: Mapping[str, str]
    given_variables: frozenset[str] = frozenset()
    """Those of the environment that the configuration does not change."""
    directory: str | None = None
    """Where the program starts; None: where its configuration says, or in the root directory."""
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
    as_root: bool = False
    """It is root in its namespace; as root it is that anyway."""
    aftermath: Aftermath | None = None
    """What is done with the image when the program has ended."""

    @property
    def most_processes(self) -> int | None:
        """The maximum number of processes and threads; None for no limit."""
        return DEFAULT_PROCESSES if self.process_limit is None else self.process_limit or None


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Descriptors of user namespaces."""

    own: int | None
    """That of the mounts, which we enter; None: the present one."""
    program: int | None
    """That of the program; None: bubblewrap makes one, or it has none."""
    has_one_user: bool = False
    """The program is root, and there is nobody else."""

    @classmethod
    def make(cls, container: Container) -> Namespaces:
        """Make them; raises MystfuseError if the system does not allow it.

        Call it before a key is read: from then on this process is not dumpable, and may not write the maps.
        """
        if os.geteuid() == 0:
            # As root, bubblewrap would make one with a single user.
            return cls(None, None if container.is_privileged else _make_roots_namespace())
        if not container.as_root:
            return cls(make_callers_namespace(os.geteuid(), os.getegid()), None)
        try:
            return cls(*make_root_namespaces(find_subordinate_ids().write_maps, container.most_processes))
        except NoSubordinateIds as error:
            found = cls(*make_root_namespaces(None, container.most_processes), has_one_user=True)
            warn(f"the program's root has no other users (chown fails, apt needs -o APT::Sandbox::User=root): {error}")
            return found


def run_container(container: Container) -> int:
    """Mount everything, run the program, unmount everything; returns its exit status, 128+N for signal N.

    The mounts are in a namespace of our own, so nothing is left in any case.

    Raises:
        MystfuseError: starting it failed, or what was to be done when it had ended.
    """
    bwrap = find_bubblewrap()
    leave_session_keyring()
    names = standard_names()
    namespaces = Namespaces.make(container)
    is_root = os.geteuid() == 0
    servers = ImageServers()
    aftermath, waiting = container.aftermath, None
    try:
        if aftermath is not None:
            aftermath.prepare()
        # Outside of our namespaces, in which files of others, root's too, have no owner that we could know.
        job, jobs = _open_images(container, _owner_options(container, is_root, namespaces.has_one_user))
        enter_private_namespace(namespaces.own)
        # Open everything before a mount can hide it.
        sources = [
            each_job or _open_source(mount, is_root) for mount, each_job in zip(container.mounts, jobs, strict=True)
        ]
        resolver = open_resolver() if container.has_network else None
        # Before a mount hides a file, or its own mount disappears.
        standard = [0, 1, 2] if container.is_privileged else protect_shared_files(bwrap, names)
        if is_root:
            drop_mounts_of_ours(
                [mount.source for mount in container.mounts if mount.source is not None and not mount.is_image]
            )
        servers.start(job)
        root = Root(job.options.mountpoint)
        container, user = _configured(container, root, is_root or (container.as_root and not namespaces.has_one_user))
        if user is not None:
            # Who may not make them.
            root.make_own()
        assert container.program is not None
        directory = container.directory or "/"
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
                root.made.mounted(target)
            elif source is None:
                root.mount_tmpfs(mount.target, container.options.get("overlay_limit"), mount.is_read_only)
            else:
                root.bind(source, mount.target, mount.is_read_only or mount.is_guessed)
                os.close(source)
        if aftermath is not None:
            root.make_own()
            # Before this process is confined.
            waiting = Waiting(aftermath, root.path)
        system_calls = None
        if not container.is_privileged:
            system_calls = make_filter()
            if container.has_network:
                leave_abstract_sockets()
        program = find_program(
            root,
            container.program,
            container.environment.get("PATH", ""),
            directory,
            allows_32_bit=system_calls is None,
        )
        box = bubblewrap_options(
            root.path,
            container.environment,
            directory,
            container.has_network,
            container.hostname,
            is_confined=not container.is_privileged,
            system_calls=system_calls,
            user=None if user is None or not user.uid else (user.uid, user.gid),
        )
        with limited_resources(
            container.memory_limit, container.most_processes, container.process_limit is not None, is_root
        ) as limits:

            def begin() -> None:
                show_own_processes()
                limits.enter()
                if namespaces.own is not None and namespaces.program is not None:
                    leave_groups()
                if namespaces.program is not None:
                    enter_user_namespace(namespaces.program)
                if user is not None:
                    become(user)

            inherited = [] if system_calls is None else [system_calls]
            command = [program, *container.arguments]
            bound = None if limits.processes is None else limits.bound_processes
            status = run_bubblewrap(bwrap, box, command, servers, begin, bound, standard, inherited)
        if waiting is not None:
            root.made.undo()
            waiting.finish(status)
        return status
    finally:
        if waiting is not None:
            waiting.close()
        if aftermath is not None:
            aftermath.close()
        servers.stop()


def _configured(container: Container, root: Root, has_users: bool) -> tuple[Container, User | None]:
    """The container with the program of the image's own configuration, and its user if that is another than root or us;
    without a change if it has a program.

    Args:
        has_users: whether there are others than root and us.

    Raises:
        UsageError, FormatError: the image has no configuration, or a wrong one.
    """
    if container.program is not None:
        return container, None
    config = read_config(root)
    user = find_image_user(root, config.user)
    if not has_users and user.uid not in (0, os.geteuid()):
        warn(f"the image wants the program to be user {config.user}: it is you (--root gives the image its users)")
    environment = {**container.environment}
    if has_users and "HOME" not in container.given_variables:
        environment["HOME"] = user.home
    environment |= {name: value for name, value in config.environment if name not in container.given_variables}
    if not container.directory and config.directory:
        # As other tools do where the image lacks it.
        root.make_directory(config.directory)
    configured = replace(
        container,
        program=config.command[0],
        arguments=config.command[1:],
        environment=environment,
        directory=container.directory or config.directory or "/",
    )
    return configured, user if has_users and (user.uid or user.gid or user.groups) else None


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


def _make_roots_namespace() -> int:
    try:
        return make_user_namespace()
    except MystfuseError as error:
        raise MystfuseError(f"{error} (--privileged does without)") from error


def _open_images(container: Container, owner: Mapping[str, Any]) -> tuple[MountJob, list[MountJob | None]]:
    """The jobs of mounting the image and those of its mounts that are images, which have no mountpoint yet.

    Args:
        owner: the options that say whose their files are.
    """
    options = {**container.options, **owner}
    # In our own namespace, so it may hide a mount of the host.
    job = _open_image(container, container.image, options, find_place())
    common = {"trust_self": container.options.get("trust_self")}
    cache = {name: container.options[name] for name in OF_ALL_IMAGES if container.options.get(name)}
    if container.options.get("roothashes") or container.options.get("pubkeys"):
        # Once a root hash or key is trusted, no image is trusted by itself.
        common = {"trust_self": False}
    return job, [
        _open_image(container, mount.source, {**common, **cache, **mount.options, **owner}, "")
        if mount.is_image and mount.source is not None
        else None
        for mount in container.mounts
    ]


def _owner_options(container: Container, is_root: bool, has_one_user: bool) -> dict[str, Any]:
    """Whose an image's files are: those of its own users if the program is root, who may look into the mount."""
    if not is_root and not container.as_root:
        return {"map_root": True}
    # As nobody's, most of them would be closed to root.
    return {"allow_other": True, **({"uid": 0, "gid": 0} if has_one_user else {})}


def _open_image(container: Container, path: str, options: Mapping[str, Any], mountpoint: str) -> MountJob:
    job = make_job(GivenImage(path, options), frozenset({"nonempty"}), mountpoint)
    # Root of the namespace in which it is mounted.
    return replace(job, options=replace(job.options, owner=(0, 0))) if container.as_root else job


def _open_source(mount: ContainerMount, is_root: bool) -> int | None:
    """A descriptor of a file or directory to be shown; None for an empty directory."""
    if mount.source is None:
        return None
    if mount.is_guessed:
        # Refuse a damaged image: its bytes must not be mistaken for verified ones, nor be changed.
        warn(f"{mount.source} is no image: {mount.target} is the file as it is, read-only (,ro or ,rw if it is meant)")
    try:
        fd = _open_as_it_is(mount.source) if is_root else os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{mount.source}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise MountError(f"{mount.source}: neither a file nor a directory")
    return fd


def _open_as_it_is(path: str) -> int:
    """A descriptor (O_PATH) of a file or directory, not through a link that root does not follow, as the program may
    write to it."""
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

"""``mystfuse mount``, the main job: mount an image, in the background unless told otherwise."""

from __future__ import annotations

import difflib
import errno
import logging
import math
import os
import re
import select
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.keys import key_options, load_keys, parse_kdf_limit
from mystfuse.cli.options import (
    TREE_PARAMETERS,
    GivenPath,
    io_timeout_option,
    load_trust,
    parse_id,
    parse_seconds,
    parse_size,
    trust_options,
)
from mystfuse.cli.progress import prepare_progress, progress
from mystfuse.cli.text import complain, say
from mystfuse.cli.verity_options import open_source
from mystfuse.crypto.secret import harden_process
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.patience import IO_TIMEOUT, PatientSource
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, MountError, MystfuseError, UsageError, one_line
from mystfuse.fuse.mount_options import MountOptions, OnCorruption
from mystfuse.fuse.requirements import require_fuse
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import close_descriptors, run_in_background
from mystfuse.mounting.mount_job import MountJob
from mystfuse.mounting.mount_table import find_daemon, find_mount, find_mount_of
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.mounting.systemd_notify import Notifier
from mystfuse.overlay.store import open_store_file
from mystfuse.system.memory import available_memory
from mystfuse.system.openat2 import RESOLVE_NO_SYMLINKS, openat2
from mystfuse.system.output_paths import open_for_appending
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.sources import TrustOptions

log = logging.getLogger(__name__)

MIN_OVERLAY_LIMIT = 1 << 20
"""Bytes."""


@click.command("mount", short_help="Mount an image, every block verified.")
@trust_options
@key_options
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-o", "mount_options", multiple=True, metavar="OPT[,OPT]", help="Mount options, see above.")
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes, rather than forget them.")
@click.option(
    "--overlay-limit",
    type=parse_size,
    metavar="SIZE",
    help="Memory that what is written may take up, at most (default: half of what is available).",
)
@click.option(
    "--overlay-store",
    type=GivenPath(),
    metavar="DIR",
    help="Where to put, encrypted, what memory has no room for.",
)
@click.option("--allow-other", is_flag=True, help="Let other users in.")
@click.option("--uid", type=parse_id, metavar="N", help="Show everything as owned by this user.")
@click.option("--gid", type=parse_id, metavar="N", help="Show everything as owned by this group.")
@click.option("--map-root", is_flag=True, help="Show what root owns in the image as owned by the caller.")
@click.option(
    "--on-corruption",
    type=click.Choice([choice.value for choice in OnCorruption]),
    default=OnCorruption.EIO.value,
    show_default=True,
    help="What a damaged block does: fail the request, or end the mount as well.",
)
@io_timeout_option
@click.option(
    "--idle-timeout",
    type=parse_seconds,
    metavar="SECONDS",
    default="0",
    show_default=True,
    help="Unmount when unused; 0: never.",
)
@click.option(
    "--log-file",
    type=GivenPath(path_type=Path),
    help="Log here (default: stderr with -f, else syslog).",
)
@click.option("--ready-fd", type=int, metavar="N", help="Write a line to descriptor N when mounted.")
@click.argument("image", type=GivenPath())
@click.argument("mountpoint", type=GivenPath())
def command(mount_options: tuple[str, ...], image: str, mountpoint: str, **given: Any) -> ExitStatus:
    """Mount IMAGE on MOUNTPOINT; every block is verified before anyone sees it.

    Each option can also be given to -o under its own name, with underscores for dashes: -o ro,allow_other,roothash=HEX.
    Further ones are nonempty, suid, dev, noexec, noxattr, noacl, and nocontrol (no .mystfuse directory).
    """
    try:
        flags = parse_mount_options(",".join(mount_options), given) if mount_options else frozenset[str]()
        job = prepare(given, flags, image, mountpoint)
    except MystfuseError as error:
        if given["foreground"]:
            Notifier.from_environment().send(f"STATUS={one_line(str(error))}")
        raise
    if job.foreground:
        close_descriptors(job.descriptors)
        return ExitStatus(serve_mount(job, _report_in_foreground))
    started = run_in_background(partial(serve_mount, job), job.descriptors)
    if started.status is not ExitStatus.DONE:
        return complain(started.message, started.status)
    say(started.message)
    return started.status


def _report_in_foreground(status: ExitStatus, message: str) -> None:
    if status is ExitStatus.DONE:
        say(message)
    else:
        complain(message, status)


_FLAGS = frozenset({"nonempty", "suid", "dev", "noexec", "noxattr", "noacl", "nocontrol", "default_permissions"})
_IGNORED = frozenset({"rw", "noatime", "nosuid", "nodev", "exec", "async"})
_IGNORED_VALUES = frozenset({"fsname", "subtype"})
"""mount.fuse3 honours them where it mounts; where we mount, the mount table shows the image."""
_LONG = frozenset({"allow_other", "insecure", "map_root", "foreground", "read_only", "no_superblock"})
_VALUES: dict[str, Callable[[str], Any]] = {
    "uid": parse_id,
    "gid": parse_id,
    "on_corruption": OnCorruption,
    "io_timeout": parse_seconds,
    "idle_timeout": parse_seconds,
    "log_file": Path,
    "key_file": str,
    "keyfile": str,
    "passphrase_file": str,
    "kdf_limit": parse_kdf_limit,
    "hash_offset": parse_size,
    "hash_device": str,
    **dict.fromkeys(TREE_PARAMETERS, str),
    "overlay_limit": parse_size,
    "overlay_store": str,
    "ready_fd": int,
}
_OTHER_NAMES = {"keyfile": "key_file"}
"""As crypttab(5) and the users of mount(8) spell it."""
_LISTS = {"roothash": "roothashes", "pubkey": "pubkeys"}
_CHOICES = {"ro": ("read_only", True), "trust_self": ("trust_self", True), "no_trust_self": ("trust_self", False)}
OPTION_NAMES = frozenset({*_FLAGS, *_IGNORED, *_IGNORED_VALUES, *_LONG, *_VALUES, *_LISTS, *_CHOICES})
"""What -o takes."""


def parse_mount_options(text: str, given: dict[str, Any]) -> frozenset[str]:
    """Put what -o says into ``given``, under the long options' names; returns the flags that have no long option.

    A comma inside a value is written ``\\,``.

    Raises:
        UsageError: not an option, or not a value that it can have.
        MountError: ``remount``, as mount(8) passes it on.
    """
    flags: set[str] = set()
    for part in re.split(r"(?<!\\),", text):
        name, equals, value = part.replace("\\,", ",").partition("=")
        if not name and not equals:
            continue
        if equals and not value and name in (*_LISTS, *_VALUES):
            raise UsageError(f"-o {name}=: it is empty (a variable that is not set?)")
        if name in _LISTS and equals:
            given[_LISTS[name]] = (*given[_LISTS[name]], value)
        elif name in _VALUES and equals:
            try:
                given[_OTHER_NAMES.get(name, name)] = _VALUES[name](value)
            except (click.BadParameter, ValueError) as error:
                raise UsageError(f"-o {part}: not a value that it can have") from error
        elif name in _LONG and not equals:
            given[name] = True
        elif name in _CHOICES and not equals:
            parameter, choice = _CHOICES[name]
            given[parameter] = choice
        elif name in _FLAGS and not equals:
            flags.add(name)
        elif part == "remount":
            raise MountError("a mystfuse mount cannot be changed while it is there: unmount it and mount it again")
        elif name not in (_IGNORED_VALUES if equals else _IGNORED):
            alike = difflib.get_close_matches(name, OPTION_NAMES - {name}, n=1, cutoff=0.75)
            meant = f"; is {alike[0]} meant?" if alike and name not in OPTION_NAMES else ""
            raise UsageError(f"-o {part}: no such mount option, or its value is missing or not wanted{meant}")
    return frozenset(flags)


def prepare(
    given: Mapping[str, Any],
    flags: frozenset[str],
    image: str,
    mountpoint: str,
    mount_namespace: AbstractContextManager[object] | None = None,
) -> MountJob:
    """The job of mounting ``image`` on ``mountpoint`` as the options say, everything checked, keys read.

    Args:
        given: options by the long names' parameters; those that are missing have their defaults.
        mount_namespace: where the mountpoint is looked at; files are opened outside it.
    """
    ready_fd: int | None = given.get("ready_fd")
    if ready_fd is not None:
        try:
            os.fstat(ready_fd if 2 < ready_fd < 1 << 31 else -1)
        except OSError as error:
            raise UsageError(f"--ready-fd {ready_fd}: not an open descriptor above 2") from error
    descriptor = _passed_descriptor(mountpoint, flags)
    if {"suid", "dev"} & flags and os.geteuid() and descriptor is None:
        raise UsageError("-o suid and -o dev are for root alone")
    source, given = open_source(image, given)
    directory: int | None = None
    if descriptor is not None:
        mount = find_mount_of(descriptor)
        path = mount.mountpoint if mount is not None else mountpoint
    else:
        with mount_namespace or nullcontext():
            path = resolve_mountpoint(mountpoint)
            if "nonempty" not in flags:
                _refuse_second(path, mountpoint)
            directory = _open_mountpoint(path, mountpoint, "nonempty" in flags)
    log_file = _open_log_file(given.get("log_file"))
    job = make_job(given, flags, source, path)
    return replace(
        job,
        options=replace(job.options, directory=directory, descriptor=descriptor),
        foreground=given.get("foreground", False),
        log_file=log_file,
        ready_fd=ready_fd,
    )


def make_job(
    given: Mapping[str, Any], flags: frozenset[str], source: FileSource | JoinedSource, mountpoint: str
) -> MountJob:
    """The job of mounting ``source`` on the directory ``mountpoint``, with the trust and keys that the options name.

    Args:
        given: options by the long names' parameters; those that are missing have their defaults. A ``policy`` among
            them stands for all trust options, and for what is trusted on this machine.

    Raises:
        MountError: nothing can be mounted here.
        UsageError, NotTrusted, WrongKey: as the options say.
    """
    require_fuse()
    policy: TrustPolicy | None = given.get("policy")
    if policy is not None:
        trust = TrustOptions(policy, None, None)
    else:
        trust = load_trust(
            given.get("roothashes", ()),
            given.get("pubkeys", ()),
            given.get("insecure", False),
            given.get("hash_offset"),
            trust_self=given.get("trust_self"),
        )
    options = MountOptions(
        mountpoint=mountpoint,
        fsname=source.resolved_name(),
        nonempty="nonempty" in flags,
        read_only=given.get("read_only", False),
        overlay_limit=_overlay_limit(given.get("overlay_limit")),
        overlay_store=_overlay_store(given.get("overlay_store"), given.get("read_only", False)),
        allow_other=given.get("allow_other", False),
        suid="suid" in flags,
        dev="dev" in flags,
        noexec="noexec" in flags,
        uid=given.get("uid"),
        gid=given.get("gid"),
        map_root=given.get("map_root", False),
        xattr="noxattr" not in flags,
        acl="noacl" not in flags,
        control="nocontrol" not in flags,
        io_timeout=given.get("io_timeout", IO_TIMEOUT),
        idle_timeout=given.get("idle_timeout", math.inf),
        on_corruption=OnCorruption(given.get("on_corruption", OnCorruption.EIO)),
    )
    keys = load_keys(
        given.get("key_file"),
        given.get("passphrase_file"),
        given.get("kdf_limit"),
        PatientSource(source, options.io_timeout),
        may_ask=True,
    )
    return MountJob(source, trust, keys, options, progress, prepare_progress)


def _refuse_second(path: str, name: str) -> None:
    """Raise MountError if we have mounted there already: nobody looks into a mount to find it, which might hang."""
    mount = find_mount(path)
    if mount is None:
        return
    daemon = find_daemon(mount)
    if daemon is not None:
        os.close(daemon)
        raise MountError(f"{name}: {mount.source} is mounted there already (mystfuse umount {name} takes it away)")


def _open_log_file(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        return open_for_appending(path)
    except OSError as error:
        raise MystfuseError(f"--log-file {path}: {error.strerror}") from error


def _passed_descriptor(mountpoint: str, flags: frozenset[str]) -> int | None:
    """The N of a mountpoint /dev/fd/N: a /dev/fuse that the caller has mounted, as mount.fuse3 does to start us without
    privileges."""
    match = re.fullmatch(r"/dev/fd/(\d{1,9})", mountpoint)
    if match is None:
        return None
    descriptor = int(match[1])
    try:
        is_fuse = os.fstat(descriptor).st_rdev == os.stat("/dev/fuse").st_rdev
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}") from error
    poll = select.poll()
    poll.register(descriptor, 0)
    # POLLERR comes unasked, from a /dev/fuse that is not mounted, or not any more.
    if not is_fuse or poll.poll(0):
        raise MountError(f"{mountpoint}: not a descriptor of /dev/fuse that is mounted somewhere")
    if "default_permissions" not in flags:
        raise UsageError(f"{mountpoint}: mount with -o default_permissions, or nobody checks permissions there")
    return descriptor


def _overlay_limit(given: int | None) -> int:
    if given is None:
        return available_memory() // 2
    if given < MIN_OVERLAY_LIMIT:
        raise UsageError(
            f"--overlay-limit {given}: too little to write anything; give at least {MIN_OVERLAY_LIMIT >> 20}M, "
            "or --read-only"
        )
    return given


def _overlay_store(directory: str | None, read_only: bool) -> int | None:
    if directory is None or read_only:
        return None
    harden_process()
    return open_store_file(directory)


def _open_without_links(path: str) -> int:
    """A descriptor (O_PATH) of the directory at ``path``, which has no symbolic link in it; OSError if it has."""
    try:
        return openat2(path, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        # An old kernel, or a filter that does not know it (systemd 252).
        if error.errno != errno.ENOSYS:
            raise
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{directory}") == path:
        return directory
    os.close(directory)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _open_mountpoint(path: str, name: str, may_be_filled: bool) -> int:
    """A descriptor (O_PATH) of the directory to mount on, which must have no symbolic link in its ``path`` any more."""
    directory = -1
    try:
        directory = _open_without_links(path)
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            with os.scandir(listing) as entries:
                is_filled = any(entries)
        finally:
            os.close(listing)
    except FileNotFoundError as error:
        raise MountError(f"{name}: no such directory to mount on (mkdir makes one)") from error
    except NotADirectoryError as error:
        raise MountError(f"{name}: not a directory, so nothing can be mounted on it") from error
    except PermissionError as error:
        raise MountError(f"{name}: {error.strerror}") from error
    except OSError as error:
        raise MountError(
            f"{name}: {error.strerror}: left over from a mount that died? (mystfuse umount {name} clears it away)"
        ) from error
    if is_filled and not may_be_filled:
        raise MountError(f"{name}: not empty; what is in it would be hidden (-o nonempty mounts all the same)")
    return directory

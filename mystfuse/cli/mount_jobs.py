"""Mount jobs, made from the command line: everything checked, keys read, nothing mounted yet."""

from __future__ import annotations

import math
import os
import re
import select
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mystfuse.cli.given_image import GivenImage
from mystfuse.cli.progress import prepare_progress, progress
from mystfuse.crypto.secret import harden_process
from mystfuse.errors import FormatError, MountError, MystfuseError, UsageError
from mystfuse.fuse.mount_options import MountOptions, OnCorruption
from mystfuse.fuse.requirements import require_fuse
from mystfuse.mounting.mount_job import MountJob
from mystfuse.mounting.mount_table import find_mount_of
from mystfuse.mounting.mountpoint import open_mountpoint, refuse_second_mount, resolve_mountpoint
from mystfuse.overlay.encrypted_store import open_store_file
from mystfuse.system.memory import available_memory
from mystfuse.system.output_paths import open_for_appending

MIN_OVERLAY_LIMIT = 1 << 20
"""Bytes."""


def prepare(
    given: Mapping[str, Any],
    flags: frozenset[str],
    path: str,
    mountpoint: str,
    mount_namespace: AbstractContextManager[object] | None = None,
) -> MountJob:
    """The job of mounting the image at ``path`` on ``mountpoint`` as the options say, everything checked, keys read.

    Args:
        given: options by the long names' parameters; those that are missing have their defaults.
        mount_namespace: where the mountpoint is resolved; files are opened outside it.
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
    try:
        image = GivenImage(path, given)
    except FormatError as error:
        if os.path.isdir(path) and os.path.isfile(mountpoint):
            raise FormatError(f"{error} (the image comes first: mystfuse {mountpoint} {path})") from None
        raise
    directory: int | None = None
    if descriptor is not None:
        mount = find_mount_of(descriptor)
        resolved = mount.mountpoint if mount is not None else mountpoint
    else:
        with mount_namespace or nullcontext():
            resolved = resolve_mountpoint(mountpoint)
            if "nonempty" not in flags:
                refuse_second_mount(resolved, mountpoint)
            directory = open_mountpoint(resolved, mountpoint, "nonempty" in flags)
    log_file = _open_log_file(given.get("log_file"))
    job = make_job(image, flags, resolved)
    return replace(
        job,
        options=replace(job.options, directory=directory, descriptor=descriptor),
        foreground=given.get("foreground", False),
        log_file=log_file,
        ready_fd=ready_fd,
    )


def make_job(image: GivenImage, flags: frozenset[str], mountpoint: str) -> MountJob:
    """The job of mounting ``image`` on the directory ``mountpoint``, with the trust and keys that the options name.

    Raises:
        MountError: /dev/fuse or pyfuse3 is missing.
        UsageError, NotTrusted, WrongKey: as the options say.
    """
    require_fuse()
    given = image.given
    trust = image.load_trust()
    options = MountOptions(
        mountpoint=mountpoint,
        fsname=image.source.resolved_name(),
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
        fastpath="nofastpath" not in flags,
        handles="nohandles" not in flags,
        io_timeout=image.io_timeout,
        idle_timeout=given.get("idle_timeout", math.inf),
        on_corruption=OnCorruption(given.get("on_corruption", OnCorruption.EIO)),
    )
    return MountJob(image.source, trust, image.load_keys(trust), options, progress, prepare_progress)


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
    # POLLERR comes unasked, for a /dev/fuse without a mount.
    if not is_fuse or poll.poll(0):
        raise MountError(f"{mountpoint}: not a descriptor of /dev/fuse that is mounted somewhere")
    if "default_permissions" not in flags:
        raise UsageError(f"{mountpoint}: mount it with -o default_permissions: without it no permissions are checked")
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

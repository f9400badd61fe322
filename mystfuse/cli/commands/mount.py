"""``mystfuse mount``, the main job: mount an image, in the background or, with -f, in the foreground."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.given_image import image_options
from mystfuse.cli.mount_jobs import prepare
from mystfuse.cli.mount_options import MountOptions, parse_mount_options
from mystfuse.cli.options import (
    DirectoryPath,
    GivenPath,
    ImagePath,
    io_timeout_option,
    overlay_options,
    parse_id,
    parse_seconds,
)
from mystfuse.cli.text import complain, say
from mystfuse.errors import ExitStatus, MystfuseError, one_line
from mystfuse.fuse.mount_options import OnCorruption
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import close_descriptors, run_in_background
from mystfuse.mounting.systemd_notify import Notifier


@click.command("mount", short_help="Mount an image, every block verified.")
@image_options
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "-o", "mount_options", type=MountOptions(), multiple=True, metavar="OPT[,OPT]", help="Mount options, see above."
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes, rather than forget them.")
@overlay_options
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
@click.argument("image", type=ImagePath())
@click.argument("mountpoint", type=DirectoryPath())
def command(mount_options: tuple[str, ...], image: str, mountpoint: str, **given: Any) -> ExitStatus:
    """Mount IMAGE on MOUNTPOINT; every block is verified before anyone sees it.

    Each option can also be given to -o under its own name, with underscores for dashes: -o ro,allow_other,roothash=HEX.
    Further ones are nonempty, suid, dev, noexec, noxattr, noacl, nocontrol (no .mystfuse directory),
    nofastpath (all requests take the long way, through Python), and nohandles (no file handles, for
    overlayfs on the mount with a kernel from 6.16 on).
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

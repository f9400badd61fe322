"""``mystfuse umount``: unmount, and wait until the daemon has ended; before that, keep what was written, if told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mystfuse.cli.commands.status import read_status
from mystfuse.cli.new_image_options import new_image_options
from mystfuse.cli.options import GivenPath, MountpointPath, parse_seconds
from mystfuse.cli.text import say, warn
from mystfuse.errors import MountError, MystfuseError, UsageError
from mystfuse.mounting.ask_mounts import ask
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.mounting.unmount import unmount_and_wait, unmount_by_force, unmount_stale
from mystfuse.system.units import describe_bytes

_ASKING = 1.0
"""Seconds that a mount has to say how much is forgotten with it."""
_OWN = frozenset({"lazy", "force", "timeout", "stale", "quiet", "new_image", "mountpoint"})
"""The parameters that are not about a new image."""


@click.command("umount", short_help="Unmount, and wait until the daemon is gone.")
@click.option("-l", "--lazy", is_flag=True, help="Take it out of the tree now, even if it is in use.")
@click.option("-f", "--force", is_flag=True, help="The same, and end it for those who use it.")
@click.option(
    "--timeout",
    type=parse_seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="Seconds to wait for the daemon to end, and (2 at most) for a mount in use to be left.",
)
@click.option("--stale", is_flag=True, help="Only clear away what a killed daemon has left, if anything.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say how much is forgotten, or who used it.")
@click.option(
    "--commit",
    "new_image",
    type=GivenPath(path_type=Path),
    metavar="NEWIMAGE",
    help="First make NEWIMAGE of it, as commit does with these options; if that fails, leave it mounted:",
)
@new_image_options
@click.option("--decrypt", is_flag=True, help="Make a plain image of an encrypted one.")
@click.option("--overwrite", is_flag=True, help="Overwrite NEWIMAGE.")
@click.argument("mountpoint", type=MountpointPath())
@click.pass_context
def command(
    context: click.Context,
    /,
    lazy: bool,
    force: bool,
    timeout: float,
    stale: bool,
    quiet: bool,
    new_image: Path | None,
    mountpoint: str,
    **given: Any,
) -> None:
    """Unmount MOUNTPOINT, wait until the process that served it is gone, and say how much was written and is forgotten.

    A mount that is in use is tried again for two seconds; then the error names the processes. With --force they get
    errors (ENOTCONN) from then on, and a daemon that hangs is killed after the time-out. Also clears away what is left
    of a mount whose daemon was killed.
    """
    path = resolve_mountpoint(mountpoint)
    if new_image is not None and (stale or lazy):
        # Who has it open could go on writing, and lose that.
        raise UsageError(f"--commit and {'--stale' if stale else '--lazy'} exclude each other")
    if stale:
        _refuse_options_of_commit(context)
        unmount_stale(path)
        return
    if new_image is not None:
        _commit(context, mountpoint, new_image, given | {"quiet": quiet})
    else:
        _refuse_options_of_commit(context)
    written = None if quiet or new_image is not None else _bytes_written(path, timeout)
    try:
        if force:
            users = unmount_by_force(path, timeout)
            if users and not quiet:
                warn(f"{mountpoint}: ended for {users}")
        else:
            unmount_and_wait(path, lazy, timeout)
    except MystfuseError as error:
        raise error.at(f"{new_image} is made, but") if new_image is not None else error from None
    if written:
        say(f"{mountpoint}: unmounted; {describe_bytes(written)} of writes are forgotten")
    elif new_image is not None and not quiet:
        say(f"{mountpoint}: unmounted; {new_image} has what was written")


def _commit(context: click.Context, mountpoint: str, new_image: Path, given: dict[str, Any]) -> None:
    """Make the new image; raises MountError if the mount has been written to meanwhile, which is not in it."""
    # Only here: it takes long to import.
    from mystfuse.cli.commands import commit

    overwrite = given.pop("overwrite")
    if not overwrite and os.path.lexists(new_image):
        raise MystfuseError(f"{new_image}: already exists (--overwrite overwrites it)")
    before = read_status(mountpoint).get("changes")
    if before is None:
        raise MountError(f"{mountpoint}: its daemon is of an earlier version: use mystfuse commit, then umount")
    context.invoke(commit.command, mountpoint=mountpoint, newimage=new_image, force=overwrite, **given)
    if read_status(mountpoint).get("changes") != before:
        raise MountError(
            f"{mountpoint}: not unmounted: it was written to while {new_image} was made, which may lack that "
            "(once more with --overwrite, when nothing writes)"
        )


def _refuse_options_of_commit(context: click.Context) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _OWN and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} goes with --commit NEWIMAGE")


def _bytes_written(path: str, timeout: float) -> int | None:
    """What is forgotten with a mount, in bytes; None if it does not say so in time."""
    mount = find_mount(path)
    return None if mount is None else ask([mount], min(timeout, _ASKING))[0].written

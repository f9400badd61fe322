"""``mystfuse umount``: unmount, and wait until the daemon has ended."""

from __future__ import annotations

import click

from mystfuse.cli.options import GivenPath, parse_seconds
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.mounting.unmount import unmount_and_wait, unmount_stale


@click.command("umount", short_help="Unmount, and wait until the daemon is gone.")
@click.option("-l", "--lazy", is_flag=True, help="Take it out of the tree now, even if it is in use.")
@click.option(
    "--timeout",
    type=parse_seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="Seconds to wait for the daemon to end, and (2 at most) for a mount in use to be left.",
)
@click.option("--stale", is_flag=True, help="Only clear away what a killed daemon has left, if anything.")
@click.argument("mountpoint", type=GivenPath())
def command(lazy: bool, timeout: float, stale: bool, mountpoint: str) -> None:
    """Unmount MOUNTPOINT and wait until the process that served it is gone.

    A mount that is in use is tried again for two seconds. Also clears away what is left of a mount whose daemon was
    killed.
    """
    if stale:
        unmount_stale(resolve_mountpoint(mountpoint))
        return
    unmount_and_wait(resolve_mountpoint(mountpoint), lazy, timeout)

"""``mystfuse status``: what a mount says about itself."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.mountpoint import resolve_mountpoint
from mystfuse.cli.options import GivenPath
from mystfuse.cli.text import one_line
from mystfuse.errors import MountError
from mystfuse.fuse.control_names import CONTROL_INO, CONTROL_NAME, STATUS_NAME
from mystfuse.fuse.mount_table import describe_absence, find_mount

TIMEOUT = 10.0


@click.command("status", short_help="Show what is mounted, why it is trusted, and counts.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.argument("mountpoint", type=GivenPath())
def command(as_json: bool, mountpoint: str) -> None:
    """Show what is mounted on MOUNTPOINT, why it is trusted, and what has been read and verified."""
    text = read_status(mountpoint)
    if as_json:
        click.echo(text, nl=False)
        return
    status: dict[str, Any] = json.loads(text)
    for name, value in status.items():
        click.echo(one_line(f"{name.replace('_', ' ')}: {'none' if value is None else value}"))


def read_status(mountpoint: str) -> str:
    """The JSON text of the status of a mount of ours that answers.

    Raises:
        MountError: it is none, or no answer comes.
    """
    path = resolve_mountpoint(mountpoint)
    if find_mount(path) is None:
        raise MountError(f"{mountpoint}: {describe_absence(path)}")
    status_file = Path(path) / os.fsdecode(CONTROL_NAME) / os.fsdecode(STATUS_NAME)
    return _with_timeout(status_file, status_file.read_text)


def _with_timeout(path: Path, action: Callable[[], str]) -> str:
    """Do something with a control file of a mount whose daemon may hang or be gone."""
    result: list[str | OSError] = []

    def read() -> None:
        try:
            if path.stat().st_ino < CONTROL_INO:
                raise FileNotFoundError
            result.append(action())
        except OSError as error:
            result.append(error)

    # A daemon thread: if the read never returns, the process can still end.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not result:
        raise MountError(f"{path}: no answer within {TIMEOUT:g} s")
    if isinstance(result[0], FileNotFoundError):
        raise MountError(f"{path}: is not there: it was mounted with nocontrol")
    if isinstance(result[0], OSError):
        raise MountError(
            f"{path}: {result[0].strerror} (is the daemon alive? mystfuse umount clears a dead mount away)"
        )
    return result[0]

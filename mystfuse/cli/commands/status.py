"""``mystfuse status``: shows a mount's status.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.options import GivenPath
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import MountError, StorageTimeout, one_line
from mystfuse.fuse.control_directory_names import CONTROL_INO, CONTROL_NAME, STATUS_NAME
from mystfuse.mounting.mount_table import describe_absence, find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint

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
        click.echo(one_line(f"{name.replace('_', ' ')}: {_shown(value)}"))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{count} {kind}" for kind, count in value.items()) or None
    return "none" if value is None else str(value)


def read_status(mountpoint: str) -> str:
    """The text of a mount's status.json.

    Raises:
        MountError: it is not a mount of ours, or does not answer.
    """
    path = resolve_mountpoint(mountpoint)
    if find_mount(path) is None:
        raise MountError(f"{mountpoint}: {describe_absence(path)}")
    status_file = Path(path) / os.fsdecode(CONTROL_NAME) / os.fsdecode(STATUS_NAME)

    def read() -> str:
        if status_file.stat().st_ino < CONTROL_INO:
            raise FileNotFoundError
        return status_file.read_text()

    try:
        # Its daemon may hang or be gone.
        return wait_for_storage(read, str(status_file), TIMEOUT)
    except StorageTimeout:
        raise MountError(f"{status_file}: no answer within {TIMEOUT:g} s") from None
    except FileNotFoundError:
        raise MountError(f"{status_file}: is not there: it was mounted with nocontrol") from None
    except OSError as error:
        raise MountError(
            f"{status_file}: {error.strerror} (is the daemon alive? mystfuse umount clears a dead mount away)"
        ) from error

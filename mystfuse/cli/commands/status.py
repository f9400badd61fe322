"""``mystfuse status``: what is mounted, why it is trusted, and counts: of one mount, or of all of them."""

from __future__ import annotations

import json
from typing import Any

import click

from mystfuse.cli.options import MountpointPath
from mystfuse.cli.status_text import describe_mounts, describe_status
from mystfuse.errors import MountError, UsageError
from mystfuse.fuse.metrics import MountState, metrics
from mystfuse.mounting.ask_mounts import ANSWER_TIMEOUT, Answer, ask, explain_silence
from mystfuse.mounting.mount_table import Mount, describe_absence, find_mount, own_mounts
from mystfuse.mounting.mountpoint import resolve_mountpoint

TIMEOUT = 10.0
"""Seconds that a mount has to answer when it is the only one that is asked."""


@click.command("status", short_help="Show what is mounted, why it is trusted, and counts.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, or for more than one mount an array.")
@click.option("--prometheus", "as_metrics", is_flag=True, help="Print metrics in Prometheus's text format.")
@click.argument("mountpoints", metavar="[MOUNTPOINT]...", type=MountpointPath(), nargs=-1)
def command(as_json: bool, as_metrics: bool, mountpoints: tuple[str, ...]) -> None:
    """Show what is mounted on MOUNTPOINT, why it is trusted, and what has been read, verified and written.

    With several of them, or with none, which means all mounts that this user can see, a table has a line for each. A
    mount that does not answer within 2 seconds is named as such.
    """
    if as_json and as_metrics:
        raise UsageError("--json and --prometheus exclude each other")
    if len(mountpoints) == 1 and not as_metrics:
        status = read_status(mountpoints[0])
        click.echo(json.dumps(status, indent=2) if as_json else "\n".join(describe_status(status)))
        return
    answers = ask([_find(mountpoint) for mountpoint in mountpoints] if mountpoints else own_mounts())
    if as_metrics:
        states = [MountState(answer.mount.mountpoint, answer.image, answer.status) for answer in answers]
        click.echo(metrics(states), nl=False)
    elif as_json:
        click.echo(json.dumps([_document(answer) for answer in answers], indent=2))
    elif answers:
        click.echo("\n".join(describe_mounts(answers, ANSWER_TIMEOUT)))
    else:
        click.echo("nothing is mounted")


def _document(answer: Answer) -> dict[str, object]:
    silence = None if answer.status is not None else explain_silence(answer, ANSWER_TIMEOUT)
    return {
        "mountpoint": answer.mount.mountpoint,
        "image": answer.image,
        "user": answer.mount.user_id,
        "state": answer.state.value,
        "explanation": silence,
        "status": answer.status,
    }


def _find(mountpoint: str) -> Mount:
    path = resolve_mountpoint(mountpoint)
    mount = find_mount(path)
    if mount is None:
        raise MountError(f"{mountpoint}: {describe_absence(path)}")
    return mount


def read_status(mountpoint: str) -> dict[str, Any]:
    """A mount's status (docs/json.md).

    Raises:
        MountError: it is not a mount of ours, or does not answer.
    """
    (answer,) = ask([_find(mountpoint)], TIMEOUT)
    if answer.status is not None:
        return answer.status
    raise MountError(f"{mountpoint}: {explain_silence(answer, TIMEOUT)}")

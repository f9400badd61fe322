"""``mystfuse info``: what a file is, whether it would be trusted, and what opening it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click
import trio

from mystfuse.cli.given_image import GivenImage, image_options
from mystfuse.cli.info_text import document_of, lines_of
from mystfuse.cli.options import ImagePath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.errors import ExitStatus, FormatError, one_line
from mystfuse.image.identify import identify_path
from mystfuse.image.report import Report, complete, examine
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint


@click.command("info", short_help="Say what a file is, who signed it, and what opening it takes.")
@image_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@io_timeout_option
@click.argument("image", type=ImagePath())
def command(as_json: bool, image: str, **given: Any) -> ExitStatus:
    """Describe IMAGE: its parts, file system, encryption and signer, whether a mount would trust it now and why, and
    what opening it takes. Of any other file, say what it is, and which command helps.

    The decision about trust is that of a mount with these options. What is in the file system's and LUKS header's own
    fields is read behind the hash tree; what is not is marked as unverified. Without a key, an encrypted image is
    described as far as its header goes; no passphrase is asked for. Exits with 0 for an image that a mount could open,
    trusted or not, and else as a mount would: with 6 for any other file, 4 for a damaged image, 5 for a wrong key.
    """
    try:
        named = GivenImage(image, given)
    except FormatError as error:
        kind = identify_path(image, given["io_timeout"])
        if kind is None:
            raise
        if kind.name == "directory" and find_mount(resolve_mountpoint(image)) is not None:
            title = "a directory on which an image is mounted"
            kind = replace(kind, title=title, advice="ask the mount", commands=("mystfuse status {file}",))
        report = Report(image, None, kind, error=error)
    else:
        try:
            trust = named.load_trust()
            keys = named.load_keys(trust, may_ask=False)
            if keys:
                keys.start_deriver()
            log_to_stderr()
            report = examine(named.patient_source, trust)
            trio.run(complete, report, keys, named.io_timeout, progress)
        finally:
            named.source.close()
    if as_json:
        click.echo(json.dumps(document_of(report), indent=2))
    else:
        for line in lines_of(report):
            click.echo(one_line(line))
    return report.error.exit_status if report.error is not None else ExitStatus.DONE

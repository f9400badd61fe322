"""``mystfuse fssig``: print the signature block of an image."""

from __future__ import annotations

import json
from typing import Any

import click

from mystfuse.cli.options import ImagePath, io_timeout_option
from mystfuse.cli.remote_options import open_given, remote_options, remote_options_of
from mystfuse.devices.patience import PatientSource
from mystfuse.errors import MystfuseError, UsageError
from mystfuse.image.open import read_fssig


@click.command("fssig", short_help="Print the signature block of an image.")
@click.option("--roothash", is_flag=True, help="Print the root hash alone.")
@click.option("--signer", is_flag=True, help="Print the signer alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@remote_options
@io_timeout_option
@click.argument("image", type=ImagePath())
def command(roothash: bool, signer: bool, as_json: bool, io_timeout: float, image: str, **given: Any) -> None:
    """Print the signature block (fssig) of IMAGE, as it stands: nothing is verified."""
    if roothash + signer + as_json > 1:
        raise UsageError("--roothash, --signer and --json exclude each other")
    source = open_given(image, io_timeout, remote_options_of(given))
    try:
        fields = read_fssig(PatientSource(source, io_timeout)).fields()
    finally:
        source.close()
    if roothash:
        click.echo(fields["root_hash"])
    elif signer:
        if fields["signer"] is None:
            raise MystfuseError(f"{image}: unsigned, so it names no signer")
        click.echo(fields["signer"])
    elif as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        for name, value in fields.items():
            click.echo(f"{name}={'null' if value is None else value}")

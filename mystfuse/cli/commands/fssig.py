"""``mystfuse fssig``: print the signature block of an image."""

from __future__ import annotations

import json

import click

from mystfuse.cli.options import GivenPath, io_timeout_option
from mystfuse.devices.patience import PatientSource, open_file
from mystfuse.errors import UsageError
from mystfuse.image.open import read_fssig


@click.command("fssig", short_help="Print the signature block of an image.")
@click.option("--roothash", is_flag=True, help="Print the root hash alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@io_timeout_option
@click.argument("image", type=GivenPath())
def command(roothash: bool, as_json: bool, io_timeout: float, image: str) -> None:
    """Print the signature block (fssig) of IMAGE, as it stands: nothing is verified."""
    if roothash and as_json:
        raise UsageError("--roothash and --json exclude each other")
    source = open_file(image, io_timeout)
    try:
        fields = read_fssig(PatientSource(source, io_timeout)).fields()
    finally:
        source.close()
    if roothash:
        click.echo(fields["root_hash"])
    elif as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        for name, value in fields.items():
            click.echo(f"{name}={'null' if value is None else value}")

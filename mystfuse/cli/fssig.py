"""``mystfuse fssig``: print the signature block of an image."""

from __future__ import annotations

import json

import click

from mystfuse.cli.options import GivenPath
from mystfuse.devices.source import FileSource
from mystfuse.errors import UsageError
from mystfuse.image.open import read_fssig


@click.command("fssig", short_help="Print the signature block of an image.")
@click.option("--roothash", is_flag=True, help="Print the root hash alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.argument("image", type=GivenPath())
def command(roothash: bool, as_json: bool, image: str) -> None:
    """Print the signature block (fssig) of IMAGE, as it stands: nothing is verified."""
    if roothash and as_json:
        raise UsageError("--roothash and --json exclude each other")
    source = FileSource(image)
    try:
        fields = read_fssig(source).fields()
    finally:
        source.close()
    if roothash:
        click.echo(fields["root_hash"])
    elif as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        for name, value in fields.items():
            click.echo(f"{name}={'null' if value is None else value}")

"""``mystfuse keys``: what keys for signing are. One command so far: ``keys fingerprint``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from mystfuse.cli.options import PemPath
from mystfuse.cli.wrong_files import naming_wrong_file
from mystfuse.errors import one_line
from mystfuse.trust.fingerprints import KeyFacts, describe_keys
from mystfuse.trust.sources import read_small_file

_STDIN = "/dev/stdin"


@click.group("keys", short_help="Look at keys for signing.")
def command() -> None:
    """Look at the keys that sign images and packages."""


@command.command("fingerprint", short_help="Print the signer that images name for a key.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.argument("files", metavar="PEM...", nargs=-1, required=True, type=PemPath())
def fingerprint(as_json: bool, files: tuple[str, ...]) -> None:
    """Print the signer that an image's signature block names for each key in the PEM files: the SHA-256 of the RSA
    modulus. Then size and exponent of the key, and whether it may sign images.

    Of a private key only its public part is used, which has the same fingerprint. - reads stdin.
    """
    keys = [key for path in files for key in _read(path)]
    if as_json:
        click.echo(json.dumps({"keys": [_object(key) for key in keys]}, indent=2))
        return
    for key in keys:
        click.echo(one_line(_line(key)))


def _read(path: str) -> list[KeyFacts]:
    named = _STDIN if path == "-" else path
    with naming_wrong_file(named, "key", "a PEM key"):
        return describe_keys(read_small_file(named, "key"), path)


def _line(key: KeyFacts) -> str:
    what = f"{key.type} {'private' if key.is_private else 'public'} key"
    if key.bits is not None and key.exponent is not None:
        exponent = str(key.exponent) if key.exponent < 1 << 64 else f"of {key.exponent.bit_length()} bits"
        what += f" of {key.bits} bits, exponent {exponent}"
    may = "may sign images" if key.fault is None else f"may NOT sign images: {key.fault}"
    return f"{key.signer or '-':64}  {key.file}: {what}; {may}"


def _object(key: KeyFacts) -> dict[str, object]:
    # Python turns no longer number into digits, nor do most readers of JSON take one.
    exponent = key.exponent if key.exponent is None or key.exponent < 1 << 256 else None
    return {**asdict(key), "exponent": exponent, "may_sign": key.fault is None}

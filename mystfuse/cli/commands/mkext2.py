"""``mystfuse mkext2``: make an image from a directory."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from mystfuse.build.encrypted_file import EncryptedFile
from mystfuse.build.mkext2 import Mkext2Options, mkext2
from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.new_image_options import load_new_image, new_image_options
from mystfuse.cli.options import GivenPath, parse_size
from mystfuse.cli.progress import progress
from mystfuse.errors import UsageError


@click.command("mkext2", short_help="Make an image from a directory.")
@click.option(
    "--size",
    type=parse_size,
    metavar="BYTES",
    default="0",
    help="Make the file system at least this large (8M or more).",
)
@click.option("--free", type=parse_size, metavar="BYTES", default="0", help="Leave at least this much room for writes.")
@click.option(
    "--block-size", type=parse_size, metavar="BYTES", help="EXT2 block size, 1024 to 65536 (default: mke2fs's choice)."
)
@new_image_options
@click.option("--salt", metavar="HEX", help="Salt of the hash tree, 0 to 256 bytes (default: 32 random ones).")
@click.option("--uuid", help="UUID of the file system (default: random).")
@click.option("--force", is_flag=True, help="Overwrite IMAGE.")
@click.option("--trace", is_flag=True, help="Show the commands that are run.")
@click.argument("directory", type=GivenPath(path_type=Path))
@click.argument("image", type=GivenPath(path_type=Path))
def command(
    size: int,
    free: int,
    block_size: int | None,
    salt: str | None,
    uuid: str | None,
    force: bool,
    trace: bool,
    directory: Path,
    image: Path,
    **given: Any,
) -> None:
    """Make IMAGE from DIRECTORY: an EXT2 file system, its hash tree, and a signature block.

    With SOURCE_DATE_EPOCH in the environment, the same directory always gives the same bytes.
    """
    end_like_interrupt()
    options = Mkext2Options(
        size=size,
        free=free,
        block_size=block_size,
        salt=_parse_salt(salt) if salt is not None else None,
        uuid=_parse_uuid(uuid) if uuid is not None else None,
        epoch=_parse_epoch(os.environ.get("SOURCE_DATE_EPOCH", "")),
        trace=(lambda line: print(f"+ {line}", file=sys.stderr)) if trace else None,
    )
    # Last: this may ask for a passphrase.
    signing_key, encryption = load_new_image(**given)
    options = replace(options, signing_key=signing_key, encryption=encryption)
    mkext2(directory, image, options, force, progress, EncryptedFile)


def _parse_salt(value: str) -> bytes:
    # veritysetup writes no salt as "-".
    if value == "-":
        return b""
    if not re.fullmatch(r"([0-9a-fA-F]{2})*", value):
        raise UsageError(f"--salt {value}: not an even number of hex digits")
    return bytes.fromhex(value)


def _parse_uuid(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError as error:
        raise UsageError(f"--uuid {value}: not a UUID") from error


def _parse_epoch(value: str) -> int | None:
    if not value:
        return None
    if not re.fullmatch(r"\d{1,10}", value):
        raise UsageError(f"SOURCE_DATE_EPOCH={value}: not a number of seconds since 1970")
    return int(value)

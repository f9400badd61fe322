"""``mystfuse commit``: make a new image of a mount's present state."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from mystfuse.build.commit import commit
from mystfuse.cli.commands.status import read_status
from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.new_image_options import load_new_image, new_image_options
from mystfuse.cli.options import GivenPath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.errors import UsageError
from mystfuse.fuse.control_directory_names import CONTROL_NAME, IMAGE_NAME
from mystfuse.mounting.mountpoint import resolve_mountpoint


@click.command("commit", short_help="Make a new image of a mount's present state.")
@new_image_options
@click.option("--decrypt", is_flag=True, help="Make a plain image of an encrypted one.")
@click.option("--force", is_flag=True, help="Overwrite NEWIMAGE.")
@io_timeout_option
@click.argument("mountpoint", type=GivenPath())
@click.argument("newimage", type=GivenPath(path_type=Path))
def command(decrypt: bool, force: bool, io_timeout: float, mountpoint: str, newimage: Path, **given: Any) -> None:
    """Make NEWIMAGE of what is on MOUNTPOINT now: the image, and all that was written since it was mounted.

    The mount goes on as before, and may be written to meanwhile: that does not show. The new image has its own hash
    tree and fssig: trust in the old image does not extend to it before you say so, or sign it. What an encrypted
    image holds is written unencrypted only if you say so.
    """
    end_like_interrupt()
    signing_key, encryption = load_new_image(**given)
    merged = Path(resolve_mountpoint(mountpoint)) / os.fsdecode(CONTROL_NAME) / os.fsdecode(IMAGE_NAME)
    if encryption is not None and decrypt:
        raise UsageError("--encrypt and --decrypt exclude each other")
    is_encrypted = json.loads(read_status(mountpoint))["cipher"] is not None
    if is_encrypted and encryption is None and not decrypt:
        raise UsageError(
            f"{mountpoint} is an encrypted image: --encrypt KEYFILE makes another one, --decrypt a plain one"
        )
    commit(merged, newimage, signing_key, encryption, force, progress, io_timeout, is_secret=is_encrypted)

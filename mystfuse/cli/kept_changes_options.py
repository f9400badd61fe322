"""The options that say what ``exec`` shows and keeps of what its program has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.options import FileOrText, GivenPath, NewImagePath, option_group
from mystfuse.cli.signing_options import PASSPHRASE_OPTIONS, signing_options

kept_changes_options = option_group(
    click.option("--diff", "shows_changes", is_flag=True, help="When it has ended, show what it has changed (stderr)."),
    click.option(
        "--layer",
        type=GivenPath(),
        metavar="FILE",
        help="When it has ended with status 0, write the changes as a layer of an OCI image (.gz: compressed).",
    ),
    click.option(
        "--commit",
        "new_image",
        type=NewImagePath(path_type=Path),
        metavar="NEWIMAGE",
        help="When it has ended with status 0, make NEWIMAGE of the image and the changes:",
    ),
    signing_options,
    click.option(
        "--encrypt",
        type=FileOrText(),
        metavar="KEYFILE",
        help="Encrypt NEWIMAGE (LUKS, aes-xts-plain64) with this master key of 64 bytes.",
    ),
    click.option("--decrypt", is_flag=True, help="Make a plain NEWIMAGE and FILE of an encrypted image."),
    click.option("--overwrite", is_flag=True, help="Overwrite NEWIMAGE and FILE."),
    click.option("--ask", "asks", is_flag=True, help="With --commit or --layer: ask, whatever the status."),
)

KEY_OPTIONS = ("sign", *PASSPHRASE_OPTIONS, "encrypt")
"""Those about the keys of a new image."""


def are_given(given: Mapping[str, Any]) -> bool:
    """Whether any of them is given.

    Args:
        given: by the names of their parameters.
    """
    return any(
        given[name] for name in (*KEY_OPTIONS, "shows_changes", "layer", "new_image", "decrypt", "overwrite", "asks")
    )

"""``mystfuse extract``: copy a tree out of an image."""

from __future__ import annotations

from typing import Any

import click

from mystfuse.cli.options import GivenPath
from mystfuse.cli.path_in_image import PathInImage
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import count_bytes, read_image, reading_options, warn_of_omissions
from mystfuse.tree.extract import extract
from mystfuse.tree.image_tree import ImageTree


@click.command("extract", short_help="Copy a file or directory out of an image.")
@reading_options
@click.argument("path", metavar="PATH", type=PathInImage())
@click.argument("destination", metavar="DEST", type=GivenPath())
def command(path: str, destination: str, **given: Any) -> None:
    """Copy PATH in IMAGE to DEST, which must not exist; PATH / is all of it.

    Like cp -a: modes, times, extended attributes, ACLs, holes and hard links are kept, and for root owners, set-user-ID
    bits and devices. What may not be kept is counted in a warning. DEST appears complete, or not at all.
    """

    async def copy(tree: ImageTree) -> dict[str, int]:
        with progress("extracting", await count_bytes(tree, path)) as advance:
            return await extract(tree, path, destination, advance)

    warn_of_omissions("not extracted, for want of permission or support here", read_image(given, copy, path))

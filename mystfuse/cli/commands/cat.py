"""``mystfuse cat``: write files of an image to stdout."""

from __future__ import annotations

from typing import Any

import click

from mystfuse.cli.path_in_image import PathInImage
from mystfuse.cli.reading import read_image, reading_options, write_stdout
from mystfuse.tree.image_tree import ImageTree


@click.command("cat", short_help="Write files of an image to stdout.")
@reading_options
@click.argument("paths", type=PathInImage(), metavar="PATH...", nargs=-1, required=True)
def command(paths: tuple[str, ...], **given: Any) -> None:
    """Write the contents of each PATH in IMAGE to stdout, one after the other, every block verified."""

    async def cat(tree: ImageTree) -> None:
        for path in paths:
            async with await tree.open(path) as file:
                async for data in file:
                    await write_stdout(data)

    read_image(given, cat, *paths)

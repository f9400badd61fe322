"""``mystfuse tar``: write a tree of an image to stdout as a tar archive."""

from __future__ import annotations

from typing import Any

import click

from mystfuse.cli.path_in_image import PathInImage
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import (
    count_bytes,
    read_image,
    reading_options,
    refuse_terminal,
    warn_of_omissions,
    write_stdout,
)
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.tar import write_tar


@click.command("tar", short_help="Write a tree of an image to stdout as a tar archive.")
@reading_options
@click.argument("path", metavar="[PATH]", type=PathInImage(), default="/")
def command(path: str, **given: Any) -> None:
    """Write PATH in IMAGE (default: all of it) to stdout as a tar archive (pax), sorted by name.

    Names in it are relative to PATH. tar -x --acls --xattrs --xattrs-include=* extracts ACLs and extended attributes
    too.
    """
    refuse_terminal("an archive")

    async def write(tree: ImageTree) -> dict[str, int]:
        with progress("archiving", await count_bytes(tree, path)) as advance:
            return await write_tar(tree, path, write_stdout, advance)

    warn_of_omissions("not in the archive", read_image(given, write, path))

"""``mystfuse mkext2``: make an image from a directory, tar archives, or an image of a container."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mystfuse.archives.container_reference import is_container_image, parse_container_image
from mystfuse.build.encrypted_file import EncryptedFile
from mystfuse.build.filesystem_kind import TYPES
from mystfuse.build.filesystem_size import Wishes
from mystfuse.build.mkext2 import Mkext2Options, check_directory, mkext2
from mystfuse.build.tree_source import ArchiveSource, DirectorySource, TreeSource
from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.made_image import check_summary_options, summary_options, tell
from mystfuse.cli.new_image_options import load_new_image, new_image_options, parse_salt, parse_uuid
from mystfuse.cli.options import FileOrText, ImageSource, NewImagePath, parse_size
from mystfuse.cli.progress import progress
from mystfuse.cli.source_date_epoch import source_date_epoch
from mystfuse.cli.text import warn
from mystfuse.cli.tree_options import load_selection, parse_owner, tree_options
from mystfuse.cli.wrong_files import other_kind
from mystfuse.errors import UsageError
from mystfuse.system.atomic_file import check_target


def _parse_image_size(value: str) -> int | None:
    """Bytes; None for the smallest."""
    return None if value == "min" else parse_size(value)


@click.command("mkext2", short_help="Make an image from a directory, tar archives, or an OCI image.")
@click.option(
    "--tar",
    "tars",
    type=FileOrText(),
    metavar="FILE|-",
    multiple=True,
    help="Make it from this tar archive, in place of SOURCE; repeated: one over the other, as layers.",
)
@click.option(
    "--size",
    type=_parse_image_size,
    metavar="BYTES|min",
    default="0",
    help="Make the file system at least this large (8M or more); min: as small as what is in it permits.",
)
@click.option("--free", type=parse_size, metavar="BYTES", default="0", help="Leave at least this much room for writes.")
@click.option(
    "--block-size", type=parse_size, metavar="BYTES", help="EXT2 block size, 1024 to 65536 (default: mke2fs's choice)."
)
@click.option(
    "--type", "filesystem_type", type=click.Choice(TYPES), default="ext2", help="Kind of file system (default: ext2)."
)
@click.option(
    "-O",
    "--features",
    metavar="FEATURE[,...]",
    help="Features that it has besides those of its type, and ^FEATURE: has not, as for mke2fs -O; none: only those "
    "that follow.",
)
@click.option(
    "--inodes", type=click.IntRange(1, 2**32 - 1), metavar="N", help="Make at least so many inodes, used ones included."
)
@tree_options
@new_image_options
@click.option("--salt", metavar="HEX", help="Salt of the hash tree, 0 to 256 bytes (default: 32 random ones).")
@click.option("--uuid", help="UUID of the file system (default: random).")
@click.option("--force", is_flag=True, help="Overwrite IMAGE.")
@summary_options
@click.option("--trace", is_flag=True, help="Show the commands that are run.")
@click.argument("source", type=ImageSource(), metavar="SOURCE", required=False)
@click.argument("image", type=NewImagePath(), metavar="IMAGE", required=False)
def command(
    tars: tuple[str, ...],
    size: int | None,
    free: int,
    block_size: int | None,
    filesystem_type: str,
    features: str | None,
    inodes: int | None,
    owner: str | None,
    exclude: tuple[str, ...],
    exclude_from: tuple[str, ...],
    from_list: str | None,
    null: bool,
    salt: str | None,
    uuid: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    trace: bool,
    source: str | None,
    image: str | None,
    **given: Any,
) -> None:
    """Make IMAGE from SOURCE: an EXT2 file system, its hash tree, and a signature block.

    SOURCE is a directory, or an image of a container: oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    docker-archive:FILE[:TAG]. Of archives, owners, modes, devices and attributes come along, whoever you are.

    With SOURCE_DATE_EPOCH in the environment, the same tree always gives the same bytes.
    """
    end_like_interrupt()
    check_summary_options(quiet, as_json)
    source, target = _source_and_image(tars, source, image)
    options = Mkext2Options(
        wishes=Wishes(size or 0, size is None, free, inodes or 0),
        block_size=block_size,
        type=filesystem_type,
        features=features,
        owner=parse_owner(owner),
        salt=parse_salt(salt),
        uuid=parse_uuid(uuid),
        epoch=source_date_epoch(),
        trace=(lambda line: print(f"+ {line}", file=sys.stderr)) if trace else None,
        warn=warn,
    )
    if source is not None and is_container_image(source):
        parse_container_image(source)
    elif source is not None:
        _check_directory(source, target)
    check_target(target, force)
    standard_input = (*tars, given["encrypt"], given["passphrase_file"], given["sign_passphrase_file"])
    selection = load_selection(exclude, exclude_from, from_list, null, *standard_input)
    # Last: this may ask for a passphrase.
    signing_key, encryption = load_new_image(**given)
    options = replace(options, selection=selection, signing_key=signing_key, encryption=encryption)
    with _open(tars, source) as tree:
        made = mkext2(tree, target, options, force, progress, EncryptedFile)
    tell(made, given, quiet, as_json)


def _source_and_image(tars: tuple[str, ...], source: str | None, image: str | None) -> tuple[str | None, Path]:
    """The two arguments, of which the first is not there with ``--tar``."""
    if tars:
        if image is not None:
            raise UsageError(f"--tar stands for SOURCE: IMAGE alone comes with it, and not {source} too")
        source, image = None, source
    missing = "image" if source is not None or tars else "source"
    if image is None or (source is None and not tars):
        context = click.get_current_context()
        parameter = next(parameter for parameter in context.command.params if parameter.name == missing)
        raise click.MissingParameter(ctx=context, param=parameter)
    return source, Path(image)


@contextmanager
def _open(tars: tuple[str, ...], source: str | None) -> Iterator[TreeSource]:
    """What the image is made of."""
    if not tars and source is not None and not is_container_image(source):
        yield DirectorySource(Path(source))
        return
    with ExitStack() as stack:
        with progress("reading the archive", None) as advance:
            if source is None:
                from mystfuse.archives.tar_tree import open_tar

                name = ", ".join("stdin" if path == "-" else path for path in tars)
                tree = stack.enter_context(open_tar(tars, advance))
            else:
                from mystfuse.archives.container_image import open_container_image

                name = source
                tree = stack.enter_context(open_container_image(source, advance))
        yield ArchiveSource(tree.root, tree.contents, name)


def _check_directory(path: str, target: Path) -> None:
    """Raise UsageError for what is there in place of a directory, with the command that makes one of it."""
    kind = None if os.path.isdir(path) else other_kind(path, frozenset())
    if kind is not None and kind.name == "image":
        raise UsageError(f"{path}: {kind.title}, not a directory: mystfuse extract {path} / tree makes one of it")
    if kind is not None:
        raise UsageError(kind.explain(path, "a directory"))
    check_directory(Path(path), target)

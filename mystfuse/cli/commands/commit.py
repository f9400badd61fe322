"""``mystfuse commit``: make a new image of a mount's present state."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mystfuse.build.commit import commit, new_image_file
from mystfuse.cli.commands.status import read_status
from mystfuse.cli.commit_options import check_encryption, commit_options
from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.made_image import check_summary_options, summary_options, tell
from mystfuse.cli.new_image_options import load_new_image, new_image_options, parse_salt, parse_uuid
from mystfuse.cli.options import FileOrText, MountpointPath, NewImagePath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.text import remark, say
from mystfuse.errors import MountError, UsageError
from mystfuse.fuse.control_directory_names import CONTROL_NAME, IMAGE_NAME
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.system.atomic_file import check_target

if TYPE_CHECKING:
    from mystfuse.tree.layer_file import MadeLayer

STDOUT = "-"
_OF_LAYERS = frozenset({"layer", "force", "quiet", "as_json", "io_timeout", "mountpoint", "decrypt"})
"""The parameters that do not need a new image."""


@click.command("commit", short_help="Make a new image of a mount's present state.")
@new_image_options
@click.option("--decrypt", is_flag=True, help="Make a plain image, or a layer, of an encrypted one.")
@click.option("--salt", metavar="HEX", help="Salt of the hash tree, 0 to 256 bytes (default: as the image has it).")
@click.option("--uuid", help="UUID of the file system (default: as the image has it).")
@click.option(
    "--layer",
    type=FileOrText(),
    metavar="FILE|-",
    help="Write the changes as a layer of an OCI image, compressed by gzip if FILE ends in .gz; without NEWIMAGE, that "
    "alone.",
)
@click.option("--force", is_flag=True, help="Overwrite NEWIMAGE and FILE.")
@summary_options
@io_timeout_option
@click.argument("mountpoint", type=MountpointPath())
@click.argument("newimage", metavar="[NEWIMAGE]", type=NewImagePath(path_type=Path), required=False)
@click.pass_context
def command(
    context: click.Context,
    /,
    decrypt: bool,
    salt: str | None,
    uuid: str | None,
    layer: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    io_timeout: float,
    mountpoint: str,
    newimage: Path | None,
    **given: Any,
) -> None:
    """Make NEWIMAGE of what is on MOUNTPOINT now: the image, and all that was written since it was mounted.

    The mount goes on as before, and may be written to meanwhile: that does not show. The new image has its own hash
    tree and fssig: trust in the old image does not extend to it before you say so, or sign it. What an encrypted
    image holds is written unencrypted only if you say so. If nothing was written, the root hash is that of the old
    image, unless one of them is encrypted.

    A layer has the changes alone, as container tools apply them to the tree of the image: what has changed, with all
    that it is now, and whiteouts for what is gone. With SOURCE_DATE_EPOCH in the environment, no later times.
    """
    end_like_interrupt()
    check_summary_options(quiet, as_json)
    if newimage is None:
        _check_layer_alone(context, layer, as_json)
    elif layer == STDOUT:
        raise UsageError("--layer - goes without NEWIMAGE, about which stdout is told: name a file")
    # Without a current directory it is no mount either.
    with suppress(OSError, MountError):
        if newimage is not None and find_mount(resolve_mountpoint(os.fspath(newimage))) is not None:
            raise UsageError(f"{newimage}: is a mount: the mountpoint comes first, then the name of the new image")
    status = read_status(mountpoint)
    if layer is not None:
        # Only here, and below: it takes long to import.
        from mystfuse.cli.layer import check_layer_name, check_two_names

        check_layer_name(layer, force)
        if newimage is not None:
            check_two_names(layer, newimage)
    new_salt, new_uuid = parse_salt(salt), parse_uuid(uuid)
    options = None
    if newimage is not None:
        check_target(newimage, force)
        signing_key, encryption = load_new_image(**given)
        check_encryption(mountpoint, status, encryption is not None, decrypt)
        options = commit_options(status, signing_key, encryption, new_salt, new_uuid, io_timeout)
    elif layer is not None:
        check_encryption(mountpoint, status, False, decrypt, "--decrypt writes a layer of it, which is not encrypted")
    path = resolve_mountpoint(mountpoint)
    made_layer = None if layer is None else _make_layer(path, layer, status, force, io_timeout)
    if made_layer is not None:
        _tell_layer(made_layer, quiet, as_json, is_all=options is None)
    if newimage is None or options is None:
        return
    merged = Path(path) / os.fsdecode(CONTROL_NAME) / os.fsdecode(IMAGE_NAME)
    made = commit(merged, newimage, options, force, progress)
    tell(made, given, quiet, as_json, {} if made_layer is None else {"layer": made_layer.document()})


def _check_layer_alone(context: click.Context, layer: str | None, as_json: bool) -> None:
    """Raise UsageError for options that are about a new image, of which there is none."""
    if layer is None:
        raise click.MissingParameter(param_hint="'NEWIMAGE'", param_type="argument", ctx=context)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _OF_LAYERS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} goes with NEWIMAGE")
    if layer == STDOUT:
        from mystfuse.cli.reading import refuse_terminal

        refuse_terminal("a layer")
        if as_json:
            raise UsageError("--layer - and --json exclude each other: both are for stdout")


def _make_layer(path: str, layer: str, status: dict[str, Any], force: bool, io_timeout: float) -> MadeLayer:
    from mystfuse.cli.layer import write_mount_layer

    if layer == STDOUT:
        return write_mount_layer(path, layer, None, io_timeout)
    with new_image_file(Path(layer), force, status.get("cipher") is not None) as file:
        return write_mount_layer(path, layer, file, io_timeout)


def _tell_layer(made: MadeLayer, quiet: bool, as_json: bool, is_all: bool) -> None:
    """Say what was made; as JSON only if it is all that is made."""
    from mystfuse.cli.layer import describe_layer

    if as_json and is_all:
        click.echo(json.dumps({"layer": made.document()}, indent=2))
    elif not quiet and not as_json:
        # What goes to stdout may be the layer.
        (remark if made.path == STDOUT else say)(describe_layer(made))

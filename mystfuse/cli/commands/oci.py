"""``mystfuse oci``: make an OCI image, as container tools run it, of an image or a mount."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mystfuse.archives.oci_archive_writer import ArchiveWriter
from mystfuse.archives.oci_layer import COMPRESSIONS, check_compression
from mystfuse.archives.oci_layout_writer import LayoutWriter
from mystfuse.archives.oci_reference import LAYOUT, Reference, parse_reference
from mystfuse.cli.commands.status import read_status
from mystfuse.cli.given_image import image_options
from mystfuse.cli.made_image import check_summary_options, summary_options
from mystfuse.cli.oci_options import config_options, parse_changes, read_config
from mystfuse.cli.options import ImagePath, OciTarget, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import count_bytes, read_image, read_mount, warn_of_omissions
from mystfuse.cli.source_date_epoch import source_date_epoch
from mystfuse.cli.text import say
from mystfuse.errors import MountError, UsageError
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.system.atomic_file import check_target
from mystfuse.system.units import describe_bytes
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.oci import OciImage, OciOptions, write_oci_image

_TAG = "latest"
"""Where none is given."""


@click.command("oci", short_help="Make an OCI image of an image or a mount.")
@image_options
@config_options
@click.option(
    "--compression",
    type=click.Choice(list(COMPRESSIONS)),
    default="gzip",
    show_default=True,
    help="How the layer is compressed.",
)
@click.option("--level", type=int, metavar="N", help="How much: gzip 1 to 9 (default: 6), zstd 1 to 19 (3).")
@click.option("--force", is_flag=True, help="Overwrite the FILE of oci-archive:FILE.")
@summary_options
@io_timeout_option
@click.argument("image", metavar="IMAGE|MOUNTPOINT", type=ImagePath())
@click.argument("target", metavar="oci:DIR[:TAG]", type=OciTarget())
def command(image: str, target: str, **given: Any) -> None:
    """Make an OCI image of all that is in IMAGE, or on MOUNTPOINT now, for podman, skopeo, umoci and others: one layer,
    with owners, devices and extended attributes.

    It goes into the OCI layout in DIR, which may hold other images, under TAG (default: latest); or into a tar file of
    a layout (oci-archive:FILE[:TAG]). The configuration is the one in /.oci-config.json in the image, if there is one,
    or that of --config, changed by the other options. The same image and options give the same digests: it was made
    when its newest file was, or at SOURCE_DATE_EPOCH.
    """
    check_summary_options(given["quiet"], given["as_json"])
    check_compression(given["compression"], given["level"])
    reference = parse_reference(target)
    options = OciOptions(
        tag=reference.tag or _TAG,
        compression=given["compression"],
        level=given["level"],
        config=read_config(given["config"]),
        config_name=given["config"] or "",
        changes=parse_changes(given),
        epoch=source_date_epoch(),
    )
    if reference.transport != LAYOUT:
        check_target(Path(reference.path), given["force"])
        with suppress(OSError):
            if os.path.samefile(image, reference.path):
                raise UsageError(f"{image}: cannot become its own archive")
    elif given["force"]:
        raise UsageError(f"--force goes with oci-archive:FILE; {reference} gets the new image beside its others")

    async def make(tree: ImageTree, is_secret: bool) -> OciImage:
        with (
            _open_output(reference, given["force"], is_secret) as output,
            progress("writing the layer", await count_bytes(tree, "/")) as advance,
        ):
            return await write_oci_image(tree, output, options, advance)

    async def make_of_image(tree: ImageTree) -> OciImage:
        return await make(tree, tree.pipeline is not None and tree.pipeline.unlocked is not None)

    if _is_mount(image):
        _refuse_image_options(image)
        is_encrypted = read_status(image).get("cipher") is not None
        made = read_mount(image, given["io_timeout"], lambda tree: make(tree, is_encrypted))
    else:
        made = read_image({"image": image, **given}, make_of_image)
    warn_of_omissions("not in the image", made.omitted)
    _tell(made, reference, options.tag, given)


def _open_output(reference: Reference, force: bool, is_secret: bool) -> AbstractContextManager[Any]:
    path = Path(reference.path)
    return LayoutWriter(path, is_secret) if reference.transport == LAYOUT else ArchiveWriter(path, force, is_secret)


def _is_mount(path: str) -> bool:
    """Whether something of ours is mounted there. It does not touch the mount, which may hang."""
    with suppress(OSError, MountError):
        return find_mount(resolve_mountpoint(path)) is not None
    return False


def _refuse_image_options(mountpoint: str) -> None:
    """Raise UsageError for an option that says how to open an image: a mount has been opened."""
    context = click.get_current_context()
    names = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    for name in _image_parameters():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{names[name]}: is for an image; {mountpoint} is a mount, which has been opened")


def _image_parameters() -> list[str]:
    @image_options
    def nothing() -> None: ...

    return [parameter.name for parameter in nothing.__click_params__]


def _tell(made: OciImage, reference: Reference, tag: str, given: dict[str, Any]) -> None:
    """Say what was made, on stdout."""
    if given["quiet"]:
        return
    name = f"{reference.transport}:{reference.path}:{tag}"
    layer = made.layer.descriptor
    if given["as_json"]:
        document = {
            "image": name,
            "tag": tag,
            "architecture": made.architecture,
            "manifest": made.manifest.document(),
            "config": made.config.document(),
            "layers": [{**layer.document(), "diff_id": made.layer.diff_id, "archive_size": made.layer.archive_size}],
            "omitted": dict(made.omitted),
        }
        click.echo(json.dumps(document, indent=2))
        return
    say(f"made {name}: manifest {made.manifest.digest}, linux/{made.architecture}")
    say(f"layer {layer.digest}: {describe_bytes(layer.size)} of {describe_bytes(made.layer.archive_size)}")

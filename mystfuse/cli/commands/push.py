"""``mystfuse push``: send an image to a registry, or to S3."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

import click
import trio

from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.made_image import check_summary_options, summary_options
from mystfuse.cli.options import PART, GivenPath, ImagePath, completion, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import run_until_signal
from mystfuse.cli.text import remark, say
from mystfuse.devices.patience import PatientSource, open_file
from mystfuse.errors import FormatError, MystfuseError, UsageError
from mystfuse.formats.fssig import Fssig
from mystfuse.image.keys import Keys
from mystfuse.image.open import open_image, read_fssig
from mystfuse.image.pipeline import check_contents
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.remote.address import Address, is_remote, parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import FetchError
from mystfuse.remote.push import PushOptions, check_push, push_image
from mystfuse.remote.pushed import Pushed
from mystfuse.system.units import describe_bytes
from mystfuse.trust.policy import TrustPolicy

_MAX_ANNOTATIONS = 100
_MAX_ANNOTATION = 4096
_DONE = {
    "sent": "pushed",
    "resumed": "pushed",
    "mounted": "mounted from another repository",
    "present": "it is there already",
}


class _Target(click.types.StringParamType):
    """``oci://...`` or ``s3://...``."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return [completion(scheme, PART) for scheme in ("oci://", "s3://") if scheme.startswith(incomplete)]


@click.command("push", short_help="Send an image to a registry, or to S3.")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="KEY=VALUE",
    help="Put this into the registry's manifest (repeatable).",
)
@click.option(
    "--mount-from",
    metavar="REPOSITORY",
    help="Let the registry take the image from this repository of its own, if it is there.",
)
@click.option("--force", is_flag=True, help="Push a file that is no image; send to S3 what is there already.")
@click.option(
    "--ca-certificates",
    type=GivenPath(),
    metavar="PEM",
    help="Whom to trust about servers, instead of the system's authorities.",
)
@click.option(
    "--client-certificate", type=GivenPath(), metavar="PEM", help="Our certificate and key, for servers that ask."
)
@summary_options
@io_timeout_option
@click.argument("image", type=ImagePath())
@click.argument("target", metavar="oci://REGISTRY/NAME[:TAG]|s3://BUCKET/KEY", type=_Target())
def command(image: str, target: str, **given: Any) -> None:
    """Send IMAGE, as it is, to where hosts mount it from.

    In an OCI registry it becomes an artifact with one blob, the image, and annotations with its root hash, size and
    signer; what the registry has already is not sent again. Credentials are those of skopeo login, podman login and
    docker login. In S3 it becomes an object; credentials, region and endpoint are those of the AWS tools.

    IMAGE is looked at first: its hash tree must be the one of its root hash, over a file system or LUKS header of its
    size. Blocks are not verified: mystfuse verify does that, and so does every host that reads them.
    """
    end_like_interrupt()
    check_summary_options(given["quiet"], given["as_json"])
    address = parse_address(target)
    if is_remote(image):
        raise UsageError(f"{parse_address(image).name}: not a file here: skopeo copy copies between registries")
    config = FetcherConfig(
        (target,), ca_certificates=given["ca_certificates"], client_certificate=given["client_certificate"]
    )
    annotations = _parse_annotations(given["annotations"])
    title = os.path.basename(os.path.abspath(image))
    _check_installed(address)
    check_push(address, PushOptions(config, title, None, annotations, given["mount_from"]))
    log_to_stderr()
    file = open_file(image, given["io_timeout"])
    try:
        source = PatientSource(file, given["io_timeout"])
        fssig = _check(source, given["force"], given["io_timeout"])
        options = PushOptions(config, title, fssig, annotations, given["mount_from"], given["force"])
        # A registry's digest takes a pass over the file by itself.
        passes = 2 if address.scheme == "oci" else 1
        try:
            with progress(f"pushing {os.path.basename(image)}", passes * source.size) as advance:
                pushed = push_image(source, address, options, advance, remark, _run)
        except FetchError as error:
            raise MystfuseError(str(error)) from error
    finally:
        file.close()
    _tell(image, source.size, fssig, pushed, given)


def _run(action: Callable[[], Awaitable[Pushed]]) -> Pushed:
    return trio.run(run_until_signal, action)


def _parse_annotations(texts: tuple[str, ...]) -> dict[str, str]:
    """Annotations by their keys (``annotations.md`` of the OCI image specification); raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}", key):
            raise UsageError(
                f"--annotation {text[:100]}: must be KEY=VALUE, such as org.opencontainers.image.version=1"
            )
        if len(value) > _MAX_ANNOTATION or len(texts) > _MAX_ANNOTATIONS:
            raise UsageError(f"--annotation: at most {_MAX_ANNOTATIONS}, of {_MAX_ANNOTATION} characters each")
        found[key] = value
    return found


def _check_installed(address: Address) -> None:
    if importlib.util.find_spec("botocore" if address.scheme == "s3" else "httpx2") is None:
        raise MystfuseError(f"{address.name}: pushing images there needs pip install 'mystfuse[remote]'")


def _check(source: PatientSource, force: bool, io_timeout: float) -> Fssig | None:
    """The fssig of an image that a mount would accept; None for another file that is to be pushed all the same.

    Raises:
        FormatError, IntegrityError: it is none.
    """
    try:
        fssig = read_fssig(source)
        # It vouches for itself: this is no question of trust.
        opened = open_image(source, TrustPolicy(trust_self=True))
        check_contents(opened, Keys(), io_timeout, progress)
    except FormatError as error:
        if force:
            return None
        raise error.advised("--force pushes it all the same") from error
    return fssig


def _tell(image: str, size: int, fssig: Fssig | None, pushed: Pushed, given: dict[str, Any]) -> None:
    """Say what was done, on stdout."""
    if given["quiet"]:
        return
    signer = fssig.signer.hex() if fssig is not None and fssig.is_signed else None
    if given["as_json"]:
        document = {
            "image": image,
            "address": pushed.address,
            "manifest": pushed.manifest,
            "done": pushed.how,
            "size": size,
            "bytes_sent": pushed.bytes_sent,
            "root_hash": fssig.root_hash.hex() if fssig is not None else None,
            "signer": signer,
        }
        click.echo(json.dumps(document, indent=2))
        return
    before = size - pushed.bytes_sent if pushed.how == "resumed" else 0
    more = f", {describe_bytes(before)} of it by an earlier push" if before else ""
    say(f"{_DONE[pushed.how]}: {image}, {describe_bytes(size)}{more}")
    trust = " --pubkey PEM" if signer else f" --roothash {fssig.root_hash.hex()}" if fssig is not None else ""
    say(f"mount it: mystfuse {pushed.address} MOUNTPOINT{trust}")

"""Pushing an image to where its address says: to a registry or to S3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from mystfuse.errors import UsageError
from mystfuse.formats.fssig import Fssig
from mystfuse.remote.address import Address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.pushed import Pushed, PushedFile

Advance = Callable[[int], None]


@dataclass(frozen=True)
class PushOptions:
    """How to push."""

    config: FetcherConfig
    """For certificates."""
    title: str
    """The file name that other tools give the image, when they pull it."""
    fssig: Fssig | None
    """Of the image; None: it has none."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Further ones, for a registry's manifest."""
    mount_from: str | None = None
    """A repository of the same registry that may have the image."""
    force: bool = False
    """Send it to S3 even if it is there."""


def check_push(address: Address, options: PushOptions) -> None:
    """Raise UsageError for an address that cannot be pushed to, or not with these options."""
    if address.scheme not in ("oci", "s3"):
        raise UsageError(f"{address.name}: images are pushed to oci:// and s3://; a web server gets them as any file")
    if address.scheme == "s3":
        from mystfuse.remote.s3_address import parse_s3_address

        if parse_s3_address(address).version:
            raise UsageError(f"{address.name}: S3 itself gives the new version its id")
        if options.annotations or options.mount_from:
            raise UsageError("--annotation and --mount-from are for registries")
        return
    from mystfuse.remote.oci_address import is_repository, parse_oci_address

    if parse_oci_address(address).is_by_digest:
        raise UsageError(f"{address.name}: push to a tag; the digest follows from the image")
    if options.mount_from and not is_repository(options.mount_from):
        raise UsageError(f"--mount-from {options.mount_from}: not the name of a repository")


def push_image(
    file: PushedFile,
    address: Address,
    options: PushOptions,
    advance: Advance,
    note: Callable[[str], None],
    run: Callable[[Callable[[], Awaitable[Pushed]]], Pushed],
) -> Pushed:
    """Push an image. ^C ends it.

    Args:
        address: as ``check_push`` accepts it.
        advance: called with the number of bytes that have been sent or need not be; the sum is twice the size for a
            registry, whose digest is computed first.
        note: called with a line when something is tried again.
        run: runs an asynchronous function under trio, and cancels it when a signal comes.

    Raises:
        FetchError: it is refused, or there is no answer.
        ImageReadError: the file cannot be read.
    """
    if address.scheme == "s3":
        # Only here, as below: who needs the one does not need the other.
        from mystfuse.remote.push_s3 import S3Push
        from mystfuse.remote.s3_address import parse_s3_address

        return S3Push(address.name, parse_s3_address(address), options.config, advance).push(file, options.force)

    # Only here, as above.
    import trio

    from mystfuse.formats.oci_artifact import make_artifact
    from mystfuse.remote.http_client import HttpClient
    from mystfuse.remote.oci_address import parse_oci_address
    from mystfuse.remote.push_oci import OciPush, blob_of, scopes_of
    from mystfuse.remote.registry import Registry

    reference = parse_oci_address(address)
    blob = blob_of(file, advance)
    manifest = make_artifact(blob, options.title, options.fssig, options.annotations)

    async def push() -> Pushed:
        client = HttpClient(options.config.ca_certificates, options.config.client_certificate)
        try:
            registry = Registry(reference, client, scopes_of(reference, options.mount_from))
            return await OciPush(registry, options.mount_from, advance, note).push(file, blob, manifest)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await client.aclose()

    return run(push)

"""``mystfuse verify``: check every block of an image."""

from __future__ import annotations

import json
import math

import click

from mystfuse.cli.keys import key_options, load_keys
from mystfuse.cli.options import load_trust, trust_options
from mystfuse.cli.progress import progress
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, FormatError, IntegrityError, MystfuseError, innermost
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage, open_image
from mystfuse.image.verify import BadRange, find_damage

MAX_SHOWN = 1000
"""Bad ranges printed; the rest is counted."""


@click.command("verify", short_help="Check every block of an image.")
@trust_options
@key_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.argument("image", type=click.Path(readable=False))
def command(
    roothashes: tuple[str, ...],
    pubkeys: tuple[str, ...],
    insecure: bool,
    hash_offset: int | None,
    key_file: str | None,
    passphrase_file: str | None,
    as_json: bool,
    image: str,
) -> ExitStatus:
    """Check IMAGE: who vouches for it, its whole hash tree, and every data block.

    Lists the ranges that are damaged and exits with status 4 if there are any. No key is needed, since the hash tree is
    over what is encrypted; with one, whether it opens the image is checked too.
    """
    trust = load_trust(roothashes, pubkeys, insecure, hash_offset, trust_self=True)
    source = FileSource(image)
    try:
        keys = load_keys(key_file, passphrase_file, source, may_ask=False)
        opened = open_image(source, trust.policy, trust.hash_offset, trust.root_hash)
        if opened.tree is None or opened.trust.root_hash is None:
            raise FormatError(f"{image}: there is no hash tree to check")
        if not opened.trust.is_vouched_for:
            click.echo(f"mystfuse: warning: {image} is {opened.trust.explanation}", err=True)
        size = opened.tree.superblock.data_size
        shown: list[BadRange] = []
        count = bad_bytes = 0
        with progress("verifying", size) as advance:
            for bad in find_damage(source, opened.tree, opened.trust.root_hash, advance):
                count += 1
                bad_bytes += bad.length
                if count <= MAX_SHOWN:
                    shown.append(bad)
        if keys and not count:
            _check_keys(opened, keys)
    finally:
        source.close()
    root_hash = opened.trust.root_hash.hex()
    if as_json:
        document = {
            "image": image,
            "ok": not count,
            "root_hash": root_hash,
            "trust": opened.trust.reason.value,
            "trust_explanation": opened.trust.explanation,
            "data_bytes": size,
            "bad_ranges": [{"what": bad.what, "offset": bad.offset, "length": bad.length} for bad in shown],
            "bad_ranges_count": count,
            "key_opens": True if keys and not count else None,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        for bad in shown:
            click.echo(f"bad: bytes {bad.offset} to {bad.offset + bad.length - 1} ({bad.what})")
        if count > MAX_SHOWN:
            click.echo(f"and {count - MAX_SHOWN} more")
    if count:
        raise IntegrityError(f"{image}: {count} damaged range{'s' if count > 1 else ''}, {bad_bytes} bytes")
    if not as_json:
        opens = "; the key opens it" if keys else ""
        click.echo(f"{image}: {size} bytes verified, root hash {root_hash}, {opened.trust.explanation}{opens}")
    return ExitStatus.DONE


def _check_keys(image: TrustedImage, keys: Keys) -> None:
    """Raise WrongKey unless the keys open the image."""
    # Only here: verifying needs none of it.
    import trio

    from mystfuse.image.pipeline import run_pipeline

    async def unlock() -> None:
        async with run_pipeline(image, keys, math.inf, progress):
            pass

    try:
        trio.run(unlock)
    except BaseExceptionGroup as group:
        cause = innermost(group)
        raise type(cause)(cause.about(image.source.name)) if isinstance(cause, MystfuseError) else cause from None

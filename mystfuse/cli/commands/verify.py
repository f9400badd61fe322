"""``mystfuse verify``: check every block of an image."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
import trio

from mystfuse.cli.given_image import GivenImage, image_options
from mystfuse.cli.options import ImagePath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.trust_options import may_trust_self
from mystfuse.errors import ExitStatus, FormatError, IntegrityError, MystfuseError, NotTrusted, innermost
from mystfuse.image.open import open_image
from mystfuse.image.pipeline import check_contents
from mystfuse.image.verify import BadRange, find_damage
from mystfuse.trust.policy import TrustReason

if TYPE_CHECKING:
    from mystfuse.cli.damage_report import DamageReport
    from mystfuse.image.damage import Damage

MAX_SHOWN = 1000
"""The number of bad ranges to print; the rest is counted."""


@click.command("verify", short_help="Check every block of an image.")
@image_options
@click.option("--files", "by_name", is_flag=True, help="Name the files and other parts that are damaged.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@io_timeout_option
@click.argument("image", type=ImagePath())
def command(by_name: bool, as_json: bool, image: str, **given: Any) -> ExitStatus:
    """Check IMAGE: its trust, its whole hash tree, every data block, and that a mount would accept them: an EXT2 file
    system, or a LUKS header, of the size that the tree has.

    Lists the ranges that are damaged and exits with status 4 if there are any; with --files also the files,
    directories and other parts that these belong to, of an encrypted image if a key is given. Otherwise no key is
    needed, since the hash tree covers the ciphertext; with one, verify also checks whether it opens the image. An image
    that no trusted key or root hash covers is compared with its own root hash, and a warning says so; with
    --no-trust-self the status is 3 then.
    """
    needs_voucher = not may_trust_self(given["trust_self"])
    named = GivenImage(image, given)
    source = named.patient_source
    trust = named.load_trust(trust_self=True)
    try:
        keys = named.load_keys(trust, may_ask=False)
        opened = open_image(source, trust.policy, trust.hash_offset, trust.root_hash)
        if opened.tree is None or opened.trust.root_hash is None:
            raise FormatError(f"{image}: there is no hash tree to check")
        is_refused = needs_voucher and opened.trust.reason is TrustReason.SELF
        if not opened.trust.is_vouched_for and not is_refused:
            click.echo(f"mystfuse: warning: {image} is {opened.trust.explanation}", err=True)
        size = opened.tree.superblock.data_size
        shown: list[BadRange] = []
        damage = _new_damage() if by_name else None
        count = bad_bytes = 0
        with progress("verifying", size) as advance:
            for bad in find_damage(source, opened.tree, opened.trust.root_hash, advance):
                count += 1
                bad_bytes += bad.length
                if count <= MAX_SHOWN:
                    shown.append(bad)
                if damage is not None:
                    damage.add(bad)
        if not count:
            check_contents(opened, keys, named.io_timeout, progress)
        elif damage is not None:
            _run(image, damage.find_owners, opened, keys, named.io_timeout, progress)
    finally:
        source.close()
    root_hash = opened.trust.root_hash.hex()
    report = _report(damage) if damage is not None else None
    if as_json:
        document = {
            "image": image,
            "ok": not count,
            "root_hash": root_hash,
            "trust": opened.trust.reason.value,
            "trust_explanation": opened.trust.explanation,
            "vouched_for": opened.trust.is_vouched_for,
            "data_bytes": size,
            "bad_ranges": [{"what": bad.what, "offset": bad.offset, "length": bad.length} for bad in shown],
            "bad_ranges_count": count,
            "key_opens": True if keys and not count else None,
        }
        if report is not None:
            document["damage"] = report.document()
        click.echo(json.dumps(document, indent=2))
    else:
        for bad in shown:
            click.echo(f"bad: bytes {bad.offset} to {bad.offset + bad.length - 1} ({bad.what})")
        if count > MAX_SHOWN:
            click.echo(f"and {count - MAX_SHOWN} more")
        if report is not None and count:
            for line in report.lines():
                click.echo(line)
    if not count and not as_json:
        opens = "; the key opens it" if keys else ""
        nobody = "" if opened.trust.is_vouched_for else ", so nobody vouches for it"
        click.echo(f"{image}: {size} bytes verified, root hash {root_hash}, {opened.trust.explanation}{nobody}{opens}")
    if is_refused:
        raise NotTrusted(
            f"{image}: not trusted: no trusted root hash or public key is given, and it may not vouch for itself"
        )
    if count:
        raise IntegrityError(f"{image}: {count} damaged range{'s' if count > 1 else ''}, {bad_bytes} bytes")
    return ExitStatus.DONE


def _run(name: str, action: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run an asynchronous function; its errors say what image they are about."""
    try:
        trio.run(action, *args)
    except BaseExceptionGroup as group:
        cause = innermost(group)
        raise cause.about(name) if isinstance(cause, MystfuseError) else cause from None


def _new_damage() -> Damage:
    # Only here: nothing else needs these modules.
    from mystfuse.image.damage import Damage

    return Damage()


def _report(damage: Damage) -> DamageReport:
    from mystfuse.cli.damage_report import DamageReport

    return DamageReport(damage)

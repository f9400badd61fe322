"""Trust options, and what ``/etc/mystfuse/trust.d`` and the environment add to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mystfuse.cli.options import PEM, FileOrText, option_group
from mystfuse.cli.wrong_files import naming_wrong_file
from mystfuse.errors import UsageError
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.sources import TrustOptions, collect_trust, parse_root_hash, read_public_keys

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey

TRUST_SELF_VARIABLE = "MYSTFUSE_TRUST_SELF"
"""``no``, or ``yes``, which is the default: applies without ``--trust-self`` and ``--no-trust-self``."""

trust_self_option = click.option(
    "--trust-self/--no-trust-self",
    default=None,
    help="Whether it may vouch for itself when nobody is trusted (default: yes, with a warning, unless "
    f"{TRUST_SELF_VARIABLE}=no).",
)

trust_options = option_group(
    click.option(
        "--roothash",
        "roothashes",
        type=FileOrText(),
        multiple=True,
        metavar="FILE|HEX",
        help="Trust this root hash (repeatable).",
    ),
    click.option(
        "--pubkey",
        "pubkeys",
        type=FileOrText(PEM),
        multiple=True,
        metavar="PEM",
        help="Trust images signed by this key (repeatable).",
    ),
    click.option("--insecure", is_flag=True, help="Load anything, even a bare EXT2 file system."),
    trust_self_option,
)


def may_trust_self(given: bool | None) -> bool:
    """Whether an image, or a package, is trusted by itself when no key or root hash is trusted.

    Args:
        given: the command line's choice; if None, the environment's.

    Raises:
        UsageError: the environment's word is neither ``yes`` nor ``no``.
    """
    if given is not None:
        return given
    word = os.environ.get(TRUST_SELF_VARIABLE, "yes")
    if word not in ("yes", "no"):
        raise UsageError(f"{TRUST_SELF_VARIABLE}={word}: must be yes or no")
    return word == "yes"


def read_root_hash(value: str, option: str = "--roothash") -> bytes:
    """The root hash that an option gives, in hex digits or in a file; raises as ``parse_root_hash``."""
    with naming_wrong_file(value, option, "the hex digits of a root hash"):
        return parse_root_hash(value, option)


def read_keys(path: str, option: str = "--pubkey") -> list[PublicKey]:
    """The public keys in the file that an option names; raises as ``read_public_keys``."""
    with naming_wrong_file(path, option, "a PEM public key"):
        return read_public_keys(path, option)


def load_trust(given: Mapping[str, Any], hash_offset: int | None, trust_self: bool | None) -> TrustOptions:
    """Read what the trust options and ``/etc/mystfuse/trust.d`` name.

    Args:
        given: ``trust_options`` by the names of their parameters. A ``policy`` among them stands for all of them, and
            for what is trusted on this machine.
        hash_offset: where the verity superblock is, in bytes, if the image has no fssig.
        trust_self: whether an image is trusted by itself when nothing else is trusted; None: as the environment says.

    Raises:
        UsageError: something named, or something in the trust directory, is not the hash or key it should be, or
            options contradict each other.
    """
    policy: TrustPolicy | None = given.get("policy")
    if policy is not None:
        return TrustOptions(policy, None, None)
    hashes = [read_root_hash(value) for value in given.get("roothashes", ())]
    keys = [key for path in given.get("pubkeys", ()) for key in read_keys(path)]
    return collect_trust(hashes, keys, given.get("insecure", False), hash_offset, may_trust_self(trust_self))

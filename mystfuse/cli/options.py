"""Options that several commands share: sizes, and who is trusted."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mystfuse.devices.patience import IO_TIMEOUT
from mystfuse.errors import UsageError

if TYPE_CHECKING:
    from mystfuse.trust.signature import SigningKey
    from mystfuse.trust.sources import TrustOptions

F = TypeVar("F", bound=Callable[..., Any])


TREE_PARAMETERS = ("hash", "format", "data_block_size", "hash_block_size", "data_blocks", "salt")
"""What the superblock of a hash tree would say."""


class GivenPath(click.Path):
    """A path that is given, which may not be there yet, as text or, with ``path_type``, as that."""

    def __init__(self, path_type: type[Any] | None = None) -> None:
        super().__init__(readable=False, path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses what is empty, which pathlib would take for the current directory. Looks at nothing: click would call
        stat(2) on it, and a mount whose storage hangs would hang us."""
        if not value:
            self.fail("it is empty (a variable that is not set?)", param, ctx)
        return self.coerce_path_result(value)


def given_text(value: str) -> str:
    """An argument that says something: a path in an image, for one."""
    if not value:
        raise click.BadParameter("it is empty (a variable that is not set?)")
    return value


def parse_size(value: str) -> int:
    """Bytes from a number with an optional suffix k, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"([0-9]{1,19})([kKmMgGtT]?)(?:i?[bB])?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write bytes, or a number with k, M, G or T")
    size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    if size >= 1 << 62:
        raise click.BadParameter(f"{value} is too large")
    return size


def parse_seconds(value: str) -> float:
    """Seconds; 0 means no limit."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 1e9:
        raise click.BadParameter(f"{value!r} is not a number of seconds")
    return seconds or math.inf


def io_timeout_option(command: F) -> F:
    """Add ``--io-timeout`` to a command."""
    return click.option(
        "--io-timeout",
        type=parse_seconds,
        metavar="SECONDS",
        default=f"{IO_TIMEOUT:g}",
        show_default=True,
        help="An error if storage hangs for so long; 0: never.",
    )(command)


def parse_id(value: str) -> int:
    """A user or group number."""
    if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**32 - 1:
        raise click.BadParameter(f"{value!r} is not a user or group number")
    return int(value)


TRUST_SELF_VARIABLE = "MYSTFUSE_TRUST_SELF"
"""``no``, or ``yes``, which is the default: what counts without ``--trust-self`` and ``--no-trust-self``."""


def trust_self_option(command: F) -> F:
    """Add ``--trust-self`` to a command; None when it is not given."""
    return click.option(
        "--trust-self/--no-trust-self",
        default=None,
        help="Whether it may vouch for itself when nobody is trusted (default: yes, with a warning, unless "
        f"{TRUST_SELF_VARIABLE}=no).",
    )(command)


def trust_options(command: F) -> F:
    """Add the trust options to a command."""
    command = trust_self_option(command)
    for option in reversed(
        (
            click.option(
                "--roothash", "roothashes", multiple=True, metavar="FILE|HEX", help="Trust this root hash (repeatable)."
            ),
            click.option(
                "--pubkey",
                "pubkeys",
                multiple=True,
                metavar="PEM",
                help="Trust images signed by this key (repeatable).",
            ),
            click.option("--insecure", is_flag=True, help="Load anything, even a bare EXT2 file system."),
            click.option(
                "--hash-offset",
                type=parse_size,
                metavar="BYTES",
                help="Where the verity superblock is, for an image without an fssig; needs one --roothash.",
            ),
            click.option(
                "--hash-device",
                type=GivenPath(),
                metavar="FILE",
                help="Where the hash tree is, if not in IMAGE; needs one --roothash.",
            ),
            click.option(
                "--no-superblock",
                is_flag=True,
                help="The tree has no superblock: --hash, --format, --data-block-size, --hash-block-size, "
                "--data-blocks and --salt say what it would, as for veritysetup.",
            ),
            *(click.option(f"--{name.replace('_', '-')}", name, hidden=True) for name in TREE_PARAMETERS),
        )
    ):
        command = option(command)
    return command


def confinement_options(command: F) -> F:
    """Add the options of what a program may do."""
    for option in reversed(
        (
            click.option("--privileged", is_flag=True, help="Let it do what you may, as root above all: unconfined."),
            click.option(
                "--pids-limit",
                type=click.IntRange(0, 1 << 22),
                metavar="N",
                help="How many processes and threads it may have (default: 2048; 0: any number).",
            ),
        )
    ):
        command = option(command)
    return command


def may_trust_self(given: bool | None) -> bool:
    """Whether an image, or a package, may vouch for itself when nobody is trusted.

    Args:
        given: what the command line says; if it says nothing, the environment does.

    Raises:
        UsageError: the environment's word is neither ``yes`` nor ``no``.
    """
    if given is not None:
        return given
    word = os.environ.get(TRUST_SELF_VARIABLE, "yes")
    if word not in ("yes", "no"):
        raise UsageError(f"{TRUST_SELF_VARIABLE}={word}: must be yes or no")
    return word == "yes"


def load_trust(
    roothashes: Sequence[str], pubkeys: Sequence[str], insecure: bool, hash_offset: int | None, trust_self: bool | None
) -> TrustOptions:
    """Read what the trust options and ``/etc/mystfuse/trust.d`` name.

    Args:
        trust_self: whether an image may vouch for itself when nobody is trusted; None: as the environment says.

    Raises:
        UsageError: something named, or something in the trust directory, is not the hash or key it should be, or
            options contradict each other.
    """
    # Only here: it takes 4 ms to import, and umount and status trust nobody.
    from mystfuse.trust.sources import collect_trust, parse_root_hash, read_public_keys

    hashes = [parse_root_hash(value) for value in roothashes]
    keys = [key for path in pubkeys for key in read_public_keys(path)]
    return collect_trust(hashes, keys, insecure, hash_offset, may_trust_self(trust_self))


def read_signing_key(value: str) -> SigningKey:
    """The key pair that ``--sign PUB:PRIV`` names; raises UsageError if it is none."""
    public, separator, private = value.partition(":")
    if not separator or not public or not private:
        raise UsageError(f"--sign {value}: must be PUBLIC.pem:PRIVATE.pem")
    # Only here: cryptography takes long to import.
    from mystfuse.trust.signature import SigningKey
    from mystfuse.trust.sources import read_small_file

    return SigningKey.from_pem_pair(
        read_small_file(public, "--sign"), read_small_file(private, "--sign"), public, private
    )

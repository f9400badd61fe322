"""Options that several commands share: sizes, and who is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from mystfuse.errors import MystfuseError, UsageError
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.signature import PublicKey, SigningKey

TRUST_DIRECTORY = Path("/etc/mystfuse/trust.d")
MAX_SMALL_FILE = 64 * 1024
"""Bytes: no key and no root hash file is larger."""

F = TypeVar("F", bound=Callable[..., Any])


def parse_size(value: str) -> int:
    """Bytes from a number with an optional suffix k, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"(\d{1,19})([kKmMgGtT]?)(?:i?[bB])?", value)
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


def parse_id(value: str) -> int:
    """A user or group number."""
    if not re.fullmatch(r"\d{1,10}", value) or int(value) >= 2**32 - 1:
        raise click.BadParameter(f"{value!r} is not a user or group number")
    return int(value)


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """The trust options of a command line, read and parsed."""

    policy: TrustPolicy
    hash_offset: int | None
    root_hash: bytes | None
    """The root hash for ``hash_offset``."""


def trust_options(command: F) -> F:
    """Add the trust options to a command."""
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
        )
    ):
        command = option(command)
    return command


def load_trust(
    roothashes: Sequence[str], pubkeys: Sequence[str], insecure: bool, hash_offset: int | None, trust_self: bool
) -> TrustOptions:
    """Read what the trust options and ``/etc/mystfuse/trust.d`` name.

    Args:
        trust_self: whether an image may vouch for itself when nobody is trusted.

    Raises:
        UsageError: something named is not the hash or key it should be, or options contradict each other.
        MystfuseError: something in the trust directory cannot be read; nothing is trusted then.
    """
    hashes = [parse_root_hash(value) for value in roothashes]
    keys = [PublicKey.from_pem(read_small_file(path, "--pubkey"), path) for path in pubkeys]
    if hash_offset is not None:
        if len(hashes) != 1:
            raise UsageError("--hash-offset needs the root hash of that tree: give exactly one --roothash")
        if keys:
            raise UsageError("--hash-offset is for an image without an fssig, which has no signer: leave out --pubkey")
        return TrustOptions(TrustPolicy(insecure=insecure), hash_offset, hashes[0])
    listed_hashes, listed_keys = read_trust_directory(TRUST_DIRECTORY)
    policy = TrustPolicy(
        frozenset(hashes + listed_hashes), tuple(keys + listed_keys), trust_self=trust_self, insecure=insecure
    )
    return TrustOptions(policy, None, None)


def parse_root_hash(value: str, option: str = "--roothash") -> bytes:
    """A root hash from hex digits, or from a file that holds them; ``option`` is what named it."""
    found = _hex_digest(value)
    if found is None:
        text = read_small_file(value, option).decode("ascii", "replace")
        found = _hex_digest(text)
    if found is None:
        raise UsageError(f"{option} {value}: not a root hash (64 hex digits, or 128 for sha512), nor a file with one")
    return found


def _hex_digest(text: str) -> bytes | None:
    text = text.strip()
    return bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}([0-9a-fA-F]{64})?", text) else None


def read_small_file(path: str, option: str) -> bytes:
    """The contents of a key or hash file; UsageError if it cannot be read or is too large to be one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SMALL_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if len(data) > MAX_SMALL_FILE:
        raise UsageError(f"{option} {path}: too large")
    return data


def read_trust_directory(directory: Path) -> tuple[list[bytes], list[PublicKey]]:
    """The root hashes (``*.roothash``) and keys (``*.pem``) in a directory, which need not exist.

    Raises:
        UsageError, MystfuseError: one of them is broken, or cannot be read.
    """
    hashes: list[bytes] = []
    keys: list[PublicKey] = []
    try:
        names = sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return hashes, keys
    except OSError as error:
        raise MystfuseError(f"{directory}: {error.strerror}") from error
    for name in names:
        path = str(directory / name)
        if name.endswith(".roothash"):
            found = _hex_digest(read_small_file(path, "trusted root hash").decode("ascii", "replace"))
            if found is None:
                raise UsageError(f"{path}: not a root hash")
            hashes.append(found)
        elif name.endswith(".pem"):
            keys.append(PublicKey.from_pem(read_small_file(path, "trusted key"), path))
    return hashes, keys


def read_signing_key(value: str) -> SigningKey:
    """The key pair that ``--sign PUB:PRIV`` names; raises UsageError if it is none."""
    public, separator, private = value.partition(":")
    if not separator or not public or not private:
        raise UsageError(f"--sign {value}: must be PUBLIC.pem:PRIVATE.pem")
    return SigningKey.from_pem_pair(
        read_small_file(public, "--sign"), read_small_file(private, "--sign"), public, private
    )

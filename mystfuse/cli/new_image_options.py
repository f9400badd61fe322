"""Options for making an image: how to encrypt and sign it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from mystfuse.cli.key_options import has_terminal, read_passphrase, read_secret, run_for_passphrase
from mystfuse.cli.options import FileOrText, option_group
from mystfuse.cli.signing_options import load_signing_key, signing_options
from mystfuse.cli.text import warn
from mystfuse.crypto.secret import Secret
from mystfuse.errors import UsageError
from mystfuse.formats.verity import MAX_SALT_SIZE, VOUCHER
from mystfuse.image.keys import Encryption

if TYPE_CHECKING:
    from mystfuse.trust.signature import SigningKey

new_image_options = option_group(
    signing_options,
    click.option(
        "--encrypt",
        type=FileOrText(),
        metavar="KEYFILE|-",
        help="Encrypt (LUKS, aes-xts-plain64) with this master key of 64 bytes.",
    ),
    click.option(
        "--passphrase-file",
        type=FileOrText(),
        metavar="FILE|-",
        help="With --encrypt: a passphrase that opens the image too (14 characters or more); "
        "- asks for it on a terminal, else reads stdin.",
    ),
    click.option("--passphrase-command", metavar="CMD", help="The same: a command that prints it."),
    click.option("--passphrase", metavar="TEXT", help="The same, for everybody on this machine to see."),
    click.option("--luks2", is_flag=True, help="With --encrypt: LUKS2, argon2id for the passphrase."),
)


def parse_salt(value: str | None) -> bytes | None:
    """The salt that ``--salt HEX`` names.

    Raises:
        UsageError: it is none, or one that mystfuse computes.
    """
    if value is None:
        return None
    # veritysetup writes no salt as "-".
    if value == "-":
        return b""
    if not re.fullmatch(r"([0-9a-fA-F]{2})*", value):
        raise UsageError(f"--salt {value}: not an even number of hex digits")
    salt = bytes.fromhex(value)
    if len(salt) > MAX_SALT_SIZE:
        raise UsageError(f"--salt has {len(salt)} bytes; dm-verity has room for {MAX_SALT_SIZE}")
    if salt.startswith(VOUCHER):
        raise UsageError(f"--salt {salt.hex()}: salts that begin so vouch for the superblock, and are computed")
    return salt


def parse_uuid(value: str | None) -> UUID | None:
    """The UUID that ``--uuid`` names; raises UsageError if it is none."""
    try:
        return None if value is None else UUID(value)
    except ValueError as error:
        raise UsageError(f"--uuid {value}: not a UUID") from error


_PASSPHRASES = ("passphrase_file", "passphrase_command", "passphrase")


def load_new_image(
    sign: str | None, encrypt: str | None, luks2: bool, **given: Any
) -> tuple[SigningKey | None, Encryption | None]:
    """Read the files that ``new_image_options`` name: the signing key, and the encryption; None where no option names
    one.

    Args:
        given: the other options by the names of their parameters.

    Raises:
        UsageError: options that do not go together, or reading a file failed.
        WrongKey: a key of the wrong size, a passphrase that is too short, or that does not open the signing key.
        MystfuseError: the signing key is in a token that cannot be used.
    """
    from_stdin = [value for value in (encrypt, given["passphrase_file"], given["sign_passphrase_file"]) if value == "-"]
    if len(from_stdin) > 1 and (encrypt == "-" or not has_terminal()):
        raise UsageError("key and passphrase cannot both come from stdin")
    signing_key = load_signing_key(sign, given)
    return signing_key, _load_encryption(encrypt, luks2, given)


def _load_encryption(encrypt: str | None, luks2: bool, given: Mapping[str, Any]) -> Encryption | None:
    """Read the files of the encryption options; None without ``--encrypt``; raises as ``load_new_image``."""
    named = [name for name in _PASSPHRASES if given[name] is not None]
    options = [f"--{name.replace('_', '-')}" for name in named]
    if encrypt is None:
        if named or luks2:
            raise UsageError(f"{(*options, '--luks2')[0]} goes with --encrypt KEYFILE")
        return None
    if len(named) > 1:
        raise UsageError(f"{options[0]} and {options[1]} exclude each other")
    key = read_secret(encrypt, "--encrypt")
    secret = None
    if named == ["passphrase"]:
        warn("--passphrase shows the passphrase to everybody who can list processes: use --passphrase-file")
        secret = Secret.copy_of(os.fsencode(given["passphrase"]))
    elif named == ["passphrase_file"]:
        secret = read_passphrase(given["passphrase_file"], "Passphrase for the new image: ", repeat=True)
    elif named == ["passphrase_command"]:
        secret = run_for_passphrase(given["passphrase_command"], "--passphrase-command")
    encryption = Encryption(key, secret, 2 if luks2 else 1)
    encryption.check("stdin" if encrypt == "-" else encrypt)
    return encryption

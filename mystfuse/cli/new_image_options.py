"""Options for making an image: how to encrypt and sign it."""

from __future__ import annotations

import os

import click

from mystfuse.cli.key_options import read_passphrase, read_secret
from mystfuse.cli.options import option_group
from mystfuse.cli.text import warn
from mystfuse.crypto.secret import Secret
from mystfuse.errors import UsageError
from mystfuse.image.keys import Encryption
from mystfuse.trust.signature import SigningKey
from mystfuse.trust.sources import read_small_file

new_image_options = option_group(
    click.option("--sign", metavar="PUB:PRIV", help="Sign the root hash with this key pair (two PEM files)."),
    click.option(
        "--encrypt", metavar="KEYFILE|-", help="Encrypt (LUKS, aes-xts-plain64) with this master key of 64 bytes."
    ),
    click.option(
        "--passphrase-file",
        metavar="FILE|-",
        help="With --encrypt: a passphrase that opens the image too (14 characters or more); "
        "- asks for it on a terminal, else reads stdin.",
    ),
    click.option("--passphrase", metavar="TEXT", help="The same, for everybody on this machine to see."),
    click.option("--luks2", is_flag=True, help="With --encrypt: LUKS2, argon2id for the passphrase."),
)


def load_new_image(
    sign: str | None, encrypt: str | None, passphrase_file: str | None, passphrase: str | None, luks2: bool
) -> tuple[SigningKey | None, Encryption | None]:
    """Read the files that ``new_image_options`` name: the signing key, and the encryption; None where no option names
    one.

    Raises:
        UsageError: options that do not go together, or reading a file failed.
        WrongKey: a key of the wrong size, or a passphrase that is too short.
    """
    signing_key = _read_signing_key(sign) if sign is not None else None
    return signing_key, _load_encryption(encrypt, passphrase_file, passphrase, luks2)


def _load_encryption(
    encrypt: str | None, passphrase_file: str | None, passphrase: str | None, luks2: bool
) -> Encryption | None:
    """Read the files of the encryption options; None without ``--encrypt``; raises as ``load_new_image``."""
    if encrypt is None:
        if passphrase_file is not None or passphrase is not None or luks2:
            raise UsageError("--passphrase-file, --passphrase and --luks2 go with --encrypt KEYFILE")
        return None
    if passphrase_file is not None and passphrase is not None:
        raise UsageError("--passphrase-file and --passphrase exclude each other")
    if encrypt == passphrase_file == "-":
        raise UsageError("key and passphrase cannot both come from stdin")
    key = read_secret(encrypt, "--encrypt")
    secret = None
    if passphrase is not None:
        warn("--passphrase shows the passphrase to everybody who can list processes: use --passphrase-file")
        secret = Secret.copy_of(os.fsencode(passphrase))
    elif passphrase_file is not None:
        secret = read_passphrase(passphrase_file, "Passphrase for the new image: ", repeat=True)
    encryption = Encryption(key, secret, 2 if luks2 else 1)
    encryption.check("stdin" if encrypt == "-" else encrypt)
    return encryption


def _read_signing_key(value: str) -> SigningKey:
    """The key pair that ``--sign PUB:PRIV`` names; raises UsageError if it is not one."""
    public, separator, private = value.partition(":")
    if not separator or not public or not private:
        raise UsageError(f"--sign {value}: must be PUBLIC.pem:PRIVATE.pem")
    return SigningKey.from_pem_pair(
        read_small_file(public, "--sign"), read_small_file(private, "--sign"), public, private
    )
